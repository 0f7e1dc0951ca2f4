"""Trials that tests really run: their progress and their outputs."""

from typing import Any

from qlora_repeat.records.record import read_record
from qlora_repeat.study.trial import Stage, Trial


def quiet(stage: str, done: int, total: int, loss: float | None) -> None:
    """Ignore progress."""


def outputs(trial: Trial, stage: Stage = "finetune") -> dict[str, Any]:
    """Return the outputs in the record of a stage."""
    record = read_record(trial.record(stage))
    assert record is not None
    return record.outputs
