"""Read a laboratory's results from its archive or its results file."""

import json
from pathlib import Path

from qlora_repeat.analysis.interlab import Conditions, Laboratory, laboratory
from qlora_repeat.archive.unpack import Unpacked, opened
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS
from qlora_repeat.records.trial_state import stage_record
from qlora_repeat.results.arms import ArmKey
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import Stage


def read_laboratory(name: str, path: Path) -> Laboratory:
    """Read a laboratory's results.

    Raises:
        MissingError: there is no such file, or it is not an archive of `pack`.
        UsageError: a line is not a row of results, or two rows have the same trial; names it.
    """
    if path.suffix != ".zip":
        return laboratory(name, read_results(path))
    with opened(path) as unpacked:
        return laboratory(name, unpacked.results(), _recorded_conditions(unpacked))


def _recorded_conditions(unpacked: Unpacked) -> dict[ArmKey, Conditions]:
    """Return the recorded settings, base model and data of each arm."""
    found: dict[ArmKey, Conditions] = {}
    stages: tuple[Stage, ...] = ("finetune", "evaluate")
    for trial in open_workspace(unpacked.study_file, runs=unpacked.runs).trials():
        own = found.setdefault((trial.model_name, trial.optimizer), {})
        for stage in stages:
            record, _ = stage_record(trial.record(stage), trial.name, stage)
            inputs = record.inputs if record is not None else {"settings": {}}
            recorded = {name: inputs.get(name) for name in ("base", "data")} | inputs["settings"]
            for key, value in recorded.items():
                if key not in FIRST_TRIAL_SETTINGS and value is not None:
                    own.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return found
