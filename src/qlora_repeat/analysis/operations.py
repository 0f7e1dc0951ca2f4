"""Find the operator that made two fine-tunings differ.

Each side runs again up to the first step that differs, in a process of its own, with its recorded settings
and seeds. Both sides begin this step with equal bits. `operator_log` logs its operators; `first_difference`
compares the two logs.
"""

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

from qlora_repeat.analysis.trial_diff import Divergence, Side, TrialDiff, first_divergence
from qlora_repeat.analysis.verify.causes import MATTERS
from qlora_repeat.analysis.verify.recorded_settings import missing_inputs, other_sources, recorded_trial
from qlora_repeat.execution.process_pool import Job, Watcher, run_jobs
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.study.trial import Progress, Trial
from qlora_repeat.system.files import write_text
from qlora_repeat.system.fingerprint import fingerprint, fingerprint_differences

Phase = Literal["forward", "backward", "update"]
Kind = Literal["output", "input", "operator"]


@dataclass(frozen=True)
class Operator:
    """An operator that ran: what it read, and what it returned or changed."""

    name: str
    """As in ``aten::mm``."""
    phase: Phase
    module: str
    """The module that called it, or whose backward pass this is; in an update, the trained parameter."""
    inputs: tuple[str, ...]
    """Digests of tensors, and other arguments as text; the state of a random generator if it uses one."""
    outputs: tuple[str, ...]
    reads: tuple[int, ...] = ()
    """Numbers of the memory of each tensor; they mean nothing in another log."""
    writes: tuple[int, ...] = ()

    @property
    def call(self) -> tuple[str, Phase, str, tuple[str, ...]]:
        """Return the operator, its place and its inputs, without its results."""
        return self.name, self.phase, self.module, self.inputs


@dataclass(frozen=True)
class OperatorDifference:
    """The first place where the operators of two runs give different results."""

    kind: Kind
    """``output``: equal inputs, unequal output. ``operator``: other operators ran, and gave other results.
    ``input``: the same operator has unequal inputs, which no logged operator has made unequal."""
    place: int
    """The number of the operator in the first run, from 1."""
    first: Operator | None
    """None where the first run has no operator there."""
    second: Operator | None


@dataclass(frozen=True)
class Operations:
    """The operator that made two runs differ, or the reason why it cannot be known."""

    step: int | None = None
    found: OperatorDifference | None = None
    numbers: tuple[int, int] = (0, 0)
    """How many operators each run logged."""
    reason: str | None = None


def first_difference(first: Sequence[Operator], second: Sequence[Operator]) -> OperatorDifference | None:
    """Return the first operator with equal inputs and unequal output, or None if all results agree.

    Where the runs call different operators, align the logs by operators and inputs. A part that only one log
    has is the difference only if an operator outside of it reads one of its results and so differs too.
    """
    same = 0
    for one, other in zip(first, second, strict=False):
        if one.call != other.call:
            break
        if one.outputs != other.outputs:
            return OperatorDifference("output", same + 1, one, other)
        same += 1
    ours, theirs = first[same:], second[same:]
    matcher = difflib.SequenceMatcher(
        None, [each.call for each in ours], [each.call for each in theirs], autojunk=False
    )
    blocks = matcher.get_matching_blocks()
    shared = {block.a + place for block in blocks for place in range(block.size)}
    also = {block.b + place for block in blocks for place in range(block.size)}
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            for place, (one, other) in enumerate(zip(ours[start:end], theirs[begin:stop], strict=True)):
                if one.outputs != other.outputs:
                    return OperatorDifference("output", same + start + place + 1, one, other)
        elif _matters(ours, start, end, shared, second) or _matters(theirs, begin, stop, also, first):
            mine = ours[start] if start < end else None
            yours = theirs[begin] if begin < stop else None
            alike = mine and yours and mine.call[:3] == yours.call[:3]
            return OperatorDifference("input" if alike else "operator", same + start + 1, mine, yours)
    return None


def _matters(
    log: Sequence[Operator], start: int, end: int, shared: set[int], other: Sequence[Operator]
) -> bool:
    """Return whether results of operators `start` to `end` change later ones.

    Args:
        shared: the places of operators that the other log has with equal inputs.
        other: the whole log of the other run.
    """
    known = {digest for each in other for digest in each.outputs}
    changed = set[int]()
    for each in log[start:end]:
        if not known.issuperset(each.outputs):
            if each.phase == "update":
                return True
            changed.update(each.writes)
    for place in range(end, len(log)):
        each = log[place]
        if place in shared:
            changed.difference_update(each.writes)
        elif changed.intersection(each.reads):
            return True
    return False


