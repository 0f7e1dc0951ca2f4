"""Fine-tunings that are killed at every step and file change resume to the same bits."""

import errno
import functools
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.places import at
from support.tiny import write_study
from support.trials import outputs

from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trace import read_trace
from qlora_repeat.stages.checkpoint import begin, checkpoint_folders, read_sealed, reopen
from qlora_repeat.stages.trainer import TracingTrainer
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.hashing import weights_digest
from qlora_repeat.system.signals import stop_on_signals

STEPS = 4
ARMS = [f"{model}/adamw-{bits}bit" for model in ("tiny-neox", "tiny-llama-chat") for bits in (8, 32)]
ARMS += ["tiny-neox/lion-8bit"]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["qlora_repeat.execution.preload"])


def fine_tune(study: Path, name: str, runs: Path, cache: Path, kind: str, moment: int, number: int) -> None:
    """Fine-tune in a process that signals itself after a step, within a step, or before a file change."""
    changes = 0

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        torch.rand(done), np.random.rand(done)  # other draws change nothing
        if kind == "step" and loss is not None and done == moment:
            os.kill(os.getpid(), number)

    def backward(trainer: TracingTrainer, *arguments: Any, **more: Any) -> Any:
        if kind == "within" and trainer.step + 1 == moment:
            os.kill(os.getpid(), number)
        return norm(trainer, *arguments, **more)

    norm, TracingTrainer._get_grad_norm = TracingTrainer._get_grad_norm, backward

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if kind == "file" and event in CHANGES and str(runs) in str(arguments[0]):
            reads = event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR)
            changes += not reads
            if changes == moment and not reads:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    with stop_on_signals(keyboard=False):
        run_trial(at(study, runs, cache).trial(name), ["finetune"], watch)


CHANGES = {"open", "os.rename", "os.remove", "os.link", "os.chmod", "os.truncate", "shutil.rmtree"}
"""Audit events of Python (PEP 578); a file is written between `open` and `os.rename`."""


class Arena:
    """Runs trials, each in its own process and folder."""

    def __init__(self, folder: Path, cache: Path, *replacements: tuple[str, str]) -> None:
        steps = ("\nsteps = 3", f"\nsteps = {STEPS}")
        optimizers = ('"adamw-32bit"]', '"adamw-32bit", "lion-8bit"]')
        self.folder, self.cache = folder, cache
        averaging = ("[bases.tiny-llama.gguf]", "[averaging]\nlast_steps = 3\n\n[bases.tiny-llama.gguf]")
        self.study = write_study(folder, steps, optimizers, averaging, *replacements)

    def start(
        self, name: str, runs: str, kind: str = "", moment: int = 0, number: int = signal.SIGKILL
    ) -> int:
        """Fine-tune in a process; return its exit code."""
        arguments = (self.study, name, self.folder / runs, self.cache, kind, moment, number)
        process = forks.Process(target=fine_tune, args=arguments)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def trial(self, name: str, runs: str) -> Trial:
        return at(self.study, self.folder / runs, self.cache).trial(name)


SEEDED = ('adapter_init = "fresh"', "adapter_init = 7")


@pytest.fixture
def arena(cache: Path, tmp_path: Path) -> Arena:
    return Arena(tmp_path, cache, SEEDED)


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """Return an uninterrupted trial of the arena's study."""
    arena = Arena(tmp_path_factory.mktemp("whole"), cache, SEEDED)

    @functools.cache
    def run(name: str) -> Trial:
        assert arena.start(name, "runs") == 0
        return arena.trial(name, "runs")

    return run


def assert_same(trial: Trial, whole: Trial) -> None:
    for kind in ("adapter_digest", "last_steps_digest"):
        assert outputs(trial)[kind] == outputs(whole)[kind]
    assert trial.trace.read_bytes() == whole.trace.read_bytes()
    assert not trial.unfinished.exists()


@pytest.mark.parametrize("arm", ARMS)
def test_killed_after_any_step_it_ends_with_the_same_adapter_and_trace(
    arm: str, arena: Arena, whole: Callable[[str], Trial]
) -> None:
    name = f"{arm}/1"
    for step in range(1, STEPS + 1):
        runs = f"killed-{step}"
        killed = arena.trial(name, runs)
        assert arena.start(name, runs, "step", step) == -signal.SIGKILL
        assert not killed.record("finetune").exists()
        assert arena.start(name, runs) == 0
        assert_same(killed, whole(name))
        assert outputs(killed)["resumed_from"] == {1: None, 2: 2, 3: 2, 4: 4}[step]


def test_killed_before_any_change_of_a_file_it_ends_with_the_same_adapter_and_trace(
    arena: Arena, whole: Callable[[str], Trial]
) -> None:
    """Each attempt is killed one file change later, until one finishes."""
    name = "tiny-neox/adamw-8bit/1"
    attempts = 1
    while (code := arena.start(name, "killed", "file", attempts)) != 0:
        assert code == -signal.SIGKILL
        attempts += 1
    assert attempts > 20
    assert_same(arena.trial(name, "killed"), whole(name))
    left = [path.name for path in arena.trial(name, "killed").folder.rglob("*") if path.name.startswith(".")]
    assert left == []


