"""`qlora-repeat diff`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.cli.options import runs_option, study_option

if TYPE_CHECKING:
    from qlora_repeat.analysis.trial_diff import Side

DIFFERENT = 7
"""The exit code where trials differ."""


@click.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@study_option
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.pass_context
def command(
    context: click.Context, first: str, second: str, study_file: str, runs: Path, as_json: bool
) -> None:
    """Name the first step at which two trials part, and in what.

    Each is a trial of --study, a trial of another study or profile as in
    pocket@bitwise:smollm2-135m/adamw-8bit/1, or a trial's folder. One that is still being fine-tuned is
    compared as far as it has come. Ends with exit code 7 if anything compared is not the same, bit for bit.

    \b
    Example:
      qlora-repeat diff smollm2-135m/adamw-8bit/1 smollm2-135m/adamw-8bit/2
    """
    from qlora_repeat.analysis.trial_diff import compare_trials
    from qlora_repeat.render.text.diff import diff_json, diff_text

    diff = compare_trials(*(_side(given, study_file, runs) for given in (first, second)))
    click.echo(diff_json(diff) if as_json else diff_text(diff))
    if diff.verdict == "different":
        context.exit(DIFFERENT)


def _side(given: str, study_file: str, runs: Path) -> "Side":
    from qlora_repeat.analysis.trial_diff import read_side
    from qlora_repeat.errors import MissingError
    from qlora_repeat.study.loading import open_workspace

    if Path(given).is_dir():
        return read_side(given, Path(given))
    label, _, name = given.rpartition(":")
    if Path(name).name.startswith("trial-"):
        raise MissingError(
            f"{given}: no such folder; give that of a trial, or its name: model/optimizer/number"
        )
    trial = open_workspace(label or study_file, runs=runs).trial(name)
    return read_side(f"{trial.study.label}:{trial.name}", trial.folder)
