"""`qlora-repeat tables`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import chosen_results, compare_option, output, results_options, study_argument
from qlora_repeat.errors import UsageError
from qlora_repeat.system.printable import say, say_block


@click.command("tables")
@study_argument
@click.option(
    "--format",
    "formats",
    type=click.Choice(["latex", "markdown", "terminal"]),
    multiple=True,
    help="Write LaTeX or Markdown files, or print; repeatable.  [default: latex and markdown]",
)
@click.option(
    "--table",
    "numbers",
    metavar="N",
    multiple=True,
    help="With --format terminal: the number of a table, such as 1 or S1b; repeatable.  [default: all]",
)
@compare_option
@results_options
def command(
    study_file: str,
    formats: tuple[str, ...],
    numbers: tuple[str, ...],
    runs: Path | None,
    results: Path | None,
    compare: str | None,
    out: Path | None,
) -> None:
    """Render the paper's tables, as LaTeX and as Markdown, from collected results alone.

    A study of models other than the paper's, without a counterpart, has tables from 1, and no claims. STUDY
    may be `published`: the numbers that the paper prints. Table S2 is added after an attribution. With
    only --format terminal, tables are printed, as wide as the terminal, and no file is written.

    \b
    Examples:
      qlora-repeat tables pocket --compare published
      qlora-repeat tables published --format terminal --table 1 --table S1b
    """
    if numbers and "terminal" not in formats:
        raise UsageError("--table chooses what --format terminal prints; files have all tables")
    from qlora_repeat.api.rendered import tables
    from qlora_repeat.api.results import results_of
    from qlora_repeat.render.tables.write import ENDINGS

    others = None if compare is None else results_of(compare, runs)
    made = tables(chosen_results(study_file, runs, results), compare=others)
    if "terminal" in formats:
        say_block((made.numbered(*numbers) if numbers else made).to_text(output().width))
    if written := [each for each in ENDINGS if each in formats or not formats]:
        paths = made.write(out, formats=written)
        tail = "; tables.md has all tables to read" if "markdown" in written else ""
        say(f"{paths[0].parent}: {len(paths)} files{tail}")
