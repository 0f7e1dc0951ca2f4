"""`qlora-repeat show`."""

from collections.abc import Iterator

import click

from qlora_repeat.system.printable import say


@click.command("show")
@click.argument("study_file", metavar="[STUDY]", required=False)
def command(study_file: str | None) -> None:
    """Show a study and its trials; without STUDY, list the studies and where they are.

    A study is shown as a complete study file, with what its file leaves out. The comment of each value says
    where it comes from: a line of the file, a study that it extends, the lock file, or a default.

    \b
    Example:
      qlora-repeat show pocket
    """
    for line in _studies() if study_file is None else _study(study_file):
        say(line)


def _studies() -> Iterator[str]:
    from qlora_repeat.study.finding import known_studies, study_folders
    from qlora_repeat.study.loading import load_study

    yield f"Studies in {', '.join(f'{folder}/' for folder in study_folders())}:"
    for name, path in known_studies().items():
        study = load_study(str(path))
        yield f"{name}: {study.title}, {study.trial_count} trials ({path})"


def _study(name: str) -> Iterator[str]:
    from qlora_repeat.assets.pins import locked_values
    from qlora_repeat.study.complete_file import complete_text
    from qlora_repeat.study.loading import open_workspace, read_study

    workspace = open_workspace(name)
    study, trials = workspace.study, workspace.trials()
    yield f"# {study.label}: {study.title}, {len(trials)} trials ({workspace.file})"
    for model in study.models:
        for optimizer, count in study.arms.items():
            yield f"# {model}/{optimizer}/1" + (f" to {count}" if count > 1 else "")
    yield from complete_text(*read_study(name), locked_values(workspace), workspace.lock.name).splitlines()
