"""How the trials of a study stand, for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from tabulate import tabulate

from qlora_repeat.records.trial_state import StageState, State, base_state, failure_of, stage_states, state_of
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.memory import gc_paused

BASE = "base"
"""What stands where a trial has its optimizer, in the names of tests of a base."""


@dataclass(frozen=True)
class Standing:
    """How a trial stands."""

    trial: Trial
    stages: dict[Stage, StageState]
    state: State
    """Of the trial as a whole."""


@gc_paused()  # records have no cycles
def standings(trials: Sequence[Trial], *, rehash: bool = True) -> list[Standing]:
    """How trials stand; `rehash` as in `stage_states`."""
    found = [(trial, stage_states(trial, rehash=rehash)) for trial in trials]
    return [Standing(trial, stages, state_of(trial, stages)) for trial, stages in found]


def study_states(workspace: Workspace, trials: Sequence[Standing]) -> dict[str, list[State]]:
    """For each model how the tests of its base stand, by its name, and the trials of each arm."""
    arms: dict[str, list[State]] = {}
    for each in trials:
        arms.setdefault(f"{each.trial.model_name}/{each.trial.optimizer}", []).append(each.state)
    states: dict[str, list[State]] = {}
    for model in workspace.study.models:
        tests = [base_state(test).state for test in workspace.base_tests(model)]
        names = [f"{model}/{optimizer}" for optimizer in workspace.study.optimizers]
        states |= {f"{model}/{BASE}": tests, **{name: arms[name] for name in names}}
    return states


def status_table(states: dict[str, list[State]], width: int | None = None) -> str:
    """A row for each arm and each model's base; in parts, one below the other, if `width` is too narrow."""
    most = max(map(len, states.values()))
    each = most
    if width is not None:
        room = width - max(map(len, states))
        each = max(room // (2 + max(len(state) for row in states.values() for state in row)), 1)
    parts = []
    for first in range(0, most, each):
        rows = [[arm, *row[first : first + each]] for arm, row in states.items() if len(row) > first]
        headers = ["", *map(str, range(first + 1, min(first + each, most) + 1))]
        parts.append(tabulate(rows, headers=headers, disable_numparse=True))
    return "\n\n".join(parts)


def summary(states: dict[str, list[State]]) -> str:
    """How many trials stand how, and how many tests of bases, in a line."""
    kinds = {"trials": list[State](), "tests of bases": list[State]()}
    for arm, row in states.items():
        kinds["tests of bases" if arm.endswith(f"/{BASE}") else "trials"] += row
    return "; ".join(f"{len(row)} {what}: {_counted(row)}" for what, row in kinds.items())


def _counted(states: Sequence[State]) -> str:
    return ", ".join(f"{count} {state}" for state in get_args(State) if (count := states.count(state)))


def explanations(trials: Sequence[Standing]) -> list[str]:
    """A line for each trial that failed or is stale, and each damaged stage: why."""
    lines = []
    for each in trials:
        trial, stages = each.trial, each.stages.values()
        if each.state == "failed":
            more = f"; see {trial.log}" if trial.log.is_file() else ""
            lines.append(f"{trial.name} failed: {failure_of(trial)}{more}")
        elif each.state == "stale":
            changes = {change for stage in stages for change in stage.changed}
            lines.append(f"{trial.name} is stale, changed since: {', '.join(sorted(changes))}")
        elif each.state == "damaged":
            lines += [f"{trial.name} is damaged: {stage.damage}" for stage in stages if stage.damage]
    return lines


def base_damages(workspace: Workspace) -> list[str]:
    """A line for each test of a base whose record is damaged."""
    states = {test.name: base_state(test) for test in workspace.base_tests()}
    return [f"{name} is damaged: {state.damage}" for name, state in states.items() if state.damage]
