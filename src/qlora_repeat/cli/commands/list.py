"""`qlora-repeat list`."""

from pathlib import Path

import click


@click.command("list")
@click.argument("study_file", metavar="[STUDY]", required=False)
def command(study_file: str | None) -> None:
    """List the studies there are, or the trials of one by name.

    \b
    Example:
      qlora-repeat list pocket
    """
    from qlora_repeat.study.loading import known_studies, load_study
    from qlora_repeat.study.trial import all_trials

    if study_file is not None:
        for trial in all_trials(load_study(study_file), Path("runs")):
            click.echo(trial.name)
        return
    for name, path in known_studies().items():
        study = load_study(str(path))
        count = len(study.models) * len(study.optimizers) * study.trials
        click.echo(f"{name}: {study.title}, {count} trials")
