"""`qlora-repeat tables`."""

from functools import partial
from pathlib import Path

import click

from qlora_repeat.commands.options import BUILD, chosen_results, results_options, study_argument


@click.command("tables")
@study_argument
@click.option(
    "--compare",
    metavar="NAME",
    help="Also compare with: `published` (the paper's numbers), another study, or a results file (.jsonl).",
)
@results_options
def command(study_file: str, runs: Path, results: Path | None, compare: str | None, out: Path | None) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    STUDY may be `published`: the numbers that the paper prints. Of a study's attribution, table S2 is among
    them.

    \b
    Example:
      qlora-repeat tables pocket --compare published
    """
    from qlora_repeat.outcomes import read_experiments
    from qlora_repeat.render.tables import render_tables
    from qlora_repeat.results import read_results

    label, rows = chosen_results(study_file, runs, results)
    others = None
    if compare is not None:
        is_file = compare.endswith(".jsonl")
        others = read_results(Path(compare)) if is_file else chosen_results(compare, runs)[1]
    folder = out or BUILD / label
    experiments = read_experiments(label, runs, partial(click.echo, err=True)) if results is None else []
    paths = render_tables(rows, folder, Path("paper/templates"), others, experiments)
    click.echo(f"{folder}: {len(paths)} files; tables.md has all tables to read")
