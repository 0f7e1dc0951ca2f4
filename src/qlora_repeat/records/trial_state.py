"""Whether the stages of a trial, and the tests of a base, are done, stale, damaged or missing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import Record, damaged_file, read_record
from qlora_repeat.records.record_schema import misfit
from qlora_repeat.records.stage_inputs import base_inputs, changed_inputs, shared_inputs, stage_inputs
from qlora_repeat.study.trial import STAGES, BaseTest, Stage, Trial
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.hashing import known_digest

State = Literal["done", "running", "stale", "damaged", "failed", "missing"]


@dataclass(frozen=True)
class StageState:
    """How a stage of a trial stands."""

    state: State
    record: Record | None = None
    changed: list[str] = field(default_factory=list)
    """The inputs that are no longer what they were."""
    damage: str | None = None
    """Damaged: the file that is not as it was recorded, and what to do, in a line."""


def stage_states(trial: Trial, *, rehash: bool = True) -> dict[Stage, StageState]:
    """How each stage stands.

    One is damaged if its record cannot be read, or a file that it left is not as it was recorded (merged
    weights may be gone: they can be built again). One is stale if its inputs changed, or the stage before is
    not done.

    Without `rehash` no file but the records is read: quick, and blind to damage that leaves sizes as they
    are. No number may then go into a table.
    """
    states: dict[Stage, StageState] = {}
    upstream: dict[str, Any] = {}
    shared = shared_inputs(trial.workspace, trial.model_name)
    before: Stage | None = None  # the stage whose outcome the next one needs
    for stage in STAGES:
        record, damage = stage_record(trial.record(stage), trial.name, stage)
        if record is None:
            states[stage] = StageState("damaged" if damage else "missing", damage=damage)
        else:
            changed = changed_inputs(record.inputs, stage_inputs(trial, stage, upstream, shared))
            if before is not None and states[before].state != "done":
                changed.append(f"the {before} stage")
            damage = _damage(trial, stage, record, rehash)
            state: State = "damaged" if damage else "stale" if changed else "done"
            states[stage] = StageState(state, record, changed, damage)
            upstream = upstream | record.outputs
        # Timing does not depend on the evaluation: both follow from the merged model.
        before = before if stage == "evaluate" else stage
    return states


def _damage(trial: Trial, stage: Stage, record: Record, rehash: bool) -> str | None:
    """The first damaged file of those that a stage left, and what to do."""
    if stage == "merge" and not trial.merged.exists():
        return None
    for name, kept in record.files.items():
        if (damage := damaged_file(trial.folder / name, kept, rehash=rehash)) is not None:
            return f"{damage}; `qlora-repeat run` does its stage again"
    return None


def base_test_record(test: BaseTest) -> tuple[Record | None, str | None]:
    """The record of a test of a base; or None, and what is wrong with it where there is one."""
    return stage_record(test.record, test.name, "evaluate", base=True)


def stage_record(
    path: Path, name: str, stage: str, *, base: bool = False
) -> tuple[Record | None, str | None]:
    """The record of a stage of the trial of that name, or with `base` of the test of a base of that name.

    None where there is none that counts, and what is wrong with it where there is one.
    """
    try:
        record = read_record(path)
    except MissingError as error:
        return None, str(error)
    if record is not None and (record.trial, record.stage) != (name, stage):
        whose = f"the {record.stage} stage of {record.trial}"
        return None, f"{path}: not a record of this stage, but {whose}; `qlora-repeat run` does it again"
    if record is not None and (wrong := misfit(record, base=base)) is not None:
        return None, f"{path}: not as its stage writes it ({wrong}); `qlora-repeat run` does its stage again"
    return record, None


def trial_state(trial: Trial, *, rehash: bool = True) -> State:
    """How a trial stands as a whole; `rehash` as in `stage_states`."""
    return state_of(trial, stage_states(trial, rehash=rehash))


def state_of(trial: Trial, stages: dict[Stage, StageState]) -> State:
    """How a trial stands as a whole, when its stages stand so."""
    if live_owner(trial.lock) is not None:
        return "running"
    states = [state.state for state in stages.values()]
    if all(state == "done" for state in states):
        return "done"
    if "damaged" in states:
        return "damaged"
    if trial.failure.is_file():
        return "failed"
    return "stale" if "stale" in states else "missing"


def base_state(test: BaseTest) -> StageState:
    """How a test of a model's base stands."""
    record, damage = base_test_record(test)
    if record is None:
        return StageState("damaged" if damage else "missing", damage=damage)
    changed = changed_inputs(record.inputs, base_inputs(test))
    return StageState("stale" if changed else "done", record, changed)


def failure_of(trial: Trial) -> str | None:
    """Why a trial failed last, or None."""
    try:
        return str(json.loads(trial.failure.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_ended(trial: Trial) -> bool:
    """Whether the leftover checkpoint belongs to the finished fine-tuning: it has the whole of its trace."""
    traces = (trial.trace, trial.unfinished / trial.trace.name)
    return all(path.is_file() for path in (trial.record("finetune"), *traces)) and (
        known_digest(traces[0]) == known_digest(traces[1])
    )
