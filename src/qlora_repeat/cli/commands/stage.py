"""What the four stage subcommands have in common: one trial here, or all in processes of their own."""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from qlora_repeat.assets.hub_lock import LockFile, lock_file
from qlora_repeat.cli.options import (
    cache_option,
    chosen_trials,
    console,
    runs_option,
    silence_libraries,
    study_option,
    verbosity_options,
)
from qlora_repeat.errors import BusyError, StageError, StoppedError, UsageError
from qlora_repeat.records.record import read_record
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.determinism import prepare_environment

if TYPE_CHECKING:
    from qlora_repeat.execution.process_pool import Job

_Command = TypeVar("_Command", bound=Callable[..., Any])

BASE_WAIT_SECONDS = 3600
"""How long a task that tests a base waits for another that is at it."""


def stage_command(stage: Stage, help: str) -> click.Command:
    """The subcommand of one stage."""

    @click.command(stage, help=f"{help}\n\n\b\nExample:\n  qlora-repeat {stage} smollm2-135m/adamw-8bit/3")
    @click.argument("trial", required=False)
    @click.option("--all", "every", is_flag=True, help="Every trial of the study.")
    @click.option("--force", is_flag=True, help="Also where the stage is done already.")
    @click.option(
        "--jobs",
        type=click.IntRange(1),
        help="With --all: trials at a time.  [default: one a GPU, or cores / threads]",
    )
    @study_option
    @runs_option
    @cache_option
    @verbosity_options
    def command(
        trial: str | None,
        every: bool,
        force: bool,
        jobs: int | None,
        study_file: str,
        runs: Path,
        cache: Path,
        quiet: bool,
        verbose: bool,
        same_seeds: bool = False,
    ) -> None:
        silence_libraries(verbose)
        if same_seeds and every:
            raise UsageError("--same-seeds is for one TRIAL; leave out --all")
        study, trials = chosen_trials(study_file, trial, every, runs)
        require_fetched(
            study, lock_file(study_file), cache, console(quiet), {each.model_name for each in trials}
        )
        if every:
            run_all(study, [stage], runs, cache, jobs, console(quiet), force=force)
        else:
            run_here(trials[0], [stage], cache, console(quiet), force=force, same_seeds=same_seeds)

    return same_seeds_option(command) if stage == "finetune" else command


def same_seeds_option(command: _Command) -> _Command:
    """--same-seeds: for repeating a trial that drew its own."""
    return click.option(
        "--same-seeds",
        is_flag=True,
        help="With --force: with the seeds that its record has, also of sources that are fresh.",
    )(command)


def require_fetched(
    study: Study, lock: LockFile, cache: Path, out: Console, models: Collection[str] = ()
) -> None:
    """Brings what the study, or some of its models, still lack: before anything else touches a device."""
    prepare_environment(study.randomness.kernels)
    from qlora_repeat.assets.fetch import fetch, needed

    if not all(item.present for item in needed(study, cache, models)):
        fetch(study, cache, lock, lambda line: out.print(line), models)


def run_here(
    trial: Trial,
    stages: Sequence[Stage],
    cache: Path,
    out: Console,
    *,
    force: bool = False,
    same_seeds: bool = False,
) -> None:
    """Runs stages of one trial in this process, with a bar for each.

    Raises:
        UsageError: with `same_seeds`, where the trial has no record to take seeds from.
    """
    from qlora_repeat.cli.progress import stage_bars
    from qlora_repeat.execution.run_trial import run_base, run_stages

    study = trial.study
    seeds = recorded_seeds(trial) if same_seeds else None
    with stage_bars(out, trial.name) as watch:
        if "evaluate" in stages:
            with contextlib.suppress(BusyError):  # then another trial of the model does it
                run_base(study, trial.model_name, 1, trial.runs, cache, watch)
        run_stages(trial, stages, cache, watch, force=force, seeds=seeds)


