"""`qlora-repeat tables`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.cli.options import (
    BUILD,
    TEMPLATES,
    chosen_experiments,
    chosen_results,
    output,
    results_options,
    study_argument,
)

if TYPE_CHECKING:
    from qlora_repeat.render.tables.table import Table


@click.command("tables")
@study_argument
@click.option(
    "--format",
    "formats",
    type=click.Choice(["latex", "markdown", "terminal"]),
    multiple=True,
    help="Files of LaTeX or of Markdown, or to the terminal; repeatable.  [default: latex and markdown]",
)
@click.option(
    "--table",
    "numbers",
    metavar="N",
    multiple=True,
    help="With --format terminal: the table of this number, such as 1 or S1b; repeatable.  [default: all]",
)
@click.option(
    "--compare",
    metavar="NAME",
    help="Also compare with: `published` (the paper's numbers), another study, or a results file (.jsonl).",
)
@results_options
def command(
    study_file: str,
    formats: tuple[str, ...],
    numbers: tuple[str, ...],
    runs: Path,
    results: Path | None,
    compare: str | None,
    out: Path | None,
) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    STUDY may be `published`: the numbers that the paper prints. Of a study's attribution, table S2 is among
    them. With --format terminal alone they are shown, as wide as the terminal, and no file is written.

    \b
    Examples:
      qlora-repeat tables pocket --compare published
      qlora-repeat tables published --format terminal --table 1 --table S1b
    """
    from qlora_repeat.errors import UsageError
    from qlora_repeat.render.tables.write import ENDINGS, collected_tables, render_tables
    from qlora_repeat.results.arms import group_arms
    from qlora_repeat.results.trial_result import read_results

    if numbers and "terminal" not in formats:
        raise UsageError("--table chooses what --format terminal shows; files have all tables")
    label, rows = chosen_results(study_file, runs, results)
    arms = group_arms(rows)
    others = None
    if compare is not None:
        is_file = compare.endswith(".jsonl")
        others = group_arms(read_results(Path(compare)) if is_file else chosen_results(compare, runs)[1])
    folder = out or BUILD / label
    experiments = chosen_experiments(label, runs, results)
    if "terminal" in formats:
        from qlora_repeat.render.tables.terminal import terminal_table

        tables, shown = collected_tables(arms, others, experiments), output()
        texts = [terminal_table(table, shown.width) for table in _chosen(tables, numbers)]
        click.echo("\n\n\n".join(texts))
    written = [each for each in ENDINGS if each in formats or not formats]
    if written:
        paths = render_tables(arms, folder, TEMPLATES, others, experiments, written)
        tail = "; tables.md has all tables to read" if "markdown" in written else ""
        click.echo(f"{folder}: {len(paths)} files{tail}")


def _chosen(tables: "list[Table]", numbers: tuple[str, ...]) -> "list[Table]":
    """The tables of these numbers; without any, all."""
    from qlora_repeat.errors import UsageError

    known = {table.number.lower(): table.number for table in tables}
    for number in numbers:
        if number.lower() not in known:
            raise UsageError(
                f"--table {number}: there is no such table; there are {', '.join(known.values())}"
            )
    wanted = {number.lower() for number in numbers} or known.keys()
    return [table for table in tables if table.number.lower() in wanted]
