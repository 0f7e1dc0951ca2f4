"""`qlora-repeat trial`."""

from collections.abc import Iterator
from typing import Any

import click

from qlora_repeat.cli.commands.stage import same_seeds_option
from qlora_repeat.cli.options import (
    cpu_option,
    silence_libraries,
    stages_option,
    track_option,
    verbosity_options,
    workspace_option,
)
from qlora_repeat.study.trial import Stage
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say


@click.command("trial")
@click.argument("trial")
@click.option("--force", is_flag=True, help="Also run the stages that are done already.")
@same_seeds_option
@cpu_option
@stages_option
@track_option
@workspace_option
@verbosity_options
def command(
    trial: str,
    force: bool,
    same_seeds: bool,
    stages: list[Stage],
    workspace: Workspace,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run the stages of one trial that are not done, in this process, and print what they measured.

    MODEL/base instead of a trial runs all tests of that model's base.

    \b
    Example:
      qlora-repeat trial smollm2-135m/adamw-8bit/3
    """
    silence_libraries(verbose)
    from qlora_repeat.api.progress import Terminal, console
    from qlora_repeat.execution.run_study import run_base_tests, run_one
    from qlora_repeat.records.trial_state import valid_record

    shown = Terminal(console(quiet))
    model, _, kind = trial.rpartition("/")
    if kind == "base" and model in workspace.study.models:
        run_base_tests(workspace, model, shown)
        return
    chosen = workspace.trial(trial)
    run_one(chosen, stages, shown, force=force, same_seeds=same_seeds)
    outputs: dict[str, Any] = {}
    for stage in chosen.stages:
        record = valid_record(chosen.record(stage))
        outputs |= record.outputs if record else {}
    if not quiet:
        for line in _measured(chosen.name, outputs):
            say(line)


def _measured(name: str, outputs: dict[str, Any]) -> Iterator[str]:
    """Yield lines with what the stages of a trial measured so far."""
    first = [
        f"{what} {outputs[key]:.4f}"
        for what, key in (("perplexity", "perplexity"), ("final loss", "final_loss"))
        if key in outputs
    ]
    yield f"{name}: {', '.join(first) or 'nothing measured yet'}"
    if "adapter_digest" in outputs:
        yield f"adapter {outputs['adapter_digest']}"
    seconds = [
        f"{what} {outputs[key]:.{digits}f} s"
        for what, key, digits in (("trained in", "train_seconds", 1), ("answers in", "test_seconds", 2))
        if key in outputs
    ]
    if seconds:
        yield ", ".join(seconds)
    for task, found in outputs.get("tasks", {}).items():
        scores = (f"{metric.removesuffix(',none')} {score:.4f}" for metric, score in found["scores"].items())
        yield f"benchmark {task}: {', '.join(scores)}"
