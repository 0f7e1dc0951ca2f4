"""Read and write collected results, the only input of tables: one row for each trial of a study.

The file is JSON Lines, ``runs/<study>/results.jsonl``: ``pandas.read_json(path, lines=True)`` and
R's ``jsonlite::stream_in`` read it as a table. Every trial of the study has a row, in the study's order; what
was not measured is null.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.system.files import parse_json, read_lines, write_text

_Row = TypeVar("_Row")


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
    seed: int | None = None
    """The seed that it was sampled with."""


@dataclass(frozen=True)
class TrialResult:
    """One trial and what its four stages measured (None if not measured)."""

    study: str
    task: str
    """``text-generation`` or ``question-answering``."""
    model: str
    model_title: str
    optimizer: str
    """``adamw-8bit`` or ``adamw-32bit``; after +, the version whose quantization map its 8-bit state has."""
    trial: int
    """Number from 1; the paper's run number."""
    status: str
    """``done``, ``running``, ``stale``, ``damaged``, ``failed`` or ``missing``."""
    stale_inputs: list[str] = field(default_factory=list)
    """What has changed since a stale trial, if its values were collected on request."""
    stale_base_inputs: list[str] = field(default_factory=list)
    """The same for the values of the base model."""
    randomness: str | None = None
    """Name of the randomness profile."""
    free_sources: list[str] | None = None
    """What may make the trials of an arm differ: sources without a common seed, and nondeterministic
    ``kernels``; None if unknown."""
    counterpart: str | None = None
    """The paper's model that this one is compared with."""
    perplexity: float | None = None
    """exp(total negative log-likelihood / tokens) of the merged model on the test examples (equation 1)."""
    perplexity_example_mean: float | None = None
    """The mean of the perplexities of single examples."""
    base_perplexity: float | None = None
    """The perplexity of the base model, computed in the same precision by the same code."""
    base_perplexities: list[float] = field(default_factory=list)
    """The perplexity of the base model in each test (section IX)."""
    base_perplexity_example_mean: float | None = None
    test_examples: int | None = None
    accuracy: float | None = None
    """Share of test questions that greedy decoding answers exactly; None for text generation."""
    base_accuracy: float | None = None
    initial_loss: float | None = None
    final_loss: float | None = None
    loss_curve: list[list[float]] = field(default_factory=list)
    """Points of [epochs done, mean loss of the steps since the last point]."""
    diverged_at: int | None = None
    """The first step whose loss was not finite, if any."""
    skipped_steps: int | None = None
    """Number of optimizer steps that the gradient scaler skipped."""
    train_seconds: float | None = None
    test_seconds: float | None = None
    """Median over repeats of the seconds to answer all prompts."""
    test_seconds_min: float | None = None
    test_seconds_max: float | None = None
    peak_memory_bytes: int | None = None
    """GPU memory; without a GPU, the resident memory of the process."""
    peak_memory_share: float | None = None
    """The same as a share (0 to 1) of the GPU's memory; None without a GPU."""
    weights: str | None = None
    """How the frozen base was held in memory: ``nf4``, or ``materialized`` (dequantized once and kept)."""
    adapter_digest: str | None = None
    adapter_init_seed: int | None = None
    miniature: bool | None = None
    """Whether the base model is a miniature of the rehearsal; the title says so too."""
    responses: list[Response] = field(default_factory=list)
    repeated_responses: list[Response] = field(default_factory=list)
    """Repeated responses of the same model, each with another seed (section IX)."""
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


def write_results(results: list[TrialResult], path: Path) -> None:
    """Write a results file."""
    write_text(path, results_text(results))


def results_text(results: list[TrialResult]) -> str:
    """Return one JSON object for each line, keys in the order of `TrialResult`, floats exact."""
    return "".join(json.dumps(vars(result), default=vars) + "\n" for result in results)


def read_results(path: Path) -> list[TrialResult]:
    """Read a results file.

    Raises:
        MissingError: there is no such file.
        UsageError: a line is not a row of collected results; names the line and the key.
    """
    try:
        lines = read_lines(path, follow=True).split("\n")
    except FileNotFoundError:
        raise MissingError(f"{path}: no collected results; run `qlora-repeat collect` first") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: not readable ({reason}); run `qlora-repeat collect` again") from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str) -> TrialResult:
    try:
        row = respelled(parse_json(line.encode()))
        for name in ("responses", "repeated_responses"):
            row[name] = [_checked(Response(**response)) for response in row.get(name, [])]
        result = _checked(TrialResult(**row))
        for point in result.loss_curve:  # losses need not be finite
            numbers = (
                isinstance(point, list) and [type(value) in (int, float) for value in point] == [True] * 2
            )
            if not numbers or not 0 <= point[0] < math.inf:
                raise ValueError(f"loss_curve: expected [epochs, loss], found {point!r}")
        return result
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: not a row of collected results ({error})") from None


def _checked(row: _Row) -> _Row:
    """Return the row if every value has the type of its field."""
    for name, allowed, of_texts in _FIELDS[type(row)]:
        value = getattr(row, name)
        whole = type(value) is int and float in allowed
        texts = not (of_texts and isinstance(value, list)) or all(type(each) is str for each in value)
        if (not whole and type(value) not in allowed) or not texts:
            raise ValueError(f"{name} is {value!r}")
    return row


def _fields(kind: type) -> list[tuple[str, list[type], bool]]:
    """Return, for each field of a row: its name, its allowed types, and whether it is a list of texts."""
    hints = {
        name: get_args(hint) if get_origin(hint) is UnionType else (hint,)
        for name, hint in get_type_hints(kind).items()
    }
    return [
        (name, [get_origin(each) or each for each in own], list[str] in own) for name, own in hints.items()
    ]


_FIELDS: dict[type, list[tuple[str, list[type], bool]]] = {
    kind: _fields(kind) for kind in (TrialResult, Response)
}
