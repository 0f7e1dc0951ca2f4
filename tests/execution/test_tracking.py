"""Tracking: a tracker shows each step of a trial, and neither its values nor failures change the trial."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from support.checkout import kit
from support.laboratory import failure, run
from support.own_rows import write_own_study
from support.places import at
from support.trials import outputs, quiet

from qlora_repeat.errors import UsageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.execution.tracking import TRACKER, choose_tracker
from qlora_repeat.records.record import read_record
from qlora_repeat.records.trace import read_trace
from qlora_repeat.study.trial import Trial

NAME = "own/adamw-8bit/1"
SEEDED = ('profile = "as-published"', 'profile = "seeded"')
STAND_IN = """
import json, os, pathlib
class Run:
    def init(self, project, name): self.say(project=project, name=name); return self
    def update(self, values, **options): self.say(config=values)
    def log(self, values, step): self.say(step=step, **values)
    def finish(self): self.say(finished=True)
    def say(self, **values):
        with pathlib.Path(os.environ["TOLD"]).open("a") as file: print(json.dumps(values), file=file)
config = run = Run()
init = run.init
"""
"""A package with the functions of trackio that accelerate calls; it writes what it is told to a file."""


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    rows = [{"quote": f"Is it {number}?"} for number in range(12)]
    return write_own_study(tmp_path / "study", rows, SEEDED, ("\ntrials = 2", "\ntrials = 1")).trial(NAME)


@pytest.fixture
def untracked(tmp_path: Path, trial: Trial) -> Trial:
    workspace = trial.workspace
    other = at(workspace.file, tmp_path / "untracked", workspace.cache).trial(NAME)
    run_trial(other, ["finetune"], quiet)
    return other


def inputs(trial: Trial) -> object:
    record = read_record(trial.record("finetune"))
    assert record is not None
    return record.inputs


def assert_same(tracked: Trial, untracked: Trial) -> None:
    assert tracked.trace.read_bytes() == untracked.trace.read_bytes()
    assert outputs(tracked)["adapter_digest"] == outputs(untracked)["adapter_digest"]
    assert inputs(tracked) == inputs(untracked)


def test_each_trial_of_a_pool_is_tracked_and_keeps_its_bits(
    untracked: Trial, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "trackio.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    workspace = trial.workspace
    places = ("--runs", workspace.runs, "--cache", workspace.cache)
    done = kit("finetune", "--all", "--study", workspace.file, "--track", "trackio", *places)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    names = {each["name"] for each in told if "name" in each}
    assert NAME in names and len(names) == 2, "each trial has its own run"
    assert any(each.get("config", {}).get("training.learning_rate") == 1e-3 for each in told)
    assert sum("finished" in each for each in told) == 2
    traced = read_trace(trial.trace)[1:]
    shown = [[step.loss, step.learning_rate, step.gradient_norm] for step in traced]
    assert all(
        each in [[e.get("loss"), e.get("learning_rate"), e.get("gradient_norm")] for e in told]
        for each in shown
    )
    assert_same(trial, untracked)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_shows_the_losses_of_the_trace(
    untracked: Trial, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(TRACKER, "tensorboard")
    run_trial(trial, ["finetune"], quiet)
    events = EventAccumulator(str(trial.folder / "tracking")).Reload()
    shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")]
    assert shown == [(step.step, step.loss) for step in read_trace(trial.trace)[1:]]
    assert_same(trial, untracked)


def test_a_tracker_that_fails_changes_nothing_and_warns_once(
    untracked: Trial,
    trial: Trial,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trackio.py").write_text("def init(**options): raise ConnectionError('no\\nnetwork')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(TRACKER, "trackio")
    run_trial(trial, ["finetune"], quiet)
    told = [line for line in capfd.readouterr().err.splitlines() if "trackio" in line]
    assert len(told) == 1
    assert "the trial continues without it" in told[0]
    assert_same(trial, untracked)


def test_a_missing_package_is_one_line_before_training(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = str(failure(run("run", study_file, "--runs", tmp_path / "runs", "--track", "wandb")))
    assert "pip install wandb" in told and "\n" not in told
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="tensorboard"):
        choose_tracker("tensorbord")
