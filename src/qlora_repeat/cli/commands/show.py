"""`qlora-repeat show`."""

from collections.abc import Iterator

import click

from qlora_repeat.system.printable import say


@click.command("show")
@click.argument("study_file", metavar="[STUDY]", required=False)
def command(study_file: str | None) -> None:
    """Show a study and its trials; without STUDY, list the studies and where they are.

    \b
    Example:
      qlora-repeat show pocket
    """
    for line in _studies() if study_file is None else _study(study_file):
        say(line)


def _studies() -> Iterator[str]:
    from qlora_repeat.study.loading import known_studies, load_study, study_folders

    yield f"Studies in {', '.join(f'{folder}/' for folder in study_folders())}:"
    for name, path in known_studies().items():
        study = load_study(str(path))
        count = len(study.models) * len(study.optimizers) * study.trials
        yield f"{name}: {study.title}, {count} trials ({path})"


def _study(name: str) -> Iterator[str]:
    from qlora_repeat.study.loading import open_workspace

    workspace = open_workspace(name)
    study, trials = workspace.study, workspace.trials()
    yield f"{study.label}: {study.title}, {len(trials)} trials ({workspace.file})"
    yield f"randomness: {study.profile} (profiles: {', '.join(study.profiles)})"
    for model, asked in study.models.items():
        yield f"{model}: {asked.title}, base {asked.base}, data {asked.data}"
    yield ""
    yield from (trial.name for trial in trials)
