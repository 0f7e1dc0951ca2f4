"""`qlora-repeat diff`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, quiet_option, runs_option, study_option
from qlora_repeat.system.printable import say_block, say_json

DIFFERENT = 7
"""The exit code where trials differ."""


@click.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@study_option
@runs_option
@cache_option
@click.option(
    "--operations", is_flag=True, help="Run both again up to that step, and find the operator that differs."
)
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.pass_context
def command(
    context: click.Context,
    first: str,
    second: str,
    study_file: str,
    runs: Path | None,
    cache: Path | None,
    operations: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the first step at which two trials differ, and in what.

    A and B are trials of --study, trials of another study or profile as in
    pocket@bitwise:smollm2-135m/adamw-8bit/1, or folders of trials. A trial that is still running is compared
    up to its last step. The exit code is 7 if anything compared differs in a bit.

    \b
    Example:
      qlora-repeat diff smollm2-135m/adamw-8bit/1 smollm2-135m/adamw-8bit/2
    """
    from qlora_repeat.api.comparison import diff

    found = diff(first, second, study=study_file, runs=runs, cache=cache, operations=operations, quiet=quiet)
    say_json(found.to_json()) if as_json else say_block(found)
    if found.verdict == "different":
        context.exit(DIFFERENT)