def test_fresh_seeds_are_drawn_once_however_often_it_is_killed(cache: Path, tmp_path: Path) -> None:
    arena, name = Arena(tmp_path, cache), "tiny-neox/adamw-32bit/1"
    assert arena.start(name, "runs", "step", 1) == -signal.SIGKILL
    start = read_sealed(arena.trial(name, "runs").unfinished / "start.json")
    assert start is not None
    assert arena.start(name, "runs", "step", 3) == -signal.SIGKILL
    assert arena.start(name, "runs") == 0
    assert outputs(arena.trial(name, "runs"))["seeds"] == start["seeds"]
    assert arena.start(name, "others") == 0
    assert outputs(arena.trial(name, "others"))["seeds"] != start["seeds"]


def test_a_damaged_checkpoint_is_skipped(arena: Arena, whole: Callable[[str], Trial]) -> None:
    name = "tiny-llama-chat/adamw-8bit/1"
    assert arena.start(name, "killed", "step", 3) == -signal.SIGKILL
    for file in ("adapter.safetensors", "optimizer.safetensors", "checkpoint.json", "../trace.jsonl"):
        runs = f"damaged-{Path(file).stem}"
        shutil.copytree(arena.folder / "killed", arena.folder / runs)
        damaged = arena.trial(name, runs)
        path = damaged.unfinished / "step-2" / file
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        assert arena.start(name, runs) == 0
        assert outputs(damaged)["resumed_from"] is None
        assert_same(damaged, whole(name))


def test_an_incomplete_line_of_the_trace_is_written_again(
    arena: Arena, whole: Callable[[str], Trial]
) -> None:
    name = "tiny-neox/adamw-8bit/1"
    assert arena.start(name, "killed", "step", 3) == -signal.SIGKILL
    killed = arena.trial(name, "killed")
    with (killed.unfinished / "trace.jsonl").open("a") as trace:
        trace.write('{"step": 4, "lo')
    assert arena.start(name, "killed") == 0
    assert outputs(killed)["resumed_from"] == 2
    assert_same(killed, whole(name))


def test_with_other_settings_it_starts_over(arena: Arena) -> None:
    name = "tiny-neox/adamw-8bit/1"
    assert arena.start(name, "killed", "step", 3) == -signal.SIGKILL
    arena.study.write_text(arena.study.read_text().replace("alpha = 32", "alpha = 16"))
    assert arena.start(name, "killed") == 0
    assert arena.start(name, "whole") == 0
    assert outputs(arena.trial(name, "killed"))["resumed_from"] is None
    assert_same(arena.trial(name, "killed"), arena.trial(name, "whole"))


def test_a_new_start_inherits_no_checkpoint_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "unfinished"
    begin(folder, {"alpha": 16}, {"dropout": 1}, 1)
    (folder / "step-2").mkdir()

    def broken(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call in ("rmdir", "unlink"):
        monkeypatch.setattr(os, call, broken)
    begin(folder, {"alpha": 32}, {"dropout": 1}, 1)
    assert reopen(folder, {"alpha": 32}, None) is not None
    assert checkpoint_folders(folder) == []


def test_an_older_adapter_stays_until_the_new_one_is_complete(arena: Arena) -> None:
    name = "tiny-neox/adamw-8bit/1"
    assert arena.start(name, "runs") == 0
    trial = arena.trial(name, "runs")
    old = outputs(trial)
    arena.study.write_text(arena.study.read_text().replace("alpha = 32", "alpha = 16"))
    assert arena.start(name, "runs", "step", 3) == -signal.SIGKILL
    assert outputs(trial) == old
    assert weights_digest(trial.adapter) == old["adapter_digest"]
    assert len(read_trace(trial.trace)) == STEPS + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_ends_the_step_and_keeps_a_checkpoint(
    number: signal.Signals, arena: Arena, whole: Callable[[str], Trial]
) -> None:
    name = "tiny-llama-chat/adamw-8bit/1"
    trial = arena.trial(name, "stopped")
    assert arena.start(name, "stopped", "within", 3, number) == 1, "a process that ends with an error"
    assert [path.name for path in trial.unfinished.glob("step-*")] == ["step-3"]
    assert len(read_trace(trial.unfinished / "trace.jsonl")) == 4
    assert not trial.failure.exists()
    assert arena.start(name, "stopped") == 0
    assert outputs(trial)["resumed_from"] == 3
    assert_same(trial, whole(name))


@pytest.mark.parametrize("kind", ["within", "step"])
def test_a_signal_in_or_after_the_last_step_loses_nothing(
    kind: str, arena: Arena, whole: Callable[[str], Trial]
) -> None:
    name = "tiny-neox/adamw-8bit/1"
    assert arena.start(name, kind, kind, STEPS, signal.SIGTERM) == 0
    assert_same(arena.trial(name, kind), whole(name))
