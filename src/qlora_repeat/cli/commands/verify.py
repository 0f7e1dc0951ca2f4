"""`qlora-repeat verify`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from qlora_repeat.cli.options import (
    cache_option,
    output,
    runs_option,
    silence_libraries,
    study_option,
    verbosity_options,
)

_WEAKEST = ("bitwise", "within tolerance", "statistically consistent")


@click.command("verify")
@click.argument("trial")
@click.option(
    "--stages",
    type=click.Choice(["all", "evaluate"]),
    default="all",
    show_default=True,
    help="evaluate: merge and test the recorded adapter, without fine-tuning.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Only the first N steps of the fine-tuning: quick, but later steps are not checked.",
    metavar="N",
)
@click.option(
    "--new-seeds", is_flag=True, help="Draw new seeds for sources that were drawn: another trial of the arm."
)
@click.option(
    "--accept",
    type=click.Choice(_WEAKEST),
    default=_WEAKEST[0],
    show_default=True,
    help="The weakest verdict that ends with exit code 0.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of re-runs and their reports.  [default: verify/ in the cache]",
)
@study_option
@runs_option
@cache_option
@verbosity_options
def command(trial: str, accept: str, as_json: bool, study_file: str, verbose: bool, **given: Any) -> None:
    """Run one recorded trial again, and say how far it agrees.

    TRIAL is a trial of --study in --runs, the folder of a trial, which may be somebody else's, or a trial in
    an archive, as in theirs.zip:smollm2-135m/adamw-8bit/3. Settings and seeds come from its records. The
    study file only says where models and data come from; an archive or unpacked folder has its own, unless
    --study names another. The recorded trial is not changed. Exit codes: 0 bitwise, 7 different, 8 within
    tolerance, 9 statistically consistent, 10 inconclusive.

    \b
    Example:
      qlora-repeat verify smollm2-135m/adamw-8bit/3
    """
    silence_libraries(verbose)
    from qlora_repeat.api.colors import VERDICTS, with_colored
    from qlora_repeat.api.verification import verify
    from qlora_repeat.render.text.verdict import exit_code

    context = click.get_current_context()
    sources = {context.get_parameter_source(name) for name in ("study_file", "randomness")}
    own = sources == {ParameterSource.DEFAULT}
    found = verify(trial, study=None if own else study_file, **given)
    if as_json:
        click.echo(found.to_json())
    else:
        output().print(with_colored(str(found), VERDICTS, most=1))
        if found.page is not None:
            click.echo(f"\n{found.page}: both loss curves")
    context.exit(exit_code(found.found, accept))
