"""Requests to stop, from a scheduler or the keyboard, at inconvenient moments."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import at

from qlora_repeat.errors import StoppedError
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.stages import evaluate, finetune
from qlora_repeat.study.study import Study
from qlora_repeat.system.signals import signals_blocked, stop_on_signals

READS_SLOWLY = """
import sys, time
from qlora_repeat.cli.main import main
from qlora_repeat.study import toml_file
def read_slowly(*arguments, **options):
    print("reads", flush=True)
    time.sleep(60)
toml_file.read_file = read_slowly
sys.argv = ["qlora-repeat", "run", "slow.toml"]
main()
"""
LATE = """
import sys, time
from qlora_repeat.errors import StoppedError
from qlora_repeat.system.signals import stop_on_signals
print("there", flush=True)
sys.stdin.read()
try:
    with stop_on_signals(keyboard=False):
        time.sleep(60)
except StoppedError as error:
    print(error)
"""
TWICE = """
import os, signal
from qlora_repeat.errors import StoppedError
from qlora_repeat.system.signals import stop_on_signals
try:
    with stop_on_signals(keyboard=False):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)
            print("cleaned up")
except StoppedError as error:
    print(error)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_handler_is_set_is_not_lost(number: signal.Signals) -> None:
    with signals_blocked():
        process = subprocess.Popen(
            [sys.executable, "-c", LATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert process.communicate("")[0] == f"stopped by {number.name}\n"
    assert process.returncode == 0


def test_a_second_signal_does_not_interrupt_the_cleanup() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert done.stdout == "cleaned up\nstopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 6, "Error: stopped by SIGTERM"),
        (signal.SIGUSR1, 6, "Error: stopped by SIGUSR1"),
        (signal.SIGINT, 130, "Stopped. Finished work is kept; run the same command to resume."),
    ],
)
def test_a_stopped_command_says_so_in_one_line(
    number: signal.Signals, code: int, line: str, tmp_path: Path
) -> None:
    (tmp_path / "slow.toml").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", READS_SLOWLY],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test in the background of a shell ignores Ctrl-C, and its child processes would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reads\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert [each for each in errors.splitlines() if each] == [line]


@pytest.mark.parametrize("what", ["trial", "base"])
def test_a_stop_that_a_library_turned_into_its_own_error_is_a_stop(
    what: str, cache: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise another error, as transformers does while it loads weights."""

    def load(*arguments: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StoppedError as error:
            raise RuntimeError("issues during automatic conversion") from error

    monkeypatch.setattr(finetune, "load_frozen_base", load)
    monkeypatch.setattr(evaluate, "load_full", load)
    trial = at(study, tmp_path / "runs", cache).trials()[0]
    with pytest.raises(StoppedError, match="by SIGTERM"), stop_on_signals(keyboard=False):
        if what == "trial":
            run_trial(trial, ["finetune"], lambda *progress: None)
        else:
            run_base_test(trial.workspace.base_tests(trial.model_name)[0], lambda *progress: None)
    assert not trial.failure.exists()
