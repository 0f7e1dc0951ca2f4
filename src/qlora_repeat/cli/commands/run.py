"""`qlora-repeat run`."""

import click

from qlora_repeat.cli.options import (
    console,
    jobs_option,
    silence_libraries,
    stages_option,
    verbosity_options,
    workspace_argument,
)
from qlora_repeat.study.trial import STAGES, Stage
from qlora_repeat.study.workspace import Workspace


@click.command("run")
@jobs_option("Trials")
@click.option(
    "--gpus", metavar="0,1,...", help="The GPUs to use, by nvidia-smi's numbers or UUIDs.  [default: all]"
)
@stages_option
@workspace_argument
@verbosity_options
def command(
    jobs: int | None,
    gpus: str | None,
    stages: list[Stage],
    workspace: Workspace,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run every trial of a study that is not complete, each in a process of its own.

    Fetches what is missing first. If it is interrupted, run the same command to resume.

    \b
    Example:
      qlora-repeat run pocket
    """
    silence_libraries(verbose)
    from qlora_repeat.cli.progress import Terminal
    from qlora_repeat.execution.run_study import run_study
    from qlora_repeat.results.arms import distinct_adapters, group_arms
    from qlora_repeat.results.collect import collect
    from qlora_repeat.system.gpus import choose_gpus

    if gpus is not None:
        choose_gpus(gpus)
    if run_study(workspace, stages, Terminal(console(quiet)), jobs=jobs) == 0 and not quiet:
        only = "" if stages == [*STAGES] else f" ({', '.join(stages)})"
        click.echo(f"study {workspace.study.name}: every trial is done{only}")
    for line in distinct_adapters(group_arms(collect(workspace))):
        if not quiet:
            click.echo(line)
