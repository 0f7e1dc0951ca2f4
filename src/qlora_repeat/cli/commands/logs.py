"""`qlora-repeat logs`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import runs_option, study_option


@click.command("logs")
@click.argument("trial")
@click.option(
    "--lines", type=click.IntRange(1), default=40, show_default=True, help="Of the end of each file."
)
@study_option
@runs_option
def command(trial: str, lines: int, study_file: str, runs: Path) -> None:
    """Show how a trial stands and the end of what it printed, from its files alone.

    Shown are its state, its last step, its own log, and what the job on a cluster printed that ran it last.

    \b
    Example:
      qlora-repeat logs smollm2-135m/adamw-8bit/3
    """
    from qlora_repeat.slurm.logs import trial_logs
    from qlora_repeat.study.loading import load_study
    from qlora_repeat.study.trial import find_trial

    study = load_study(study_file)
    for line in trial_logs(find_trial(study, trial, runs), lines):
        click.echo(line)
