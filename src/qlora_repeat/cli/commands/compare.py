"""`qlora-repeat compare`."""

from pathlib import Path
from typing import Literal

import click

from qlora_repeat.cli.options import runs_option
from qlora_repeat.system.printable import say_block, say_json


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--metric", help="A column, or a measure of a study.  [default: perplexity, or the only column]"
)
@click.option("--margin", type=float, help="The largest difference that counts as none, for a decision.")
@click.option(
    "--of",
    type=click.Choice(["shift", "spread"]),
    default="shift",
    show_default=True,
    help="What the margin is for; of a spread, it is a factor.",
)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def command(
    first: str,
    second: str,
    metric: str | None,
    margin: float | None,
    of: Literal["shift", "spread"],
    runs: Path | None,
    as_json: bool,
) -> None:
    """Compare two arms: shift, probability of superiority and ratio of spreads, with 95 % intervals.

    A and B are a study's name, a results file, `published`, or a tidy file of any tool (.csv, .jsonl,
    .parquet): a row for each trial, with a column for each metric, and `arm` and `seed`. Of several arms,
    SOURCE:ARM picks one. Arms with the same seeds are compared in pairs.

    With --margin, the difference is *equivalent* if its interval lies within the margin, otherwise
    *different* if it excludes none, and otherwise *undecided*.

    \b
    Examples:
      qlora-repeat compare pocket:smollm2-135m/adamw-8bit pocket:smollm2-135m/adamw-32bit
      qlora-repeat compare a.csv b.csv --metric accuracy --margin 0.01
    """
    from qlora_repeat.api.arm_comparison import compare

    found = compare(first, second, metric=metric, margin=margin, of=of, runs=runs)
    if as_json:
        say_json(found.to_json())
    else:
        say_block(str(found))
