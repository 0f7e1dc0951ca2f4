"""Commands use colors in a terminal and not in a pipe; nothing is said by color alone."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from support.checkout import ROOT
from support.finished import finish_study
from support.places import at
from support.terminal import environment, has_colors, in_terminal, kit_command, lines, moves
from support.tiny import write_study

from qlora_repeat.analysis.verify.verdict import VerdictKind
from qlora_repeat.api.colors import LEVELS, STATES, VERDICTS, with_colored
from qlora_repeat.planning.machine_checks import Level
from qlora_repeat.records.trial_state import State
from qlora_repeat.study.loading import load_study
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import write_json

NO_CACHE = Path("/nonexistent")
LOOKING = ("status", "check", "doctor")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study whose trials have every state except running."""
    folder = tmp_path_factory.mktemp("mixed")
    study, runs = load_study(str(write_study(folder))), folder / "runs"
    finish_study(study, runs, NO_CACHE)
    damaged, stale, failed, missing = (
        at(study, runs, NO_CACHE).trial(f"tiny-neox/adamw-{trial}")
        for trial in ("8bit/1", "8bit/2", "32bit/1", "32bit/2")
    )
    damaged.trace.write_text("")
    stale.record("merge").unlink()
    failed.record("time").unlink()
    write_json(failed.failure, {"time": "", "error": "the trial before was done, this one is not"})
    shutil.rmtree(missing.folder)
    return folder


def options(folder: Path) -> list[object]:
    return [folder / "tiny.toml", "--runs", folder / "runs", "--cache", NO_CACHE]


def piped(command: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in (kit_command(), command, *options(folder))],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def test_every_word_has_a_color() -> None:
    assert set(STATES) == {*get_args(State), "stopped"}
    for words, kind in ((LEVELS, Level), (VERDICTS, VerdictKind)):
        assert set(words) == set(get_args(kind))


def test_status_has_the_same_words_with_colors_and_without(mixed: Path) -> None:
    study = load_study(str(mixed / "tiny.toml"))
    running = at(study, mixed / "runs", NO_CACHE).trial("tiny-llama-chat/adamw-8bit/2")
    with exclusive(running.lock, running.name):
        colored, plain = (
            in_terminal([kit_command(), "status", *options(mixed)], 100, variables=variables)
            for variables in ({}, {"NO_COLOR": "1"})
        )
        in_a_pipe = piped("status", mixed)
    assert lines(colored) == lines(plain) == [line for line in in_a_pipe.splitlines() if line]
    assert (has_colors(colored), "\x1b" in plain, "\x1b" in in_a_pipe) == (True, False, False)
    assert (
        "8 trials: 3 done, 1 running, 1 stale, 1 damaged, 1 failed, 1 missing; 2 tests of bases: 2 done"
        in (lines(colored))
    )
    shown = dict(re.findall(r"(\x1b\[\d+m)(\w+)\x1b\[0m", colored))
    assert set(shown.values()) <= set(STATES)
    assert len(shown) > 3
    (failed,) = (line for line in colored.splitlines() if "this one is not" in line)
    assert failed.count("\x1b") == 2, "only the state has a color, not the error"


def test_status_fits_a_narrow_terminal(tmp_path: Path) -> None:
    """Show 56 trials in 80 columns, then an arm of 50 trials."""
    command = [kit_command(), "status", "pocket", "--runs", tmp_path]
    for columns, parts in ((80, 2), (100, 1)):
        drawn = lines(in_terminal(command, columns))
        assert max(map(len, drawn)) <= columns
        assert len([line for line in drawn if line.startswith("---")]) == parts
        assert sum(line.split()[1:].count("missing") for line in drawn if "/" in line) == 56 + 12
        assert drawn[-1] == "56 trials: 56 missing; 12 tests of bases: 12 missing"
    study = write_study(tmp_path, ("trials = 2", "trials = 50"))
    drawn = lines(in_terminal([kit_command(), "status", study, "--runs", tmp_path], 80, rows=100))
    assert max(map(len, drawn)) <= 80
    assert [word for line in drawn if line.startswith("  ") for word in line.split()] == [
        str(number) for number in range(1, 51)
    ]


@pytest.mark.parametrize("command", LOOKING)
def test_a_pipe_gets_colors_only_if_they_are_forced(command: str, mixed: Path) -> None:
    assert "\x1b" not in piped(command, mixed)
    assert has_colors(piped(command, mixed, FORCE_COLOR="1"))
    assert not has_colors(piped(command, mixed, FORCE_COLOR="1", NO_COLOR="1"))


def test_check_and_doctor_have_colors_in_a_terminal(mixed: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    finish_study(load_study(str(write_study(whole))), whole / "runs", NO_CACHE)
    checked = in_terminal([kit_command(), "check", *options(whole)])
    assert re.search(r"\x1b\[32m\d+ files of 8 trials are as their records say", checked)
    doctor = in_terminal([kit_command(), "doctor", "pocket"], 200)
    assert re.search(r"^\x1b\[32mok\x1b\[0m {5}", doctor, re.MULTILINE)
    assert not moves(doctor)


def test_only_the_verdict_of_the_first_line_is_colored() -> None:
    text = "tiny:different/adamw-8bit/1: within tolerance\n\nTwo losses are different, not bitwise."
    (span,) = with_colored(text, VERDICTS, most=1).spans
    assert text[span.start : span.end] == "within tolerance"
