"""`qlora-repeat tables`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import runs_option, study_argument


@click.command("tables")
@study_argument
@runs_option
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Collected results.  [default: of the study]",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: paper/build/STUDY]"
)
def command(study_file: str, runs: Path, results: Path | None, out: Path | None) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    \b
    Example:
      qlora-repeat tables pocket
    """
    from qlora_repeat.results import read_results
    from qlora_repeat.tables import render_tables
    from qlora_repeat.trial import results_path

    name = Path(study_file).stem
    if results is None:
        from qlora_repeat.study import load_study

        study = load_study(study_file)
        name, results = study.label, results_path(study, runs)
    folder = out or Path("paper/build") / name
    paths = render_tables(read_results(results), folder, Path("paper/templates"))
    click.echo(f"{folder}: {len(paths)} files; tables.md has all tables to read")
