"""Read and write collected results, the only input of tables: one row for each trial of a study.

The file is JSON Lines, ``runs/<study>/results.jsonl``: ``pandas.read_json(path, lines=True)`` and
R's ``jsonlite::stream_in`` read it as a table. Every trial of the study has a row, in the study's order; what
was not measured is null.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.record_schema import MOST_OUTCOMES, MOST_POINTS, MOST_TASKS, Count
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.study.scores import Score, ScoreName
from qlora_repeat.study.study import MOST_TRIALS
from qlora_repeat.system.files import parse_json, read_lines, write_text
from qlora_repeat.system.typed_json import first_problem

_STRICT = ConfigDict(strict=True, extra="forbid")


def _is_point(point: list[float]) -> list[float]:
    """Return a point of a loss curve; its loss need not be finite."""
    if len(point) != 2 or not 0 <= point[0] < math.inf:
        raise ValueError("expected [epochs, loss]")
    return point


_Words = Annotated[str, Field(max_length=2000)]
"""A name of a study or in it."""
_Point = Annotated[list[float], AfterValidator(_is_point)]


@with_config(_STRICT)
@dataclass(frozen=True)
class Response:
    """The response of a fine-tuned model to one prompt at one sampling setting."""

    prompt: str
    temperature: float
    top_p: float
    text: str
    """The response without the prompt."""
    answer: str | None = None
    """The letter A to D that the response gives, if the prompt offers options."""
    seed: Count | None = None
    """The seed that it was sampled with."""


@with_config(_STRICT)
@dataclass(frozen=True)
class ExampleLosses:
    """What a trial gave for each test example, in the order of rows."""

    rows: Annotated[list[Count], Field(max_length=MOST_OUTCOMES)]
    tokens: Annotated[list[Count], Field(max_length=MOST_OUTCOMES)]
    """Number of predicted tokens."""
    losses: Annotated[list[float], Field(max_length=MOST_OUTCOMES)]
    """Negative log-likelihood in nats, summed over the predicted tokens."""
    better_than_base: Annotated[list[bool], Field(max_length=MOST_OUTCOMES)] = field(default_factory=list)
    """Whether the loss is below that of the base; empty if that is not known."""

    def __post_init__(self) -> None:
        counts = {len(self.rows), len(self.tokens), len(self.losses), len(self.better_than_base or self.rows)}
        if len(counts) > 1:
            raise ValueError("expected as many tokens and losses as rows")


@with_config(_STRICT)
@dataclass(frozen=True)
class Benchmark:
    """One score of a fine-tuned model in a task of lm-evaluation-harness."""

    task: _Words
    metric: _Words
    score: float
    examples: _Words
    """The digest of the examples; only outcomes of the same examples can agree."""
    outcomes: Annotated[list[float], Field(max_length=MOST_OUTCOMES)] = field(default_factory=list)
    """The outcome of each example, such as 1 for correct; empty if the score is not their mean."""


@with_config(_STRICT)
@dataclass(frozen=True)
class TrialResult:
    """One trial and what its stages measured (None if not measured)."""

    study: _Words
    task: _Words
    """``text-generation``, ``question-answering``, ``classification`` or ``summarization``."""
    model: _Words
    model_title: _Words
    optimizer: _Words
    """``adamw-8bit`` or ``adamw-32bit``; after +, the version whose quantization map its 8-bit state has."""
    trial: Count
    """Number from 1; the paper's run number."""
    status: str
    """``done``, ``running``, ``stale``, ``damaged``, ``failed`` or ``missing``."""
    stale_inputs: list[str] = field(default_factory=list)
    """What has changed since a stale trial, if its values were collected on request."""
    stale_base_inputs: list[str] = field(default_factory=list)
    """The same for the values of the base model."""
    randomness: _Words | None = None
    """Name of the randomness profile."""
    free_sources: list[str] | None = None
    """What may make the trials of an arm differ: sources without a common seed, and nondeterministic
    ``kernels``; None if unknown."""
    counterpart: _Words | None = None
    """The paper's model that this one is compared with."""
    answers_only: bool | None = None
    """True if only answers are learned, so that losses and perplexity are of them; else None."""
    perplexity: float | None = None
    """exp(total negative log-likelihood / tokens) of the merged model on the test examples (equation 1)."""
    perplexity_example_mean: float | None = None
    """The mean of the perplexities of single examples."""
    base_perplexity: float | None = None
    """The perplexity of the base model, computed in the same precision by the same code."""
    base_perplexities: list[float] = field(default_factory=list)
    """The perplexity of the base model in each test (section IX)."""
    base_perplexity_example_mean: float | None = None
    test_examples: Count | None = None
    example_losses: ExampleLosses | None = None
    """The losses of single test examples."""
    accuracy: float | None = None
    """Share of test questions that greedy decoding answers exactly; None for text generation."""
    base_accuracy: float | None = None
    scores: dict[ScoreName, Score] = field(default_factory=dict)
    """Scores of the answers that the model generates: accuracy, macro_f1, and the number without_label of a
    classification; rouge1, rouge2 and rougeL of a summarization."""
    base_scores: dict[ScoreName, Score] = field(default_factory=dict)
    scored_answers: Count | None = None
    """Number of answers that have scores."""
    initial_loss: float | None = None
    final_loss: float | None = None
    loss_curve: Annotated[list[_Point], Field(max_length=MOST_POINTS)] = field(default_factory=list)
    """Points of [epochs done, mean loss of the steps since the last point]."""
    diverged_at: Count | None = None
    """The first step whose loss was not finite, if any."""
    skipped_steps: Count | None = None
    """Number of optimizer steps that the gradient scaler skipped."""
    train_seconds: float | None = None
    test_seconds: float | None = None
    """Median over repeats of the seconds to answer all prompts."""
    test_seconds_min: float | None = None
    test_seconds_max: float | None = None
    peak_memory_bytes: Count | None = None
    """GPU memory; without a GPU, the resident memory of the process."""
    peak_memory_share: float | None = None
    """The same as a share (0 to 1) of the GPU's memory; None without a GPU."""
    weights: str | None = None
    """How the frozen base was held in memory: ``nf4``, ``materialized`` (dequantized once and kept), ``int8``
    or ``none`` (not quantized)."""
    adapter_digest: str | None = None
    adapter_init_seed: Count | None = None
    miniature: bool | None = None
    """Whether the base model is a miniature of the rehearsal; the title says so too."""
    responses: list[Response] = field(default_factory=list)
    repeated_responses: list[Response] = field(default_factory=list)
    """Repeated responses of the same model, each with another seed (section IX)."""
    benchmarks: Annotated[list[Benchmark], Field(max_length=MOST_TASKS)] = field(default_factory=list)
    device: str | None = None
    software: str | None = None
    finished: str | None = None
    """The end of the last stage, UTC, ISO 8601."""

    @property
    def name(self) -> str:
        """Return the trial's name in its study."""
        return f"{self.model}/{self.optimizer}/{self.trial}"

    @property
    def measured(self) -> bool:
        """Return whether its values count: it is done, or stale and collected on request."""
        return self.status == "done" or (self.status == "stale" and bool(self.stale_inputs))


