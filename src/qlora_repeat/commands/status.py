"""`qlora-repeat status`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import cache_option, runs_option, study_argument


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
    from qlora_repeat.status import base_damages, explanations, status_table
    from qlora_repeat.study import load_study
    from qlora_repeat.trial import all_trials

    study = load_study(study_file)
    click.echo(status_table(study, runs, cache))
    for line in base_damages(study, runs, cache) + explanations(all_trials(study, runs), cache, rehash=False):
        click.echo(line)
