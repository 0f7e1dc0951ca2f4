"""Fine-tunings killed at every step and at every file that is touched, and taken up again to the same bits."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_study

from qlora_repeat.checkpoint import read_sealed
from qlora_repeat.record import read_record
from qlora_repeat.stages import run_stages
from qlora_repeat.stopping import heeded
from qlora_repeat.study import load_study
from qlora_repeat.trace import read_trace
from qlora_repeat.trial import Trial, find_trial

STEPS = 4
ARMS = [
    f"{model}/{optimizer}"
    for model in ("tiny-neox", "tiny-llama-chat")
    for optimizer in ("adamw-8bit", "adamw-32bit")
]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["qlora_repeat.preload"])


def fine_tune(study: Path, name: str, runs: Path, cache: Path, kind: str, at: int, number: int) -> None:
    """Fine-tunes in a process of its own, which sends itself a signal at a step, or before it touches a file."""
    touched = 0

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        if kind == "step" and stage == "finetune" and loss is not None and done == at:
            os.kill(os.getpid(), number)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if kind != "file" or event not in TOUCHING or str(runs) not in str(arguments[0]):
            return
        touched += 1
        if touched == at:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    with heeded(keyboard=False):
        trial = find_trial(load_study(str(study)), name, runs)
        run_stages(trial, ["finetune"], cache, watch)
    # Not by way of `sys.exit`, which would touch files of others.
    os._exit(0)


TOUCHING = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.listdir"}
"""What Python tells of before it does it (PEP 578)."""

Run = Callable[..., int]


@pytest.fixture
def run(cache: Path, tmp_path: Path) -> Run:
    """Runs a fine-tuning in a process, and returns its exit code."""
    study = write_study(tmp_path, ("\nsteps = 3", f"\nsteps = {STEPS}"))

    def start(name: str, folder: str, kind: str = "", at: int = 0, number: int = signal.SIGKILL) -> int:
        arguments = (study, name, tmp_path / folder, cache, kind, at, number)
        process = forks.Process(target=fine_tune, args=arguments)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return start


def at(tmp_path: Path, folder: str, name: str) -> Trial:
    return find_trial(load_study(str(tmp_path / "tiny.toml")), name, tmp_path / folder)


def reuse_seeds(tmp_path: Path, name: str) -> None:
    """So that every run of the arm draws the same initial adapter."""
    study = tmp_path / "tiny.toml"
    study.write_text(study.read_text().replace('adapter_init = "fresh"', "adapter_init = 7"))


@pytest.mark.parametrize("arm", ARMS)
def test_killed_after_any_step_it_ends_with_the_same_adapter_and_trace(
    arm: str, run: Run, tmp_path: Path
) -> None:
    reuse_seeds(tmp_path, arm)
    name = f"{arm}/1"
    assert run(name, "whole") == 0
    whole = at(tmp_path, "whole", name)
    wanted = read_record(whole.record("finetune"))
    assert wanted is not None
    for step in range(1, STEPS + 1):
        folder = f"killed-{step}"
        assert run(name, folder, "step", step) == -signal.SIGKILL
        killed = at(tmp_path, folder, name)
        assert not killed.record("finetune").exists()
        assert run(name, folder) == 0
        found = read_record(killed.record("finetune"))
        assert found is not None
        assert found.outputs["adapter_digest"] == wanted.outputs["adapter_digest"]
        assert killed.trace.read_bytes() == whole.trace.read_bytes()
        assert found.outputs["resumed_from"] == (None if step < 2 else 2 if step < 4 else 2)
        assert not killed.unfinished.exists()