def run_base_here(study: Study, model: str, runs: Path, cache: Path, out: Console) -> None:
    """Tests the base of a model as often as the study asks for, in this process."""
    from qlora_repeat.execution.run_trial import run_base
    from qlora_repeat.study.trial import base_tests

    left, until = list(base_tests(study)), time.monotonic() + BASE_WAIT_SECONDS
    while left:
        for number in tuple(left):
            try:
                run_base(study, model, number, runs, cache, lambda *told: None)
            except BusyError:  # a trial of the model does it, and may fail
                if time.monotonic() > until:
                    raise
            else:
                left.remove(number)
                out.print(f"{model}/base: test {number} of {len(base_tests(study))} is done")
        if left:
            time.sleep(1)


def recorded_seeds(trial: Trial) -> dict[str, int]:
    """The seeds that a trial was fine-tuned with."""
    record = read_record(trial.record("finetune"))
    if record is None:
        raise UsageError(f"{trial.name}: --same-seeds takes the seeds of its record, and there is none yet")
    seeds: dict[str, int] = record.outputs["seeds"]
    return seeds


def run_all(
    study: Study,
    stages: Sequence[Stage],
    runs: Path,
    cache: Path,
    jobs: int | None,
    out: Console,
    *,
    force: bool = False,
) -> int:
    """Runs stages of every trial for which they are not done, each in a process of its own.

    Returns:
        How many jobs there were.

    Raises:
        StageError: some failed; the others are done.
        BusyError: all are done but those that another process works on.
        StoppedError: this process, or one that it started, was asked to stop.
    """
    from qlora_repeat.execution.process_pool import open_jobs
    from qlora_repeat.records.status import base_damages, explanations, standings

    waiting = open_jobs(study, stages, runs, cache, force=force)
    if not waiting:
        return 0
    reasons = base_damages(study, runs, cache) if "evaluate" in stages else []
    for line in reasons + explanations(standings([job.trial for job in waiting if job.trial], cache)):
        out.print(f"to be run again: {line}")
    left = None if force else lambda: len(open_jobs(study, stages, runs, cache))
    run_waiting(study.name, waiting, stages, study, runs, cache, jobs, out, left)
    return len(waiting)


def run_waiting(
    title: str,
    waiting: "Sequence[Job]",
    stages: Sequence[Stage],
    study: Study,
    runs: Path,
    cache: Path,
    jobs: int | None,
    out: Console,
    left: Callable[[], int] | None,
    after: "Callable[[Job], None] | None" = None,
) -> None:
    """Runs jobs, each in a process of its own, and shows how they go; `after` is told of each that is done.

    `left` counts, where the jobs are stopped, those that the same command goes on with. Without it, they are
    run whether they are done or not.

    Raises:
        StageError, BusyError, StoppedError: as `run_all`.
    """
    from qlora_repeat.cli.progress import Display
    from qlora_repeat.execution.process_pool import default_workers, run_jobs

    workers = min(jobs or default_workers(study), len(waiting))
    os.environ["OMP_NUM_THREADS"] = str(study.threads)
    out.print(f"study {title}: {len(waiting)} jobs, {workers} at a time")
    try:
        with Display(out, list(waiting), workers, after) as display:
            errors = run_jobs(waiting, stages, study, runs, cache, workers, display, force=left is None)
    except (KeyboardInterrupt, StoppedError):
        if left is None:
            out.print("With --force, the same command does every job again, also those that ended now.")
        else:
            out.print(f"{left()} of {len(waiting)} jobs are left; the same command goes on with them.")
        raise
    if errors:
        if stopped := [error for error in errors if isinstance(error, StoppedError)]:
            raise stopped[0]
        failed = [error for error in errors if not isinstance(error, BusyError)]
        if not failed:
            raise BusyError(f"{len(errors)} of {len(waiting)} jobs are not done: {errors[0]}")
        raise StageError(f"{len(failed)} of {len(waiting)} jobs failed: {failed[0]}")
