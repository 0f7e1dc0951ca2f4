"""Which stages of a trial, and which tests of a base, are done, stale, damaged or missing, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from qlora_repeat.assets.pins import rows_of
from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import Record, damages, read_record
from qlora_repeat.records.record_schema import misfit
from qlora_repeat.records.stage_inputs import base_inputs, changed_inputs, shared_inputs, stage_inputs
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.trial import BaseTest, Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.hashing import known_digest
from qlora_repeat.system.typed_json import read_as

_FAILURE = TypeAdapter(dict[str, str])
State = Literal["done", "running", "stale", "damaged", "failed", "missing"]


@dataclass(frozen=True)
class StageState:
    """The state of a stage, or of a test of a base."""

    state: State
    record: Record | None = None
    changed: list[str] = field(default_factory=list)
    """The inputs that changed since the record was written."""
    damage: str | None = None
    """If damaged: one line with the damaged file and what to do."""


@dataclass(frozen=True)
class TrialState:
    """The state of a trial and of its stages."""

    trial: Trial
    stages: dict[Stage, StageState]
    state: State
    """Of the trial as a whole."""


def trial_state(trial: Trial, *, rehash: bool = True) -> TrialState:
    """Return the state of a trial and of its stages; `rehash` as in `stage_states`."""
    stages = stage_states(trial, rehash=rehash)
    return TrialState(trial, stages, _overall(trial, stages))


def measured_state(found: TrialState) -> State:
    """Return the state of a trial without its benchmarks, whose absence does not devalue other results."""
    return _overall(found.trial, {stage: found.stages[stage] for stage in found.trial.measured_stages})


def _overall(trial: Trial, stages: Mapping[Stage, StageState]) -> State:
    states = [each.state for each in stages.values()]
    state: State
    if live_owner(trial.lock) is not None:
        state = "running"
    elif all(each == "done" for each in states):
        state = "done"
    elif "damaged" in states:
        state = "damaged"
    elif trial.failure.is_file():
        state = "failed"
    else:
        state = "stale" if "stale" in states else "missing"
    return state


def stage_states(trial: Trial, *, rehash: bool = True) -> dict[Stage, StageState]:
    """Return the state of each stage of a trial.

    A stage is damaged if its record cannot be read, or a file that it left is not as recorded (merged weights
    may be gone: they can be rebuilt). A stage is stale if its inputs changed, or the stage before it is not
    done.

    Without `rehash`, only records are read: this is fast, but misses damage that keeps a file's size. Do not
    put a number into a table on that basis.
    """
    states: dict[Stage, StageState] = {}
    upstream: dict[str, Any] = {"sources": source_digests(trial)}
    shared = shared_inputs(trial.workspace, trial.model_name)
    before: Stage | None = None  # the stage that the next one needs
    for stage in trial.stages:
        record, damage = stage_record(trial.record(stage), trial.name, stage)
        if record is None:
            damage = advised(trial.workspace, damage)
            states[stage] = StageState("damaged" if damage else "missing", damage=damage)
        else:
            changed = changed_inputs(record.inputs, stage_inputs(trial, stage, upstream, shared))
            if stage == "average" and any(_is_open(each, rehash) for each in trial.sources):
                changed.append("a trial that it averages")
            if before is not None and states[before].state != "done":
                changed.append(f"the {before} stage")
            damage = advised(trial.workspace, _damage(trial, stage, record, rehash))
            state: State = "damaged" if damage else "stale" if changed else "done"
            states[stage] = StageState(state, record, changed, damage)
            upstream = upstream | record.outputs
        # All later stages need the merged model alone.
        before = stage if stage in (*trial.measured_stages[:2],) else before
    return states


def source_digests(trial: Trial) -> list[str | None]:
    """Return the digest of each adapter that a trial averages, as recorded; None where there is none."""
    key = "last_steps_digest" if trial.averages_steps else "adapter_digest"
    records = [stage_record(each.record("finetune"), each.name, "finetune")[0] for each in trial.sources]
    return [record.outputs.get(key) if record is not None else None for record in records]


def _is_open(source: Trial, rehash: bool) -> bool:
    return stage_states(source, rehash=rehash)["finetune"].state != "done"


def _damage(trial: Trial, stage: Stage, record: Record, rehash: bool) -> str | None:
    """Return one line on the first damaged file of a stage, and what to do; None if all are whole."""
    if stage == "merge" and not trial.merged.exists():
        return None
    found = damages(trial.folder, record.files, rehash=rehash)
    return next(filter(None, found.values()), None)


def advised(workspace: Workspace, damage: str | None, remedy: str | None = None) -> str | None:
    """Return a line on damage with what to do: `remedy`, or by default to run the stage again.

    What came in an archive is evidence, so nothing is run there.
    """
    if damage is None:
        return None
    if workspace.has_evidence:
        return f"{damage}; it came in an archive: tell whoever packed it, and run nothing in its folder"
    again = f"`{workspace.command('run')}` runs its stage again"
    return f"{damage}; {remedy or again}"


def last_checkpoint(trial: Trial) -> int | None:
    """Return the step of the last checkpoint of an unfinished fine-tuning, by the name of its folder."""
    names = (path.name.removeprefix("step-") for path in trial.unfinished.glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def stopped_at(state: TrialState) -> str | None:
    """Say where a trial was stopped and which stages remain; None if it has not begun or is done."""
    trial = state.trial
    left = [stage for stage in trial.stages if state.stages[stage].state != "done"]
    step = last_checkpoint(trial) if "finetune" in left else None
    if state.state != "missing" or (step is None and len(left) == len(trial.stages)):
        return None
    after = f"stopped at step {step}" if step is not None else "stopped"
    data = replace(trial.data, rows=rows_of(trial.workspace, trial.model.data))
    if step is not None and data.rows is not None:
        after += f" of {trial.model.training.total_steps(train_examples(data))}"
    return f"{after}; {', '.join(left)} {'remains' if len(left) == 1 else 'remain'}"


def stage_record(
    path: Path, name: str, stage: str, *, base: bool = False
) -> tuple[Record | None, str | None]:
    """Return a stage's record and None; or None, and what is wrong with the record if there is one.

    `name` is the trial's name, or with `base` the name of the test of a base.
    """
    try:
        record = read_record(path)
        if record is not None and (record.trial, record.stage) != (name, stage):
            whose = f"the {record.stage} stage of {record.trial}"
            raise MissingError(f"{path}: expected this stage's record, found {whose}")
        return checked(record, path, base=base), None
    except MissingError as error:
        return None, str(error)


def valid_record(path: Path, *, complete: bool = True) -> Record | None:
    """Return the record of a stage of any trial, or None if there is none.

    Raises:
        MissingError: the file is not a record, was changed, or has a value of another type than a record of
            its stage has; if it must be `complete`, also if it lacks a key.
    """
    return checked(read_record(path), path, complete=complete)


def checked(record: Record | None, path: Path, *, base: bool = False, complete: bool = True) -> Record | None:
    """Return a record that has what a record of its stage has.

    Raises:
        MissingError: it lacks a key, or has an invalid value.
    """
    if record is not None and (wrong := misfit(record, base=base, complete=complete)) is not None:
        raise MissingError(f"{path}: not a valid record ({wrong})")
    return record


def base_test_record(test: BaseTest) -> tuple[Record | None, str | None]:
    """Return the record of a test of a base, as `stage_record`."""
    return stage_record(test.record, test.name, "evaluate", base=True)


def base_state(test: BaseTest) -> StageState:
    """Return the state of a test of a base."""
    record, damage = base_test_record(test)
    if record is None:
        damage = advised(test.workspace, damage)
        return StageState("damaged" if damage else "missing", damage=damage)
    changed = changed_inputs(record.inputs, base_inputs(test))
    return StageState("stale" if changed else "done", record, changed)


def explanations(trials: Iterable[TrialState]) -> list[str]:
    """Return a line for each failed, stale or stopped trial, and for each damaged stage, that says why."""
    lines = []
    for each in trials:
        trial, stages = each.trial, each.stages.values()
        if each.state == "failed":
            more = f"; see {trial.log}" if trial.log.is_file() else ""
            lines.append(f"{trial.name} failed: {failure_of(trial)}{more}")
        elif each.state == "stale":
            changes = {change for stage in stages for change in stage.changed}
            lines.append(f"{trial.name} is stale, changed since: {', '.join(sorted(changes))}")
        elif (stopped := stopped_at(each)) is not None:
            command = trial.workspace.command("trial", trial=trial.name)
            resumes = "" if trial.workspace.has_evidence else f"; `{command}` resumes it"
            lines.append(f"{trial.name} {stopped}{resumes}")
        elif each.state == "damaged":
            lines += [f"{trial.name} is damaged: {stage.damage}" for stage in stages if stage.damage]
    return lines


def base_damages(workspace: Workspace, tests: Sequence[BaseTest] | None = None) -> list[str]:
    """Return a line for each test of a base (default: of all of the study's) whose record is damaged."""
    states = {test.name: base_state(test) for test in (workspace.base_tests() if tests is None else tests)}
    return [f"{name} is damaged: {state.damage}" for name, state in states.items() if state.damage]


def failure_of(trial: Trial) -> str | None:
    """Return why a trial failed last, or None."""
    try:
        return read_as(_FAILURE, trial.failure, "").get("error")
    except MissingError:
        return None


def has_ended(trial: Trial) -> bool:
    """Return whether the leftover checkpoint belongs to the finished run: both have the same trace."""
    traces = (trial.trace, trial.unfinished / trial.trace.name)
    return all(path.is_file() for path in (trial.record("finetune"), *traces)) and (
        known_digest(traces[0]) == known_digest(traces[1])
    )
