"""What a report shows besides collected results: traces and fingerprints, where they are at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_repeat.analysis.trial_diff import Kind, first_divergence
from qlora_repeat.errors import KitError
from qlora_repeat.records.record import read_record
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial, all_trials

Key = tuple[str, str, int]
"""A trial: model, optimizer, number."""


@dataclass(frozen=True)
class Parting:
    """Where the trace of a trial leaves that of the first trial of its arm."""

    step: int
    """0 is the adapter before any update."""
    kind: Kind


@dataclass(frozen=True)
class Kept:
    """What the records beside the results tell; empty where there are results alone."""

    traces: dict[Key, list[Step]] = field(default_factory=dict)
    fingerprints: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def parting(self, arm: Sequence[TrialResult], trial: TrialResult) -> Parting | None:
        """Where the trial leaves the first of its arm that has a trace; None where it does not."""
        traced = [self.traces[key_of(each)] for each in arm if key_of(each) in self.traces]
        own = self.traces.get(key_of(trial))
        found = first_divergence(traced[0], own) if traced and own is not None else None
        return None if found is None else Parting(found.step, found.kind)


def key_of(row: TrialResult) -> Key:
    """What tells a trial from others of its study."""
    return row.model, row.optimizer, row.trial


def read_kept(study: Study, runs: Path, results: Sequence[TrialResult]) -> Kept:
    """What is on disk of the trials whose values count, and is of the fine-tuning that was collected.

    A record or a trace that cannot be read is left out: `check` is what names it.
    """
    counted = {key_of(row): row for row in results if row.measured}
    kept = Kept()
    for trial in all_trials(study, runs):
        key = (trial.model_name, trial.optimizer, trial.number)
        if (row := counted.get(key)) is not None:
            _add(kept, key, trial, row)
    return kept


def _add(kept: Kept, key: Key, trial: Trial, row: TrialResult) -> None:
    try:
        record = read_record(trial.record("finetune"))
        if record is None or record.outputs.get("adapter_digest") != row.adapter_digest:
            return  # of another fine-tuning than what was collected
        kept.fingerprints[key] = record.fingerprint
        kept.traces[key] = read_trace(trial.trace)
    except KitError:
        return
