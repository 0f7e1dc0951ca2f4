"""Run a study: fetch what is missing, and run each job that is not done.

Nothing here prints; an `Observer` shows progress.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from qlora_repeat.assets.fetch import fetch, needed
from qlora_repeat.assets.inspection import kept_inspection, require_sound
from qlora_repeat.errors import BusyError, KitError, StageError, StoppedError, UsageError
from qlora_repeat.execution.device import check_and_tell, prepare_and_tell
from qlora_repeat.execution.jobs import BaseTestJob, TrialJob, counted, in_turns, is_open, open_jobs
from qlora_repeat.execution.process_pool import Job, Watcher, run_jobs
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.trial_state import (
    base_damages,
    explanations,
    last_checkpoint,
    stopped_at,
    trial_state,
    valid_record,
)
from qlora_repeat.study.selection import Selection
from qlora_repeat.study.trial import Progress, Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.gpus import default_workers

BASE_WAIT_SECONDS = 3600
"""How long a process waits for another one that runs the same test of a base."""


class Observer(Protocol):
    """Shows the progress of a study.

    `tell` shows a line of text, and `warn` shows it even if the user wants to see errors only. `watch_jobs`
    shows the progress of jobs, of which at most `workers` run at the same time; `watch_trial` shows the
    stages of one trial.
    """

    def tell(self, line: str) -> None: ...
    def warn(self, line: str) -> None: ...
    def watch_jobs(self, jobs: Sequence[Job], workers: int) -> AbstractContextManager[Watcher]: ...
    def watch_trial(self, name: str) -> AbstractContextManager[Progress]: ...


def run_study(
    workspace: Workspace,
    stages: Sequence[Stage],
    observer: Observer,
    *,
    jobs: int | None = None,
    force: bool = False,
    chosen: Selection | None = None,
    find: Callable[[], Sequence[Job]] | None = None,
    title: str = "",
) -> int:
    """Run the given stages that are not done (with `force`: all), each trial in its own process.

    Args:
        jobs: how many run at the same time (default: `default_workers`).
        chosen: the trials to run (default: all).
        find: returns the jobs to run (default: `open_jobs` of the study). They may belong to derived studies.
        title: a name for the jobs (default: the study's name).

    Returns:
        The number of jobs that were run.

    Raises:
        NoGpuError: the study asks for a GPU, and there is none to use; nothing was fetched.
        StageError: some jobs failed; the others are done.
        BusyError: all jobs are done, except those that another process works on.
        StoppedError: this process, or one that it started, was asked to stop.
    """
    study = workspace.study
    check_and_tell(study, observer.warn)
    require_benchmarks(workspace.trials(), stages)
    fetch_missing(workspace, observer.tell, chosen.models if chosen else ())
    find = find or functools.partial(open_jobs, workspace, stages, force=force, chosen=chosen)
    waiting = find()
    if not waiting:
        return 0
    trials = [job.trial for job in waiting if isinstance(job, TrialJob)]
    damages = base_damages(workspace, [job.test for job in waiting if isinstance(job, BaseTestJob)])
    states = [(state, stopped_at(state)) for state in map(trial_state, trials)]
    for line in damages + explanations(state for state, stopped in states if stopped is None):
        observer.tell(f"running again: {line}")
    for state, stopped in states:
        if stopped is not None:
            observer.tell(f"resuming: {state.trial.name} {stopped}")
    workers = min(jobs or default_workers(study.threads), len(waiting))
    os.environ["OMP_NUM_THREADS"] = str(study.threads)
    left_out = f"; {chosen.left_out} other trials are left out" if chosen and chosen.left_out else ""
    observer.tell(f"study {title or study.name}: {counted(waiting)}, {workers} at a time{left_out}")
    try:
        with observer.watch_jobs(waiting, workers) as watcher:
            errors = list[KitError]()
            for turn in in_turns(waiting):
                errors += run_jobs([job for job in turn if _can_run(job, stages)], workers, watcher)
    except (KeyboardInterrupt, StoppedError):
        observer.tell(
            "With --force, the same command also runs the finished jobs again."
            if force
            else f"{len(find())} of {len(waiting)} jobs are left; run the same command to resume."
        )
        raise
    for error in errors:
        if isinstance(error, StoppedError):
            raise error
    if failed := [error for error in errors if not isinstance(error, BusyError)]:
        raise StageError(f"{len(failed)} of {len(waiting)} jobs failed: {failed[0]}")
    if errors:
        raise BusyError(f"{len(errors)} of {len(waiting)} jobs are not done: {errors[0]}")
    return len(waiting)


def _can_run(job: Job, stages: Sequence[Stage]) -> bool:
    """Return whether the trials that a job averages are done, if this run could have trained them."""
    sources = job.trial.sources if isinstance(job, TrialJob) else []
    return "finetune" not in stages or not any(is_open(each, ["finetune"]) for each in sources)


def run_one(
    trial: Trial,
    stages: Sequence[Stage],
    observer: Observer,
    *,
    force: bool = False,
    same_seeds: bool = False,
) -> None:
    """Run stages of one trial in this process, as `run_trial`; before an evaluation, test its base once.

    With `same_seeds`, the fine-tuning uses the seeds of the trial's record.

    Raises:
        NoGpuError: as `run_study`.
        UsageError: `same_seeds` is set, but the trial has no record.
    """
    prepare_and_tell(trial.study, observer.warn)
    require_benchmarks([trial], stages)
    fetch_missing(trial.workspace, observer.tell, [trial.model_name])
    seeds = _recorded_seeds(trial) if same_seeds else None
    if "finetune" in stages and not trial.trace.exists() and (step := last_checkpoint(trial)) is not None:
        observer.tell(f"{trial.name}: was stopped; resumes from its checkpoint after step {step}")
    with observer.watch_trial(trial.name) as progress:
        if "evaluate" in stages:
            with contextlib.suppress(BusyError):  # another trial of the model tests it
                run_base_test(trial.workspace.base_tests(trial.model_name)[0], progress)
        run_trial(trial, stages, progress, force=force, seeds=seeds)


def _recorded_seeds(trial: Trial) -> dict[str, int]:
    record = valid_record(trial.record("finetune"))
    if record is None:
        raise UsageError(
            f"{trial.name}: --same-seeds needs the record of an earlier fine-tuning, and there is none yet"
        )
    seeds: dict[str, int] = record.outputs["seeds"]
    return seeds


def run_base_tests(workspace: Workspace, model: str, observer: Observer) -> None:
    """Run all tests of a model's base in this process.

    Raises:
        NoGpuError: as `run_study`.
        BusyError: another process has worked on one of the tests for more than an hour.
    """
    prepare_and_tell(workspace.study, observer.warn)
    fetch_missing(workspace, observer.tell, [model])
    tests, until = workspace.base_tests(model), time.monotonic() + BASE_WAIT_SECONDS
    left = tests
    while left:
        busy = []
        for test in left:
            try:
                run_base_test(test, lambda *told: None)
            except BusyError:  # a trial of the model runs it, and may fail
                if time.monotonic() > until:
                    raise
                busy.append(test)
            else:
                observer.tell(f"{model}/base: test {test.number} of {len(tests)} is done")
        if left := busy:
            time.sleep(1)


def require_benchmarks(trials: Sequence[Trial], stages: Sequence[Stage]) -> None:
    """Load the study's benchmarks and their data before anything is trained, if a trial needs them.

    Raises:
        UsageError, StageError, MissingError: they cannot run here; as `load_tasks`. Or they alone are asked
            for, and the study names none.
    """
    if list(stages) == ["benchmark"] and not any("benchmark" in each.stages for each in trials):
        raise UsageError(f"{trials[0].study.name}: names no benchmarks; see key evaluation.lm_eval")
    if "benchmark" in stages and any(is_open(each, ["benchmark"]) for each in trials):
        from qlora_repeat.stages.benchmark import load_tasks

        load_tasks(trials[0].workspace)


def fetch_missing(workspace: Workspace, tell: Callable[[str], None], models: Collection[str] = ()) -> None:
    """Fetch what the study, or some of its models, still need.

    Rows are also inspected if an earlier version fetched them, or if settings have changed since the fetch.

    Raises:
        UsageError: rows would make numbers wrong.
    """
    if not all(item.present for item in needed(workspace, models)):
        fetch(workspace, tell, models)
    for model in models or workspace.study.models:
        was_told = kept_inspection(workspace, model) is not None
        found = require_sound(workspace, model)
        for line in [] if was_told else found.warnings:
            tell(f"model {model}: {line}")
