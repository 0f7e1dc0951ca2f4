"""Compare two trials: the first training step that differs, the adapters, and the records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.record import Record, damages
from qlora_repeat.records.trace import Step, known_losses, read_trace
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.study.trial import ALL_STAGES, Stage
from qlora_repeat.system.fingerprint import fingerprint_differences

if TYPE_CHECKING:
    from qlora_repeat.analysis.adapter_distance import Distance

DivergenceKind = Literal["init", "data", "learning rate", "loss", "gradient", "skipped", "update"]
What = Literal["setting", "input", "seed", "fingerprint"]
Likeness = Literal["alike", "alike as far as compared", "different"]

_VALUES: dict[str, tuple[DivergenceKind, str]] = {
    "examples": ("data", "examples"),
    "tokens": ("data", "numbers of tokens"),
    "epoch": ("data", ""),
    "learning_rate": ("learning rate", "learning rates"),
    "loss": ("loss", "losses"),
    "gradient_norm": ("gradient", "gradient norms"),
    "skipped": ("skipped", ""),
    "adapter": ("update", "digests of adapters"),
}
"""The values of a step in the order in which it has them: kind of difference; optional ones in words."""

MEANINGS: dict[DivergenceKind, str] = {
    "init": "The initial adapters are not the same, which points to their seeds or to the code that draws "
    "them.",
    "data": "The trials read different examples, which points to the data order, the data or the tokenizer.",
    "learning rate": "The learning rates are not the same, which points to the settings of the schedule.",
    "loss": "The same adapter has different losses on the same examples, which points to dropout, or to the "
    "kernels or threads of the forward pass.",
    "gradient": "The same loss has different gradients, which points to the kernels of the backward pass.",
    "skipped": "Gradients overflowed in one trial only, which skipped the update and points to the scale of "
    "the gradient scaler.",
    "update": "Losses and gradient norms are the same but the updated adapters differ, which points to the "
    "optimizer: its kind, the precision of its state, or its kernels.",
}
"""What the first difference between two traces means, and what it points to, by kind."""


@dataclass(frozen=True)
class Divergence:
    """The first step that differs between two fine-tunings."""

    step: int
    """0 is the adapter before any update."""
    kind: DivergenceKind
    """The first value that differs, in the order in which a step computes them."""
    first: Any
    second: Any
    alike_after: int | None
    """The last earlier step after which both traces have a digest of the adapter; these digests agree."""
    apart_after: int | None
    """The first step after which both traces have a digest of the adapter and these differ, if any."""

    @property
    def unwatched(self) -> list[int]:
        """Return the earlier steps since the last digest that shows the adapters to be the same."""
        return list(range(1 + (self.alike_after or 0), self.step))


def first_divergence(first: Sequence[Step], second: Sequence[Step]) -> Divergence | None:
    """Return the first step that differs, or None if all common steps agree. Both traces begin at step 0.

    Compare the values that both have exactly: NaN equals NaN, and 0 does not equal -0.
    """
    alike_after = None
    steps = list(zip(first, second, strict=False))
    for place, (one, other) in enumerate(steps):
        for name, (kind, _) in _VALUES.items():
            if _differ(one, other, name):
                return Divergence(
                    step=place,
                    kind="init" if (place, name) == (0, "adapter") else kind,
                    first=getattr(one, name),
                    second=getattr(other, name),
                    alike_after=alike_after,
                    apart_after=next((a.step for a, b in steps[place:] if _differ(a, b, "adapter")), None),
                )
        if one.adapter is not None and other.adapter is not None:
            alike_after = place
    return None


def _differ(one: Step, other: Step, name: str) -> bool:
    """Return whether both steps have the value, but not the same bits."""
    values = getattr(one, name), getattr(other, name)
    ours, theirs = (value.hex() if isinstance(value, float) else value for value in values)
    return ours is not None and theirs is not None and bool(ours != theirs)


@dataclass(frozen=True)
class Side:
    """The files of one of two compared trials."""

    name: str
    folder: Path
    steps: list[Step]
    finished: bool
    """Whether the fine-tuning is finished; otherwise `steps` are those done so far."""
    records: dict[Stage, Record]

    @property
    def last_step(self) -> int:
        return len(self.steps) - 1

    @property
    def final_loss(self) -> float | None:
        return known_losses(self.steps)[-1] if self.finished and known_losses(self.steps) else None

    @property
    def diverged_at(self) -> int | None:
        """Return the first step whose loss is not finite."""
        return next((step.step for step in self.steps if step.diverged), None)

    @property
    def skipped_steps(self) -> int:
        return sum(step.skipped for step in self.steps)

    @property
    def perplexity(self) -> float | None:
        """Return the perplexity of this adapter; ignore the perplexity of an earlier one."""
        trained, merged, tested = (self.records.get(stage) for stage in ("finetune", "merge", "evaluate"))
        if trained is None or merged is None or tested is None:
            return None
        is_own = (merged.inputs.get("adapter_digest"), tested.inputs.get("merged_digest")) == (
            trained.outputs.get("adapter_digest"),
            merged.outputs.get("merged_digest"),
        )
        return tested.outputs.get("perplexity") if is_own else None


@dataclass(frozen=True)
class Difference:
    """A value that differs between the records of two trials."""

    what: What
    stage: Stage
    key: str
    """Dots separate the keys of nested values."""
    first: Any
    second: Any


@dataclass(frozen=True)
class TrialDiff:
    """The comparison of two trials."""

    first: Side
    second: Side
    divergence: Divergence | None
    distances: "dict[str, Distance] | None"
    """Between ``all`` values of the adapters, ``lora_A`` and ``lora_B``; None where not compared."""
    differences: list[Difference]
    """Differences of settings, other inputs, seeds and fingerprints."""
    unlike: list[str]
    """Other differences of traces and adapters, in words."""
    not_compared: list[str]
    """What could not be compared, and why."""

    @property
    def compared_steps(self) -> int:
        """Return the number of optimizer steps that both have."""
        return min(self.first.last_step, self.second.last_step)

    @property
    def verdict(self) -> Likeness:
        """Return whether trace and adapter are bitwise the same."""
        if self.divergence or self.unlike:
            return "different"
        return "alike as far as compared" if self.distances is None else "alike"


def read_side(name: str, folder: Path) -> Side:
    """Read the trial in a folder; if it is not finished, its trace so far.

    Raises:
        MissingError: there is no trace, or a file that a record names is missing or damaged.
        UsageError: a trace or a record cannot be read.
    """
    finished = (folder / "trace.jsonl").is_file()
    trace = folder / "trace.jsonl" if finished else folder / "unfinished" / "trace.jsonl"
    if not trace.is_file() and (folder / "average.json").is_file():
        raise MissingError(
            f"{folder}: an average, which has no training to compare or verify; give one of its trials"
        )
    if not trace.is_file():
        raise MissingError(
            f"{folder}: has neither trace.jsonl nor unfinished/trace.jsonl, so there is nothing to compare; "
            "fine-tune the trial first, or give the folder of another one"
        )
    steps = read_trace(trace, unfinished=not finished)
    if not steps:
        raise UsageError(f"{trace}: the trace has no step yet; try again later")
    stages = ALL_STAGES if finished else ()
    found = {stage: valid_record(folder / f"{stage}.json", complete=False) for stage in stages}
    records = {stage: record for stage, record in found.items() if record is not None}
    if (trained := records.get("finetune")) is not None:
        for damage in damages(folder, trained.files).values():
            if damage is not None:
                raise MissingError(f"{damage}; restore it, or give another copy of trial {trained.trial}")
    return Side(name, folder, steps, finished, records)


def compare_trials(first: Side, second: Side) -> TrialDiff:
    """Compare traces, adapters and records.

    Raises:
        UsageError: an adapter is not a safetensors file.
    """
    from qlora_repeat.analysis.adapter_distance import adapter_distances  # loads numpy

    unlike: list[str] = []
    not_compared = [*_lacking(first), *_lacking(second), *_unknown(first.steps, second.steps)]
    shorter, longer = sorted((first, second), key=lambda side: side.last_step)
    if shorter.finished and shorter.last_step < longer.last_step:
        unlike.append(f"one has {shorter.last_step} steps, the other {longer.last_step}")
    divergence = first_divergence(first.steps, second.steps)
    distances = None
    if first.finished and second.finished:
        try:
            distances = adapter_distances(first.folder / "adapter", second.folder / "adapter")
            different = distances["all"].values - distances["all"].equal
            if different and divergence is None:
                unlike.append(f"the adapters, in {different} of {distances['all'].values} values")
        except MissingError as error:
            not_compared.append(f"adapters: {error}")
        except ValueError as error:
            unlike.append(f"the adapters have different tensors: {error}")
    return TrialDiff(
        first=first,
        second=second,
        divergence=divergence,
        distances=distances,
        differences=record_differences(first.records, second.records),
        unlike=unlike,
        not_compared=not_compared,
    )


def _lacking(side: Side) -> Iterator[str]:
    if not side.finished:
        yield f"steps after {side.last_step}, and the adapter: the fine-tuning of {side.name} is not finished"
    elif (side.folder / "unfinished").is_dir():
        yield f"the new fine-tuning of {side.name}, which is not finished; the earlier one was compared"
    if "finetune" not in side.records:
        yield f"settings, seeds and fingerprint: {side.name} has no record of its fine-tuning"
    if side.finished and side.perplexity is None:
        other = "evaluate" in side.records
        yield f"perplexity: {side.name} is not evaluated{' with this adapter' if other else ''}"


def _unknown(first: Sequence[Step], second: Sequence[Step]) -> Iterator[str]:
    """Yield the values that no step has in both traces."""
    for name, (_, words) in _VALUES.items():
        pairs = zip(first[1:], second[1:], strict=False)
        if words and not any(None not in (getattr(a, name), getattr(b, name)) for a, b in pairs):
            yield f"{words}: no step has them in both traces"


def record_differences(
    first: dict[Stage, Record],
    second: dict[Stage, Record],
    stages: Sequence[Stage] = ("finetune", "evaluate"),
) -> list[Difference]:
    """Return the differences of inputs, seeds and fingerprints of these stages, each once."""
    found: dict[tuple[str, ...], Difference] = {}
    for stage in stages:
        if stage in first and stage in second:
            ours, theirs = _by_what(first[stage]), _by_what(second[stage])
            for what in ours:
                for key, *values in fingerprint_differences(ours[what], theirs[what]):
                    difference = Difference(what, stage, key, *values)
                    found.setdefault((key, *map(repr, values)), difference)
    return list(found.values())


def _by_what(record: Record) -> dict[What, dict[str, Any]]:
    apart = ("settings", "merged_digest")  # the merged models differ if the adapters do
    return {
        "setting": record.inputs.get("settings", {}),
        "input": {name: value for name, value in record.inputs.items() if name not in apart},
        "seed": record.outputs.get("seeds", {}) if record.stage == "finetune" else {},
        "fingerprint": record.fingerprint,
    }
