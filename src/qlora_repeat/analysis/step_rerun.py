"""Run the first step that differs between two fine-tunings again, and compare its operators.

Each side runs in a process and a scratch folder of its own, with its recorded settings and seeds, because
kernels and threads belong to a process. Both sides begin the step with equal bits.
"""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from qlora_repeat.analysis.operations import Operations, Operator, first_difference
from qlora_repeat.analysis.trial_diff import Side, TrialDiff, first_divergence
from qlora_repeat.analysis.verify.causes import MATTERS
from qlora_repeat.analysis.verify.recorded_settings import missing_inputs, other_sources, recorded_trial
from qlora_repeat.execution.process_pool import Job, Watcher, run_jobs
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.study.trial import Progress, Trial
from qlora_repeat.system.files import TEMPORARY, delete_folder, discard, write_text
from qlora_repeat.system.fingerprint import fingerprint, fingerprint_differences

Watch = Callable[[Sequence[Job], int], AbstractContextManager[Watcher]]


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
    diff: TrialDiff, trials: Sequence[Trial], watch: Watch, *, must_repeat: bool = True
) -> Operations:
    """Run the first step that differs again under the settings of both sides, and compare the operators.

    Args:
        trials: the trials of the two sides; models and data come from their studies.
        watch: shows the progress of jobs, as `Observer.watch_jobs`.
        must_repeat: whether each re-run must have the trace of its trial; otherwise, the first operators that
            differ between the re-runs are found, which may be others than between the trials.

    Raises:
        MissingError: a record has an invalid setting.
        StageError, StoppedError: a re-run failed or was stopped; its folder remains, with its log.
    """
    sides, divergence = (diff.first, diff.second), diff.divergence
    if divergence is None:
        return Operations(reason="no step differs")
    if divergence.kind in _BEFORE:
        return Operations(reason=_EARLIER)
    for side in sides:
        if (why := _unrecorded(side) or _elsewhere(side)) is not None:
            return Operations(reason=why)
    scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    found = None
    try:
        found = _run_again(sides, trials, scratch, divergence.step, watch, must_repeat)
    finally:
        if found is not None:
            discard(scratch)
    return found


def _run_again(
    sides: tuple[Side, Side],
    trials: Sequence[Trial],
    scratch: Path,
    step: int,
    watch: Watch,
    must_repeat: bool,
) -> Operations:
    jobs = []
    for place, (side, trial) in enumerate(zip(sides, trials, strict=True)):
        again = recorded_trial(trial, side.records, side.folder, scratch / str(place))
        if lacking := other_sources(again, side.records) or missing_inputs(again, side.records):
            return Operations(reason=f"{side.name} cannot run again: {lacking[0]}")
        # On whatever it ran on: `_elsewhere` has compared this machine with the record.
        study = replace(again.study, digest_every=1, device="auto")
        again = replace(again, workspace=replace(again.workspace, study=study))
        name = f"re-run of {side.name} ({'second' if place else 'first'})"
        jobs.append(_StepJob(name, again, side.records["finetune"].outputs["seeds"], step))
    while True:
        with watch(jobs, 1) as watcher:
            if errors := run_jobs(jobs, 1, watcher):
                raise errors[0]
        traces = [job.trace() for job in jobs]
        for side, trace in zip(sides, traces, strict=True):
            if must_repeat and (unlike := first_divergence(side.steps, trace)) is not None:
                why = f"{side.name} does not repeat here: its re-run differs from step {unlike.step} on"
                return Operations(step, reason=why)
        now = first_divergence(*traces)
        if now is not None and now.kind in _BEFORE:
            return Operations(reason=_EARLIER)
        if now is None or now.step == step:
            first, second = (job.read() for job in jobs)
            return Operations(step, first_difference(first, second), (len(first), len(second)))
        step = now.step  # earlier, because the records have no digest of every step
        for job in jobs:
            delete_folder(job.trial.folder)  # its checkpoint is of a later step
        jobs = [replace(job, step=step) for job in jobs]


_BEFORE = ("init", "data", "learning rate")
_EARLIER = "the trials differ before any operator of a step runs"


def _unrecorded(side: Side) -> str | None:
    return None if "finetune" in side.records else f"{side.name} has no record of its fine-tuning"


def _elsewhere(side: Side) -> str | None:
    """Return a sentence if a trial ran on a machine or with packages that this machine does not have."""
    settable = ("threads", "kernels.", "environment.")
    for key, there, here in fingerprint_differences(side.records["finetune"].fingerprint, fingerprint()):
        if re.fullmatch(MATTERS, key) and not key.startswith(settable):
            return f"{side.name} ran with {key} {there}, and here it is {here}"
    return None
