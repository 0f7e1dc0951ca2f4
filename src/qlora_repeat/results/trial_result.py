"""Collected results: one row per trial of a study, the only thing that tables are made from.

The file is JSON Lines, ``runs/<study>/results.jsonl``: ``pandas.read_json(path, lines=True)`` and
R's ``jsonlite::stream_in`` read it as a table. Every trial that the study asks for has a row, in the
study's own order; what has not been measured is null.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.system.files import parse_json, write_text

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Response:
    """What a fine-tuned model answered to one prompt at one sampling setting."""

    prompt: str
    temperature: float
    top_p: float
    text: str
    """The response alone, without the prompt."""
    answer: str | None = None
    """The letter A to D that the response gives, where the prompt offers options and the response has one."""
    seed: int | None = None
    """Of the stream that it was drawn from."""


@dataclass(frozen=True)
class TrialResult:
    """One trial: what it is, and what its four stages measured (null where they have not)."""

    study: str
    task: str
    """``text-generation`` or ``question-answering``."""
    model: str
    model_title: str
    optimizer: str
    """``adamw-8bit`` or ``adamw-32bit``; after +, the version whose map of 8-bit state it has."""
    trial: int
    """Numbered from 1; the paper's run number."""
    status: str
    """``done``, ``running``, ``stale``, ``damaged``, ``failed`` or ``missing``."""
    stale_inputs: list[str] = field(default_factory=list)
    """Where the values of a stale trial are here all the same, on request: what has changed since."""
    stale_base_inputs: list[str] = field(default_factory=list)
    """The same of the base model's values."""
    randomness: str | None = None
    """Name of the randomness profile."""
    free_sources: list[str] | None = None
    """What may make the trials of an arm differ: sources without one seed for all of them, and ``kernels``
    that need not repeat; null where it is not known."""
    counterpart: str | None = None
    """The paper's model that this one is to be compared with."""
    perplexity: float | None = None
    """exp(total negative log-likelihood / tokens) of the merged model on the test examples (equation 1)."""
    perplexity_example_mean: float | None = None
    """The mean over examples of each example's own perplexity."""
    base_perplexity: float | None = None
    """The same as ``perplexity``, for the base model at the same precision on the same path."""
    base_perplexities: list[float] = field(default_factory=list)
    """From each process that measured it (section IX)."""
    base_perplexity_example_mean: float | None = None
    test_examples: int | None = None
    accuracy: float | None = None
    """Share of test questions whose answer greedy decoding would give exactly; null for text generation."""
    base_accuracy: float | None = None
    initial_loss: float | None = None
    final_loss: float | None = None
    loss_curve: list[list[float]] = field(default_factory=list)
    """The loss over the trial: [epochs done, mean loss of the steps since the last point]."""
    diverged_at: int | None = None
    """The first step whose loss was not finite, if any."""
    skipped_steps: int | None = None
    """Optimizer steps that the gradient scaler skipped."""
    train_seconds: float | None = None
    test_seconds: float | None = None
    """Median over repeats of the seconds to answer all prompts."""
    test_seconds_min: float | None = None
    test_seconds_max: float | None = None
    peak_memory_bytes: int | None = None
    """GPU memory where there is a GPU, resident memory of the process otherwise."""
    peak_memory_share: float | None = None
    """The same as a share (0 to 1) of the GPU's memory; null without a GPU."""
    weights: str | None = None
    """How the frozen base stood in memory: ``nf4``, or ``materialized`` (unpacked once and kept)."""
    adapter_digest: str | None = None
    adapter_init_seed: int | None = None
    miniature: bool | None = None
    """Whether the base is one of the rehearsal's stand-ins, as the title then says too."""
    responses: list[Response] = field(default_factory=list)
    repeated_responses: list[Response] = field(default_factory=list)
    """The same model asked again and again, each time with another seed (section IX)."""
    device: str | None = None
    software: str | None = None
    finished: str | None = None
    """When the last stage ended, UTC, ISO 8601."""

    @property
    def name(self) -> str:
        """The trial's name in its study."""
        return f"{self.model}/{self.optimizer}/{self.trial}"

    @property
    def measured(self) -> bool:
        """Whether its values count: it is done, or stale and collected on request."""
        return self.status == "done" or (self.status == "stale" and bool(self.stale_inputs))


def write_results(results: list[TrialResult], path: Path) -> None:
    """Writes a results file."""
    write_text(path, results_text(results))


def results_text(results: list[TrialResult]) -> str:
    """One JSON object per line, keys in the order of `TrialResult`, floats exactly."""
    return "".join(json.dumps(vars(result), default=vars) + "\n" for result in results)


def read_results(path: Path) -> list[TrialResult]:
    """Reads a results file.

    Raises:
        MissingError: there is no such file.
        UsageError: a line is not a row of collected results; names the line and the key.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise MissingError(f"{path}: no collected results; run `qlora-repeat collect` first") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file; run `qlora-repeat collect` again") from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str) -> TrialResult:
    try:
        row = respelled(parse_json(line.encode()))
        for name in ("responses", "repeated_responses"):
            row[name] = [_checked(Response(**response)) for response in row.get(name, [])]
        return _with_curve(_checked(TrialResult(**row)))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: not a row of collected results ({error})") from None


def _with_curve(row: TrialResult) -> TrialResult:
    """The row, once its loss curve is one; losses need not be finite."""
    for point in row.loss_curve:
        numbers = isinstance(point, list) and [type(value) in (int, float) for value in point] == [True, True]
        if not numbers or not 0 <= point[0] < math.inf:
            raise ValueError(f"loss_curve has {point!r}, not [epochs, loss]")
    return row


def _checked(row: _Row) -> _Row:
    """The row, once every value has the type that its field says."""
    for name, allowed, of_texts in _FIELDS[type(row)]:
        value = getattr(row, name)
        whole = type(value) is int and float in allowed
        texts = not (of_texts and isinstance(value, list)) or all(type(each) is str for each in value)
        if (not whole and type(value) not in allowed) or not texts:
            raise ValueError(f"{name} is {value!r}")
    return row


def _fields(kind: type) -> list[tuple[str, list[type], bool]]:
    """The name of each field of a row, the types that its values may have, and whether a list is of texts."""
    found = []
    for name, hint in get_type_hints(kind).items():
        hints = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        found.append((name, [get_origin(each) or each for each in hints], list[str] in hints))
    return found


_FIELDS: dict[type, list[tuple[str, list[type], bool]]] = {
    kind: _fields(kind) for kind in (TrialResult, Response)
}
