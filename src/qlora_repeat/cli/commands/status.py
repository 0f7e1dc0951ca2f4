"""`qlora-repeat status`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, output, runs_option, study_argument


@click.command("status")
@study_argument
@runs_option
@cache_option
def command(study_file: str, runs: Path, cache: Path) -> None:
    """Show each arm's trials: done, running, stale, damaged, failed or missing; and why.

    Quick: files are looked at by size; `qlora-repeat check` reads them.

    \b
    Example:
      qlora-repeat status pocket
    """
    from qlora_repeat.cli.colors import STATES, with_colored
    from qlora_repeat.records.status import (
        base_damages,
        explanations,
        standings,
        status_table,
        study_states,
        summary,
    )
    from qlora_repeat.study.loading import load_study
    from qlora_repeat.study.trial import all_trials

    study, out = load_study(study_file), output()
    trials = standings(all_trials(study, runs), cache, rehash=False)
    states = study_states(study, runs, cache, trials)
    table = status_table(states, out.width if out.is_terminal else None)
    out.print(with_colored(f"{table}\n\n{summary(states)}", STATES))
    for line in base_damages(study, runs, cache) + explanations(trials):
        out.print(with_colored(line, STATES, most=1))
