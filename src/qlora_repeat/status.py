"""How the trials of a study stand, for people."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from qlora_repeat.stages import base_state, failure_of, stage_states, trial_state
from qlora_repeat.study import Study
from qlora_repeat.trial import Trial, all_trials, base_tests


def status_table(study: Study, runs: Path, cache: Path) -> str:
    """A table: for each model a row for the tests of its base, and one for the trials of each arm."""
    rows: dict[str, list[str]] = {}
    for model in study.models:
        rows[f"{model}/base"] = [
            base_state(study, model, number, runs, cache).state for number in base_tests(study)
        ]
        for trial in all_trials(study, runs):
            if trial.model_name == model:
                rows.setdefault(f"{model}/{trial.optimizer}", []).append(trial_state(trial, cache))
    headers = ["", *map(str, range(1, 1 + max(map(len, rows.values()))))]
    return tabulate([[arm, *states] for arm, states in rows.items()], headers=headers)


def explanations(trials: Sequence[Trial], cache: Path) -> list[str]:
    """A line for each trial that failed or is stale: why."""
    lines = []
    for trial in trials:
        state = trial_state(trial, cache)
        if state == "failed":
            more = f"; see {trial.log}" if trial.log.is_file() else ""
            lines.append(f"{trial.name} failed: {failure_of(trial)}{more}")
        elif state == "stale":
            changes = {change for each in stage_states(trial, cache).values() for change in each.changed}
            lines.append(f"{trial.name} is stale, changed since: {', '.join(sorted(changes))}")
    return lines
