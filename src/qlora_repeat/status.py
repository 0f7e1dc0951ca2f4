"""How the trials of a study stand, for people."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from qlora_repeat.stages import base_state, failure_of, stage_states, state_of, trial_state
from qlora_repeat.study import Study
from qlora_repeat.trial import Trial, all_trials, base_tests


def status_table(study: Study, runs: Path, cache: Path) -> str:
    """A table: for each model a row for the tests of its base, and one for the trials of each arm.

    Quick: of what trials left, presence and sizes are looked at; `qlora-repeat check` reads the bytes.
    """
    rows: dict[str, list[str]] = {}
    for model in study.models:
        rows[f"{model}/base"] = [
            base_state(study, model, number, runs, cache).state for number in base_tests(study)
        ]
        for trial in all_trials(study, runs):
            if trial.model_name == model:
                rows.setdefault(f"{model}/{trial.optimizer}", []).append(
                    trial_state(trial, cache, rehash=False)
                )
    headers = ["", *map(str, range(1, 1 + max(map(len, rows.values()))))]
    return tabulate([[arm, *states] for arm, states in rows.items()], headers=headers)


def explanations(trials: Sequence[Trial], cache: Path, *, rehash: bool = True) -> list[str]:
    """A line for each trial that failed or is stale, and each damaged stage: why.

    `rehash` as in `stage_states`.
    """
    lines = []
    for trial in trials:
        states = stage_states(trial, cache, rehash=rehash)
        state, stages = state_of(trial, states), states.values()
        if state == "failed":
            more = f"; see {trial.log}" if trial.log.is_file() else ""
            lines.append(f"{trial.name} failed: {failure_of(trial)}{more}")
        elif state == "stale":
            changes = {change for stage in stages for change in stage.changed}
            lines.append(f"{trial.name} is stale, changed since: {', '.join(sorted(changes))}")
        elif state == "damaged":
            lines += [f"{trial.name} is damaged: {stage.damage}" for stage in stages if stage.damage]
    return lines


def base_damages(study: Study, runs: Path, cache: Path) -> list[str]:
    """A line for each test of a base whose record is damaged."""
    states = {
        f"{model}/base/{number}": base_state(study, model, number, runs, cache)
        for model in study.models
        for number in base_tests(study)
    }
    return [f"{name} is damaged: {state.damage}" for name, state in states.items() if state.damage]
