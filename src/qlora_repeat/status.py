"""How the trials of a study stand, for people."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from qlora_repeat.stages import failure_of, stage_states, trial_state
from qlora_repeat.study import Study
from qlora_repeat.trial import Trial, all_trials


def status_table(study: Study, runs: Path, cache: Path) -> str:
    """A table: a row for each arm, a column for each trial."""
    rows: dict[str, list[str]] = {}
    for trial in all_trials(study, runs):
        rows.setdefault(f"{trial.model_name}/{trial.optimizer}", []).append(trial_state(trial, cache))
    headers = ["arm", *map(str, range(1, study.trials + 1))]
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
