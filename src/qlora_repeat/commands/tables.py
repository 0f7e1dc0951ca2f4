"""`qlora-repeat tables`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import chosen_results, results_options, study_argument


@click.command("tables")
@study_argument
@results_options
def command(study_file: str, runs: Path, results: Path | None, out: Path | None) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    \b
    Example:
      qlora-repeat tables pocket
    """
    from qlora_repeat.results import read_results
    from qlora_repeat.tables import render_tables

    file, folder = chosen_results(study_file, runs, results, out)
    paths = render_tables(read_results(file), folder, Path("paper/templates"))
    click.echo(f"{folder}: {len(paths)} files; tables.md has all tables to read")
