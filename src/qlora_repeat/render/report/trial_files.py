"""What a report shows besides collected results: traces and fingerprints of trials, if there are any."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from qlora_repeat.analysis.trial_diff import Divergence, first_divergence
from qlora_repeat.assets.inspection import INSPECTION, Inspection
from qlora_repeat.errors import KitError
from qlora_repeat.records.self_test import self_test_of
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.results.arms import Arm
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.workspace import Workspace


@dataclass(frozen=True)
class TrialFiles:
    """Traces and fingerprints by the names of trials; empty if there is only a results file."""

    traces: dict[str, list[Step]] = field(default_factory=dict)
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    self_tests: dict[str, str] = field(default_factory=dict)
    """The self-test of the machine of a trial, in words, if there is one."""
    rows: dict[str, Inspection] = field(default_factory=dict)
    """What is in the rows of a model, by its name."""

    def divergence(self, arm: Arm, trial: TrialResult) -> Divergence | None:
        """Return where the trial first differs from the first of its arm that has a trace, if it does."""
        first = next((self.traces[each.name] for each in arm.done if each.name in self.traces), None)
        own = self.traces.get(trial.name) if trial.measured else None
        return None if first is None or own is None else first_divergence(first, own)


def read_trial_files(workspace: Workspace, arms: Sequence[Arm]) -> TrialFiles:
    """Read the files of the trials whose values count, if they belong to the collected fine-tuning.

    A record or a trace that cannot be read is left out; the command `check` names it.
    """
    counted = {row.name: row for arm in arms for row in arm.done}
    found = TrialFiles()
    for trial in workspace.trials():
        if (row := counted.get(trial.name)) is None:
            continue
        try:
            record = valid_record(trial.record("finetune"))
            if record is not None and record.outputs.get("adapter_digest") == row.adapter_digest:
                found.fingerprints[trial.name] = record.fingerprint
                with contextlib.suppress(ValidationError):  # older records have none
                    rows = INSPECTION.validate_python(record.outputs.get("rows"))
                    found.rows.setdefault(trial.model_name, rows)
                if (tested := self_test_of(workspace.runs, record.fingerprint)) is not None:
                    found.self_tests[trial.name] = tested.sentence
                found.traces[trial.name] = read_trace(trial.trace)
        except KitError:
            continue
    return found
