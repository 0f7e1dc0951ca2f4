"""`qlora-repeat verify`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from qlora_repeat.cli.options import (
    cache_option,
    cpu_option,
    output,
    runs_option,
    silence_libraries,
    study_option,
    verbosity_options,
)
from qlora_repeat.errors import UsageError
from qlora_repeat.system.printable import say, say_block, say_json

_WEAKEST = ("bitwise", "within tolerance", "statistically consistent")


@click.command("verify")
@click.argument("trial", metavar="TRIAL|STUDY")
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Of a STUDY: run N trials again, drawn with --seed, and bound how many could be false.",
)
@click.option("--seed", type=click.IntRange(0), help="Draws the --sample; choose it yourself.")
@click.option("--all", "every", is_flag=True, help="Of a STUDY: run every recorded trial again.")
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
    "--repeat",
    type=click.IntRange(1, 100),
    default=1,
    metavar="N",
    help="With --new-seeds: up to N re-runs, until statistics can decide; they share one error rate.",
)
@click.option(
    "--reproducibility-sd",
    type=float,
    metavar="S_R",
    help="Allow 2.8 times this SD of perplexity between laboratories, s_R of Table S5.",
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
@cpu_option
@study_option
@runs_option
@cache_option
@verbosity_options
def command(
    trial: str,
    sample: int | None,
    seed: int | None,
    every: bool,
    accept: str,
    as_json: bool,
    study_file: str,
    verbose: bool,
    **given: Any,
) -> None:
    """Run one recorded trial again, and say how far it agrees.

    TRIAL is a trial of --study in --runs, the folder of a trial, which may be somebody else's, or a trial in
    an archive, as in theirs.zip:smollm2-135m/adamw-8bit/3. Settings and seeds come from its records. The
    study file only says where models and data come from; an archive or unpacked folder has its own, unless
    --study names another. The recorded trial is not changed. Exit codes: 0 bitwise, 7 different, 8 within
    tolerance, 9 statistically consistent, 10 inconclusive.

    With --sample or --all, TRIAL is a STUDY or an archive: its trials are run again one by one, and the exit
    code is the worst of their verdicts. With --steps too, trials that are not drawn run their first N steps.

    \b
    Examples:
      qlora-repeat verify smollm2-135m/adamw-8bit/3
      qlora-repeat verify theirs.zip --sample 3 --seed 20261130
    """
    silence_libraries(verbose)
    from qlora_repeat.api.colors import VERDICTS, with_colored
    from qlora_repeat.api.verification import verify
    from qlora_repeat.render.text.verdict import exit_code

    context = click.get_current_context()
    sources = {context.get_parameter_source(name) for name in ("study_file", "randomness")}
    own = None if sources == {ParameterSource.DEFAULT} else study_file
    if sample is not None or every:
        drawn = {"sample": None if every else sample, "seed": seed, "own_study": own}
        _verify_study(trial, accept, as_json, drawn | given)
        return
    if seed is not None:
        raise UsageError("--seed draws the trials of --sample; give --sample N too")
    found = verify(trial, study=own, **given)
    if as_json:
        say_json(found.to_json())
    else:
        output().print(with_colored(str(found), VERDICTS, most=1))
        if found.page is not None:
            say()
            say(f"{found.page}: both loss curves")
    context.exit(exit_code(found.found, accept))


def _verify_study(study: str, accept: str, as_json: bool, given: dict[str, Any]) -> None:
    """Verify trials of a study, print their verdicts, and exit with the worst."""
    from qlora_repeat.api.study_verification import verify_study
    from qlora_repeat.render.text.verdict import worst_exit_code

    own = [given.pop(name) for name in ("stages", "new_seeds", "repeat", "reproducibility_sd")]
    if own != ["all", False, 1, None]:
        raise UsageError(
            "--sample and --all run trials as recorded; leave out --stages, --new-seeds and "
            "--reproducibility-sd"
        )
    found = verify_study(study, **given)
    if as_json:
        say_json(found.to_json())
    else:
        say_block(found)
        say()
        say(f"{found.page}: all verdicts with their reasons")
    kinds = [each.verdict for each in found.trials]
    click.get_current_context().exit(worst_exit_code(kinds, accept))
