"""The remaining time of a run, estimated from the progress of its jobs."""

from pathlib import Path

import pytest
from support.places import at

from qlora_repeat.execution.eta import TimeLeft
from qlora_repeat.execution.jobs import BaseTestJob, TrialJob
from qlora_repeat.execution.process_pool import Job
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES, BaseTest


@pytest.fixture
def jobs(study: Study, tmp_path: Path) -> list[Job]:
    """Return a base test and four trials of its model, then two trials of another model."""
    trials = at(study, tmp_path).trials()
    own = [TrialJob(trial, STAGES) for trial in trials]
    (test,) = at(study, tmp_path).base_tests("tiny-neox")
    return [BaseTestJob(test), *own[:4], *own[4:6]]


def test_there_is_no_estimate_before_two_steps_of_a_trial_are_done(jobs: list[Job]) -> None:
    left = TimeLeft(jobs, 2)
    assert left.left(0) is None
    for job in jobs[:2]:
        left.started(job, 0)
    left.ended(jobs[0], 3, well=True)
    assert left.left(3) is None, "a base test says nothing about the time of a trial"
    left.progress(jobs[1], "finetune", 0, 1, 5)
    left.progress(jobs[1], "finetune", 1, 40, 20)
    assert left.left(20) is None, "a trial loads models and data before its first step"
    left.progress(jobs[1], "finetune", 2, 40, 21)
    assert left.left(21) is not None


def test_steps_give_a_lower_bound(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:5], 1)
    left.started(jobs[1], 0)
    left.progress(jobs[1], "finetune", 1, 41, 20)
    left.progress(jobs[1], "finetune", 11, 41, 30)
    found = left.left(30)
    assert found is not None
    assert (found.seconds, found.at_least) == (30 + 3 * 60, True)
    found = left.left(35)
    assert found is not None and found.seconds == 25 + 3 * 60, "time passes between steps"


def test_steps_before_a_resumed_checkpoint_count_as_no_time(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:2], 1)
    left.started(jobs[1], 0)
    left.progress(jobs[1], "finetune", 1001, 2000, 10)
    left.progress(jobs[1], "finetune", 1002, 2000, 11)
    found = left.left(11)
    assert found is not None and found.seconds == 998


def test_a_stage_without_steps_keeps_the_last_estimate(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:3], 1)
    left.started(jobs[1], 0)
    left.progress(jobs[1], "finetune", 1, 3, 1)
    left.progress(jobs[1], "finetune", 3, 3, 3)
    left.progress(jobs[1], "merge", 0, 1, 4)
    found = left.left(4)
    assert found is not None and found.seconds == 4, "of the other trial"


def test_ended_trials_give_the_time_of_other_trials_of_their_model(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:], 2)
    for job in jobs[1:3]:
        left.started(job, 0)
    for job, end in zip(jobs[1:3], (90, 110), strict=True):
        left.ended(job, end, well=True)
    found = left.left(110)
    assert found is not None
    assert (found.seconds, found.at_least) == (4 * 100 / 2, False), "from any model"
    left.started(jobs[5], 110)
    left.ended(jobs[5], 114, well=True)
    found = left.left(114)
    assert found is not None and found.seconds == (2 * 100 + 4) / 2


def test_more_workers_do_not_shorten_the_last_trial(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:3], 2)
    for job in jobs[1:3]:
        left.started(job, 0)
    left.ended(jobs[1], 60, well=True)
    left.progress(jobs[2], "finetune", 1, 100, 10)
    left.progress(jobs[2], "finetune", 51, 100, 60)
    found = left.left(60)
    assert found is not None and found.seconds == 49, "it takes longer than the other trial"


def test_a_failed_job_does_not_change_the_estimate(jobs: list[Job]) -> None:
    left = TimeLeft(jobs[1:4], 1)
    left.started(jobs[1], 0)
    left.ended(jobs[1], 0, well=False)
    assert left.left(0) is None
    for job in jobs[2:4]:
        left.started(job, 0)
        left.ended(job, 7, well=True)
    found = left.left(7)
    assert found is not None and found.seconds == 0


def test_base_tests_alone_have_an_estimate(study: Study, tmp_path: Path) -> None:
    workspace = at(study, tmp_path)
    tests = [BaseTestJob(BaseTest(workspace, "tiny-neox", number)) for number in (1, 2, 3)]
    left = TimeLeft(tests, 1)
    left.started(tests[0], 0)
    left.ended(tests[0], 5, well=True)
    found = left.left(5)
    assert found is not None and (found.seconds, found.at_least) == (10, False)
