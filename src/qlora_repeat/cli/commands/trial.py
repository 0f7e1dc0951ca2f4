"""`qlora-repeat trial`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from qlora_repeat.cli.commands.stage import same_seeds_option
from qlora_repeat.cli.options import (
    cache_option,
    chosen_trials,
    console,
    runs_option,
    silence_libraries,
    stages_option,
    study_option,
    verbosity_options,
)
from qlora_repeat.study.trial import STAGES, Stage


@click.command("trial")
@click.argument("trial")
@click.option("--force", is_flag=True, help="Also the stages that are done already.")
@same_seeds_option
@stages_option
@study_option
@runs_option
@cache_option
@verbosity_options
def command(
    trial: str,
    force: bool,
    same_seeds: bool,
    stages: list[Stage],
    study_file: str,
    runs: Path,
    cache: Path,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run what is not done of one trial's four stages, in this process, and print what they measured.

    MODEL/base in place of a trial tests the base of that model, as often as the study asks for.

    \b
    Example:
      qlora-repeat trial smollm2-135m/adamw-8bit/3
    """
    silence_libraries(verbose)
    from qlora_repeat.assets.hub_lock import lock_file
    from qlora_repeat.cli.commands.stage import require_fetched, run_base_here, run_here
    from qlora_repeat.records.record import read_record
    from qlora_repeat.study.loading import load_study

    study = load_study(study_file)
    model, _, kind = trial.rpartition("/")
    if kind == "base" and model in study.models:
        require_fetched(study, lock_file(study_file), cache, console(quiet), [model])
        run_base_here(study, model, runs, cache, console(quiet))
        return
    study, (chosen,) = chosen_trials(study_file, trial, False, runs)
    require_fetched(study, lock_file(study_file), cache, console(quiet), [chosen.model_name])
    run_here(chosen, stages, cache, console(quiet), force=force, same_seeds=same_seeds)
    outputs: dict[str, Any] = {}
    for stage in STAGES:
        record = read_record(chosen.record(stage))
        outputs |= record.outputs if record else {}
    if not quiet:
        for line in _measured(chosen.name, outputs):
            click.echo(line)


def _measured(name: str, outputs: dict[str, Any]) -> Iterator[str]:
    """What is known of a trial, in lines: not all, where some stages were not asked for."""
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
