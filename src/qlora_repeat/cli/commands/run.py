"""`qlora-repeat run`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import (
    cache_option,
    console,
    runs_option,
    silence_libraries,
    stages_option,
    study_argument,
    verbosity_options,
)
from qlora_repeat.study.trial import STAGES, Stage


@click.command("run")
@study_argument
@click.option(
    "--jobs", type=click.IntRange(1), help="Trials at a time.  [default: one a GPU, or cores / threads]"
)
@click.option(
    "--gpus", metavar="0,1,...", help="The GPUs to use, by nvidia-smi's numbers or UUIDs.  [default: all]"
)
@stages_option
@runs_option
@cache_option
@verbosity_options
def command(
    study_file: str,
    jobs: int | None,
    gpus: str | None,
    stages: list[Stage],
    runs: Path,
    cache: Path,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run every trial of a study that is not complete, each in a process of its own.

    Fetches what is missing first. Interrupted, the same command goes on with what is left.

    \b
    Example:
      qlora-repeat run pocket
    """
    silence_libraries(verbose)
    from qlora_repeat.assets.hub_lock import lock_file
    from qlora_repeat.cli.commands.stage import require_fetched, run_all
    from qlora_repeat.execution.process_pool import choose_gpus
    from qlora_repeat.results.arms import distinct_adapters, group_arms
    from qlora_repeat.results.collect import collect
    from qlora_repeat.study.loading import load_study

    study = load_study(study_file)
    if gpus is not None:
        choose_gpus(gpus)
    require_fetched(study, lock_file(study_file), cache, console(quiet))
    if run_all(study, stages, runs, cache, jobs, console(quiet)) == 0 and not quiet:
        only = "" if stages == [*STAGES] else f" ({', '.join(stages)})"
        click.echo(f"study {study.name}: every trial is done{only}")
    for line in distinct_adapters(group_arms(collect(study, runs, cache))):
        if not quiet:
            click.echo(line)
