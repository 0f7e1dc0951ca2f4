"""`qlora-repeat verify`."""

from pathlib import Path
from typing import Literal

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
    help="Only the first N steps of the fine-tuning: quick, and blind to what comes after.",
    metavar="N",
)
@click.option(
    "--new-seeds", is_flag=True, help="Draw new seeds where the trial drew its own: another trial of the arm."
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
@click.pass_context
def command(
    context: click.Context,
    trial: str,
    stages: Literal["all", "evaluate"],
    steps: int | None,
    new_seeds: bool,
    accept: str,
    as_json: bool,
    scratch: Path | None,
    study_file: str,
    runs: Path | None,
    cache: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run one recorded trial again, and say how far it agrees.

    TRIAL is one of --study in --runs; or a trial's folder, which may be somebody else's; or in an archive, as
    in theirs.zip:smollm2-135m/adamw-8bit/3. Settings and seeds come from its records. Only the sources of
    models and data come from the study file; an archive, or the folder it was unpacked to, brings its own,
    unless --study names another. The recorded trial is not changed. Exit codes: 0 bitwise, 7 different, 8
    within tolerance, 9 statistically consistent, 10 inconclusive.

    \b
    Example:
      qlora-repeat verify smollm2-135m/adamw-8bit/3
    """
    silence_libraries(verbose)
    from qlora_repeat.api.colors import VERDICTS, with_colored
    from qlora_repeat.api.verification import verify
    from qlora_repeat.render.text.verdict import exit_code

    sources = {context.get_parameter_source(name) for name in ("study_file", "randomness")}
    found = verify(
        trial,
        study=None if sources == {ParameterSource.DEFAULT} else study_file,
        runs=runs,
        cache=cache,
        stages=stages,
        steps=steps,
        new_seeds=new_seeds,
        scratch=scratch,
        quiet=quiet,
    )
    if as_json:
        click.echo(found.to_json())
    else:
        output().print(with_colored(str(found), VERDICTS, most=1))
        if found.page is not None:
            click.echo(f"\n{found.page}: both loss curves")
    context.exit(exit_code(found.found, accept))
