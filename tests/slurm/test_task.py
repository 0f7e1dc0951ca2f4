"""A cluster's job is asked to stop: real processes without a scheduler."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from qlora_repeat.errors import MissingError, StageError
from qlora_repeat.slurm.task import MOST_KILLED, Task, image_state

STOPS = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("checkpoint").touch()
    sys.exit(6)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path("started").touch()
time.sleep(60)
"""
IGNORES = STOPS.replace("sys.exit(6)", "time.sleep(60)")


def interrupted(task: Task, folder: Path) -> Any:
    """Call `checkpoint` on a signal while the task waits, as submitit does; return the result."""
    found: list[Any] = []

    def handler(number: int, frame: FrameType | None) -> None:
        found.append(task.checkpoint())
        raise InterruptedError

    def ask() -> None:
        while not (folder / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    (folder / "started").unlink(missing_ok=True)
    before = signal.signal(signal.SIGUSR1, handler)
    threading.Thread(target=ask).start()
    try:
        with pytest.raises(InterruptedError):
            task()
    finally:
        signal.signal(signal.SIGUSR1, before)
    return found[0]


def test_a_process_that_stops_on_the_signal_writes_its_checkpoint(tmp_path: Path) -> None:
    task = Task([[sys.executable, "-c", STOPS]], str(tmp_path), warning=40)
    again = interrupted(task, tmp_path)
    assert (tmp_path / "checkpoint").exists()
    assert again.function == task


def test_a_process_that_ignores_the_signal_is_killed_and_finally_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task([[sys.executable, "-c", IGNORES]], str(tmp_path), warning=31)
    for times in range(1, MOST_KILLED):
        task = interrupted(task, tmp_path).function
        assert task.killed == times
    assert interrupted(task, tmp_path) is None
    assert "longer --time" in capsys.readouterr().out


def test_all_commands_run_and_a_failure_is_reported(tmp_path: Path) -> None:
    fails = [sys.executable, "-c", "raise SystemExit(4)"]
    works = [sys.executable, "-c", "open('done', 'w')"]
    with pytest.raises(StageError, match="exit code 4"):
        Task([fails, works], str(tmp_path), warning=40)()
    assert (tmp_path / "done").exists()


def test_a_changed_image_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "kit.sif"
    path.write_bytes(b"one")
    task = Task([["true"]], str(tmp_path), 40, image_state(path))
    task()
    path.write_bytes(b"another")
    with pytest.raises(MissingError, match="changed since this task was submitted"):
        task()
    path.unlink()
    with pytest.raises(MissingError, match="changed since this task was submitted"):
        task()