_RESULT = TypeAdapter(TrialResult)


def write_results(results: list[TrialResult], path: Path) -> None:
    """Write a results file."""
    write_text(path, results_text(results))


def results_text(results: list[TrialResult]) -> str:
    """Return one JSON object for each line, keys in the order of `TrialResult`, floats exact."""
    return "".join(json.dumps(vars(result), default=vars) + "\n" for result in results)


def read_results(path: Path, collect: str = "qlora-repeat collect") -> list[TrialResult]:
    """Read a results file; errors name the command `collect`, which writes it.

    Raises:
        MissingError: there is no such file.
        UsageError: a line is not a row of collected results; names the line and the key.
    """
    try:
        lines = read_lines(path, follow=True).split("\n")
    except FileNotFoundError:
        raise MissingError(f"{path}: no collected results; run `{collect}` first") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: not readable ({reason}); run `{collect}` again") from None
    if len(lines) > MOST_TRIALS + 1:
        raise UsageError(f"{path}: {len(lines):,} lines; a study has at most {MOST_TRIALS:,} trials")
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def trial_result(row: Mapping[str, Any]) -> TrialResult:
    """Return a row of any origin as a result.

    Raises:
        ValueError: a key is unknown or missing, or a value has another type or is out of range; names it.
    """
    try:
        # As JSON: there, strict mode turns objects into dataclasses, but no text into a number.
        return _RESULT.validate_json(json.dumps(row, default=vars))
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def _parse(line: str, where: str) -> TrialResult:
    try:
        return trial_result(respelled(parse_json(line.encode())))
    except ValueError as error:
        raise UsageError(f"{where}: not a row of collected results ({error})") from None
