"""The keys that each stage's record must have: those that later stages, `collect` and `verify` read.

A record's digest proves that it was not changed, but not that this kit wrote it.
"""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.records.record import Record
from qlora_repeat.study.scores import MOST_ANSWERS, MOST_CHARACTERS, MOST_LABELS, Score, ScoreName

# Strict: no string for a number. A float may be NaN, infinite, or written as an integer.
_OPEN = ConfigDict(strict=True, extra="allow")
_CLOSED = ConfigDict(strict=True, extra="forbid")

Count = Annotated[int, Field(ge=0, lt=2**63)]
MOST_POINTS = 1000
"""Points of a loss curve; the kit records 30."""
MOST_TASKS, MOST_OUTCOMES = 10_000, 1_000_000
"""The most tasks of a benchmark record, and examples of a task; the largest known have about 100,000."""
_TaskName = Annotated[str, Field(max_length=200)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Epochs = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Point = Annotated[tuple[_Epochs, float], Field(strict=False)]  # JSON has only lists


@with_config(_OPEN)
class _Inputs(TypedDict):
    settings: dict[str, Any]


@with_config(_OPEN)
class _Fingerprint(TypedDict):
    gpu: str | None
    cpu: str | None
    cpu_capability: str | None
    threads: Count | None
    packages: dict[str, str]
    kernel_packages: NotRequired[dict[str, str]]
    kernels: NotRequired[dict[str, Any] | None]
    python: str


@with_config(_OPEN)
class _Finetuned(TypedDict):
    adapter_digest: str
    seeds: dict[str, Count]
    initial_loss: float
    final_loss: float
    loss_curve: Annotated[list[_Point], Field(max_length=MOST_POINTS)]
    diverged_at: Count | None
    skipped_steps: NotRequired[Count | None]
    train_seconds: float
    peak_memory_bytes: Count | None
    peak_memory_share: float | None
    weights: Literal["nf4", "materialized", "int8", "none"]
    share_in_4_bits: NotRequired[_Share]
    untrained_layers: NotRequired[Count]
    miniature: bool


@with_config(_OPEN)
class _Averaged(TypedDict):
    adapter_digest: str
    seeds: dict[str, Count]
    trials: list[str]


@with_config(_OPEN)
class _Merged(TypedDict):
    merged_digest: str


@with_config(_CLOSED)
class _Response(TypedDict):
    prompt: str
    temperature: float
    top_p: float
    text: str
    answer: NotRequired[str | None]
    seed: NotRequired[Count | None]


_Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


@with_config(_CLOSED)
class Answer(TypedDict):
    """An answer that a model generated to a test row."""

    row: Count
    reference: _Text
    text: _Text


@with_config(_CLOSED)
class AnswersOutput(TypedDict):
    """The answers to the test rows of a classification or summarization."""

    labels: Annotated[list[_Text], Field(max_length=MOST_LABELS)]
    left_out: Count
    examples: Annotated[list[Answer], Field(min_length=1, max_length=MOST_ANSWERS)]
    scores: dict[ScoreName, Score]


@with_config(_OPEN)
class _Evaluated(TypedDict):
    perplexity: float
    perplexity_example_mean: float
    test_examples: Count
    accuracy: float | None
    responses: NotRequired[list[_Response]]
    repeated_responses: NotRequired[list[_Response]]
    answers: NotRequired[AnswersOutput]


@with_config(_OPEN)
class _Base(TypedDict):
    perplexity: float
    perplexity_example_mean: float
    accuracy: float | None
    miniature: bool
    split_seed: Count
    answers: NotRequired[AnswersOutput]


@with_config(_OPEN)
class _Timed(TypedDict):
    test_seconds: float
    test_seconds_min: float
    test_seconds_max: float


@with_config(_OPEN)
class _Task(TypedDict):
    version: Annotated[str, Field(max_length=200)]
    fewshot: Count | None
    examples: Annotated[str, Field(max_length=64)]
    example_count: Count
    scores: dict[_TaskName, float]
    outcomes: dict[_TaskName, Annotated[list[float], Field(max_length=MOST_OUTCOMES)]]


@with_config(_OPEN)
class _Benchmarked(TypedDict):
    lm_eval: str
    tasks: Annotated[dict[_TaskName, _Task], Field(max_length=MOST_TASKS)]


_INPUTS: TypeAdapter[Any] = TypeAdapter(_Inputs)
_FINGERPRINT: TypeAdapter[Any] = TypeAdapter(_Fingerprint)
_OUTPUTS: dict[str, TypeAdapter[Any]] = {
    "finetune": TypeAdapter(_Finetuned),
    "average": TypeAdapter(_Averaged),
    "merge": TypeAdapter(_Merged),
    "evaluate": TypeAdapter(_Evaluated),
    "time": TypeAdapter(_Timed),
    "benchmark": TypeAdapter(_Benchmarked),
}
_BASE: TypeAdapter[Any] = TypeAdapter(_Base)

_SEEDS = {"finetune": ("split", "adapter_init", "data_order", "dropout"), "average": ("split", "generation")}
_FILES = {
    "average": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    "finetune": ("trace.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    "merge": ("merged/*.safetensors",),
}
"""Files that a stage's record must name; a file that is not named would never be hashed."""


def misfit(record: Record, *, base: bool = False, complete: bool = True) -> str | None:
    """Return a few words on the first key of a record that is missing or invalid, or None if all are valid.

    With `base`, it is the record of a test of a base. Unless `complete`, keys and files may be missing, as in
    records of earlier versions.
    """
    if record.stage not in _OUTPUTS:
        return f"stage is {record.stage!r}"[:60]
    outputs = _BASE if base else _OUTPUTS[record.stage]
    for part, shape in (("inputs", _INPUTS), ("outputs", outputs), ("fingerprint", _FINGERPRINT)):
        try:
            shape.validate_python(getattr(record, part))
        except ValidationError as error:
            problems = [each for each in error.errors(include_url=False) if complete or not _lacks_key(each)]
            if problems:
                return _words(part, problems[0])
    if not complete:
        return None
    for name in _SEEDS.get(record.stage, ()):
        if name not in record.outputs["seeds"]:
            return f"no outputs.seeds.{name}"
    for pattern in _FILES.get(record.stage, ()):
        if not any(fnmatchcase(name, pattern) for name in record.files):
            return f"files has no {pattern}"
    return None


def _lacks_key(problem: ErrorDetails) -> bool:
    return problem["type"] == "missing"


def _words(part: str, problem: ErrorDetails) -> str:
    key = ".".join([part, *(_plain(each) for each in problem["loc"])])
    if problem["type"] == "missing":
        return f"no {key}"
    if problem["type"] == "extra_forbidden":
        return f"unknown {key}"
    return f"{key} is {repr(problem['input'])[:60]}"


def _plain(part: int | str) -> str:
    """Return a part of a key, cut and quoted if it might not fit on a line (records may come from others)."""
    return part if isinstance(part, str) and part.isidentifier() else repr(part)[:60]
