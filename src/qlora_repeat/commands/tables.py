"""`qlora-repeat tables`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import runs_option, study_argument
from qlora_repeat.errors import UsageError
from qlora_repeat.published import read_published
from qlora_repeat.results import TrialResult, read_results
from qlora_repeat.study import PUBLISHED, load_study
from qlora_repeat.trial import results_path


@click.command("tables")
@study_argument
@runs_option
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Collected results.  [default: of the study]",
)
@click.option(
    "--compare",
    metavar="NAME",
    help="Also compare with: `published` (the paper's numbers), another study, or a results file.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: paper/build/STUDY]"
)
def command(study_file: str, runs: Path, results: Path | None, compare: str | None, out: Path | None) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    STUDY may be `published`: the numbers that the paper prints.

    \b
    Example:
      qlora-repeat tables pocket
      qlora-repeat tables pocket --compare published
    """
    from qlora_repeat.tables import render_tables

    if results is None:
        name, rows = _collected(study_file, runs)
    elif study_file == PUBLISHED:
        raise UsageError(f"{PUBLISHED} has its own numbers; leave out --results, or name a study")
    else:
        name, rows = Path(study_file).stem, read_results(results)
    if compare is None:
        others = None
    elif compare.endswith(".jsonl"):
        others = read_results(Path(compare))
    else:
        _, others = _collected(compare, runs)
    folder = out or Path("paper/build") / name
    paths = render_tables(rows, folder, Path("paper/templates"), others)
    click.echo(f"{folder}: {len(paths)} files; tables.md has all tables to read")


def _collected(study_file: str, runs: Path) -> tuple[str, list[TrialResult]]:
    """The name and the results of a study, or of the paper."""
    if study_file == PUBLISHED:
        return PUBLISHED, read_published(Path("paper/published"))
    study = load_study(study_file)
    return study.name, read_results(results_path(study, runs))