@dataclass(frozen=True)
class _StepJob:
    """Fine-tune a trial up to a step, and write the log of that step's operators."""

    name: str
    trial: Trial
    seeds: dict[str, int]
    step: int

    @property
    def kind(self) -> tuple[str, bool]:
        return self.trial.model_name, False

    @property
    def log(self) -> Path:
        return self.trial.log

    @property
    def operators(self) -> Path:
        return self.trial.folder / "operators.json"

    def run(self, progress: Progress) -> None:
        """Run in this process; raises as `run_trial`."""
        from qlora_repeat.analysis.operator_log import StepLog

        with StepLog(self.step, progress) as log:
            run_trial(self.trial, ["finetune"], log.progress, seeds=self.seeds, until_step=self.step)
        write_text(self.operators, json.dumps([astuple(each) for each in log.operators]))

    def failed(self, error: str) -> None:
        pass

    def read(self) -> list[Operator]:
        rows = json.loads(self.operators.read_text(encoding="utf-8"))
        return [Operator(*row[:3], *map(tuple, row[3:])) for row in rows]

    def trace(self) -> list[Step]:
        return read_trace(self.trial.unfinished / self.trial.trace.name)


def find_operations(
    diff: TrialDiff,
    trials: Sequence[Trial],
    watch: Callable[[Sequence[Job], int], AbstractContextManager[Watcher]],
) -> Operations:
    """Run the first step that differs again under the settings of both sides, and compare the operators.

    Args:
        trials: the trials of the two sides; models and data come from their studies.
        watch: shows the progress of jobs, as `Observer.watch_jobs`.

    Raises:
        MissingError: a record has an invalid setting.
        KitError: as `run_trial`.
    """
    sides, divergence = (diff.first, diff.second), diff.divergence
    if divergence is None:
        return Operations(reason="no step differs")
    if divergence.kind in ("init", "data", "learning rate"):
        return Operations(reason="the trials differ before the operators of a step run")
    for side in sides:
        if (why := _unrecorded(side) or _elsewhere(side)) is not None:
            return Operations(reason=why)
    scratch = Path(tempfile.mkdtemp(prefix="qlora-repeat-operations-"))
    again = list[Trial]()
    try:
        for side, trial in zip(sides, trials, strict=True):
            recorded = recorded_trial(trial, side.records, side.folder, scratch / str(len(again)))
            study = replace(recorded.study, digest_every=1)
            again.append(replace(recorded, workspace=replace(recorded.workspace, study=study)))
            if lacking := other_sources(recorded, side.records) or missing_inputs(recorded, side.records):
                return Operations(reason=f"{side.name} cannot run again: {lacking[0]}")
        return _compare(sides, again, divergence, watch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compare(
    sides: tuple[Side, Side],
    again: Sequence[Trial],
    divergence: Divergence,
    watch: Callable[[Sequence[Job], int], AbstractContextManager[Watcher]],
) -> Operations:
    step = divergence.step
    while True:
        jobs = [
            _StepJob(side.name, trial, side.records["finetune"].outputs["seeds"], step)
            for side, trial in zip(sides, again, strict=True)
        ]
        with watch(jobs, 1) as watcher:
            if errors := run_jobs(jobs, 1, watcher):
                raise errors[0]
        traces = [job.trace() for job in jobs]
        for side, trace in zip(sides, traces, strict=True):
            if (unlike := first_divergence(side.steps, trace)) is not None:
                return Operations(
                    step, reason=f"{side.name} does not repeat here: its re-run differs at step {unlike.step}"
                )
        now = first_divergence(*traces)
        if now is None or now.step == step:
            logs = [job.read() for job in jobs]
            return Operations(step, first_difference(*logs), (len(logs[0]), len(logs[1])))
        step = now.step  # earlier: the records have no digest of every step


def _unrecorded(side: Side) -> str | None:
    return None if "finetune" in side.records else f"{side.name} has no record of its fine-tuning"


def _elsewhere(side: Side) -> str | None:
    """Return a sentence if a trial ran on a machine or with packages that this machine does not have."""
    settable = ("threads", "kernels.", "environment.")
    for key, there, here in fingerprint_differences(side.records["finetune"].fingerprint, fingerprint()):
        if re.fullmatch(MATTERS, key) and not key.startswith(settable):
            return f"{side.name} ran with {key} {there}, and here it is {here}"
    return None
