"""What the four stage subcommands have in common."""

import click

from qlora_repeat.cli.options import (
    Decorator,
    cpu_option,
    jobs_option,
    silence_libraries,
    track_option,
    verbosity_options,
    workspace_option,
)
from qlora_repeat.errors import UsageError
from qlora_repeat.study.trial import Stage
from qlora_repeat.study.workspace import Workspace

same_seeds_option: Decorator = click.option(
    "--same-seeds",
    is_flag=True,
    help="With --force: use the seeds of the trial's record, also for fresh sources.",
)


def stage_command(stage: Stage, help: str) -> click.Command:
    """Return the subcommand of one stage."""

    @click.command(stage, help=f"{help}\n\n\b\nExample:\n  qlora-repeat {stage} smollm2-135m/adamw-8bit/3")
    @click.argument("trial", required=False)
    @click.option("--all", "every", is_flag=True, help="Every trial of the study.")
    @click.option("--force", is_flag=True, help="Also if the stage is done already.")
    @jobs_option("With --all: trials")
    @cpu_option
    @workspace_option
    @verbosity_options
    def command(
        trial: str | None,
        every: bool,
        force: bool,
        jobs: int | None,
        workspace: Workspace,
        quiet: bool,
        verbose: bool,
        same_seeds: bool = False,
    ) -> None:
        silence_libraries(verbose)
        from qlora_repeat.api.progress import Terminal, console
        from qlora_repeat.execution.run_study import run_one, run_study

        if same_seeds and every:
            raise UsageError("--same-seeds is for one TRIAL; leave out --all")
        if (trial is None) == (not every):
            raise UsageError(
                f"give one TRIAL (model/optimizer/number), or --all; `{workspace.command('show')}` lists them"
            )
        shown = Terminal(console(quiet))
        stages: list[Stage] = ["finetune", "average"] if stage == "finetune" else [stage]
        if trial is None:
            run_study(workspace, stages, shown, jobs=jobs, force=force)
        else:
            run_one(workspace.trial(trial), stages, shown, force=force, same_seeds=same_seeds)

    if stage != "finetune":
        return command
    with_seeds: click.Command = same_seeds_option(track_option(command))
    return with_seeds
