"""Picklable jobs for worker processes: stages of a trial, or a test of a base."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.execution.process_pool import Job
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.record import now
from qlora_repeat.records.trial_state import base_state, stage_states
from qlora_repeat.study.selection import Selection, select
from qlora_repeat.study.trial import BaseTest, Progress, Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import write_json


@dataclass(frozen=True)
class TrialJob:
    """Run stages of a trial; parameters as in `run_trial`."""

    trial: Trial
    stages: Sequence[Stage]
    force: bool = False
    seeds: dict[str, int] | None = None
    delete_merged: bool = False
    title: str = ""
    """The name of the job, if the trial's name is not unique."""

    @property
    def name(self) -> str:
        return self.title or self.trial.name

    @property
    def kind(self) -> tuple[str, bool]:
        return self.trial.model_name, bool(self.trial.sources)

    @property
    def log(self) -> Path:
        return self.trial.log

    def run(self, progress: Progress) -> None:
        """Run the stages in this process; raises as `run_trial`."""
        run_trial(
            self.trial,
            self.stages,
            progress,
            force=self.force,
            seeds=self.seeds,
            delete_merged=self.delete_merged,
        )

    def failed(self, error: str) -> None:
        """Write a failure note for a process that ended without a message."""
        with contextlib.suppress(OSError):
            write_json(self.trial.failure, {"time": now(), "error": error})


@dataclass(frozen=True)
class BaseTestJob:
    """Test a model's base."""

    test: BaseTest

    @property
    def name(self) -> str:
        return self.test.name

    @property
    def kind(self) -> tuple[str, bool]:
        return self.test.model_name, True

    @property
    def log(self) -> Path:
        return self.test.log

    def run(self, progress: Progress) -> None:
        """Run the test in this process; raises as `run_base_test`."""
        run_base_test(self.test, progress)

    def failed(self, error: str) -> None:
        pass  # a test without a record counts as missing


def open_jobs(
    workspace: Workspace, stages: Sequence[Stage], *, force: bool = False, chosen: Selection | None = None
) -> list[TrialJob | BaseTestJob]:
    """Return the jobs of a study that are not done (with `force`: all trials), base tests before trials.

    `chosen` are the trials and base tests to look at (default: all).
    """
    jobs = list[TrialJob | BaseTestJob]()
    chosen = chosen or select(workspace)
    for model in chosen.models:
        tests = [test for test in chosen.base_tests if test.model_name == model and "evaluate" in stages]
        jobs += [BaseTestJob(test) for test in tests if base_state(test).state != "done"]
        for trial in (each for each in chosen.trials if each.model_name == model):
            if force or is_open(trial, stages):
                jobs.append(TrialJob(trial, stages, force))
    return jobs


def in_turns(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in two groups, of which the second must wait: averages, for what they average."""
    averages: list[Job] = [job for job in jobs if isinstance(job, TrialJob) and job.trial.sources]
    return [[job for job in jobs if job not in averages], averages]


def counted(jobs: Sequence[object]) -> str:
    """Return how many jobs there are, and what they are: trials, or tests of bases."""
    tests = sum(isinstance(job, BaseTestJob) for job in jobs)
    parts = [(len(jobs) - tests, "trial", "trials"), (tests, "test of a base", "tests of bases")]
    kinds = [f"{count} {one if count == 1 else more}" for count, one, more in parts if count]
    return f"{len(jobs)} job{'' if len(jobs) == 1 else 's'} ({', '.join(kinds)})"


def is_open(trial: Trial, stages: Sequence[Stage]) -> bool:
    """Return whether one of these stages of a trial is not done."""
    states = stage_states(trial)
    return any(states[stage].state != "done" for stage in stages if stage in states)
