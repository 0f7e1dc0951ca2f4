"""Progress of a run in terminals of several widths, in logs, in CI, and without colors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.terminal import environment, has_colors, in_terminal, kit_command, lines, moves
from support.tiny import write_study

RUN = """
import sys, time
from qlora_repeat.errors import StageError
from qlora_repeat.api.progress import Display, console
from qlora_repeat.execution.jobs import TrialJob
from qlora_repeat.study.loading import open_workspace

jobs = [TrialJob(trial, ["finetune"]) for trial in open_workspace("pocket").trials()[-3:]]
with Display(console(), jobs, 2, sign_of_life=float(sys.argv[1])) as display:
    for job in jobs[:2]:
        display.started(job)
    for step in range(1, 6):
        for job in jobs[:2]:
            display.progress(job, "finetune", step, 6000, 165687.9312)
        time.sleep(0.05)
    time.sleep(0.6)  # lines are drawn four times a second
    display.ended(jobs[0], None, 1)
    display.ended(jobs[1], StageError("no space left"), 1)
    display.started(jobs[2])
    time.sleep(0.6)
    display.ended(jobs[2], None, 1)
"""
"""Jobs with the longest names of the pocket study, reported as `run_jobs` reports them."""


def draw(columns: int = 80, rows: int = 24, **variables: str) -> str:
    return in_terminal([sys.executable, "-c", RUN, 600], columns, rows, variables)


def piped(sign_of_life: float = 600, **variables: str) -> str:
    command = [sys.executable, "-c", RUN, str(sign_of_life)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def test_a_run_in_a_terminal_of_60_columns(cache: Path, tmp_path: Path) -> None:
    """Run a base test and a trial; check what is drawn, and that no line is wider than the terminal."""
    study = write_study(
        tmp_path,
        ("trials = 2", "trials = 1"),
        ('["adamw-8bit", "adamw-32bit"]', '["adamw-8bit"]'),
        ("\nsteps = 3", "\nsteps = 12"),
    )
    study.write_text(study.read_text().partition("[models.tiny-llama-chat]")[0])
    command = [kit_command(), "run", study, "--runs", tmp_path / "runs", "--cache", cache, "--jobs", 1]
    command += ["--no-report"]
    written = in_terminal(command, columns=60)
    drawn = lines(written)
    assert [line for line in drawn if len(line) > 60 and "results.jsonl" not in line] == []
    assert found(drawn, r"tiny-neox/adamw-8bit/1 finetune +\d+/12 loss \d+\.\d{3}")
    assert found(drawn, r"1/2 ━+╸?╺?━* at least 0:\d\d:\d\d left, 0:\d\d:\d\d so far ?")
    assert found(drawn, r"\[2/2\] tiny-neox/adamw-8bit/1 done \(\d+ s\)")
    assert found(drawn, r"2 jobs in 0:\d\d:\d\d")
    assert "kernels-community" not in written, "a library prints this when it is imported"


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    written = draw(columns)
    drawn = lines(written)
    assert "Traceback" not in written
    bar = [line for line in drawn if line.startswith("0/3 ")]
    assert bar and all("━" in line for line in bar)
    live = [line for line in drawn if " finetune 5/6" in line or "━" in line]
    assert len(live) > len(bar)
    assert max(map(len, live)) <= min(columns, 100)
    assert found(drawn, r".*2bit/6 finetune 5/6000 loss 165687\.931") or columns < 40, (
        "the trial's number stays visible"
    )
    if columns >= 80:
        assert "neox-pocket-chat/adamw-32bit/5 finetune 5/6000 loss 165687.931" in drawn


def test_a_low_terminal_shows_the_total_progress() -> None:
    drawn = lines(draw(rows=2))
    assert found(drawn, r"0/3 ━+.* so far ?")
    assert not found(drawn, r"neox-pocket-chat/adamw-32bit/6 finetune .*")


def test_finished_jobs_are_lines_above_the_running_ones() -> None:
    drawn = lines(draw())
    assert found(drawn, r"\[1/3\] neox-pocket-chat/adamw-32bit/5 done \(1 s\)")
    assert found(drawn, r"\[2/3\] not done: no space left \(1 s\)")
    assert found(drawn, r"neox-pocket-chat/adamw-32bit/7 starting")
    assert found(drawn, r"0/3 ━+.* at least \d:\d\d:\d\d left, 0:00:\d\d so far ?")
    assert found(drawn, r"2/3 ━+.* \d:\d\d:\d\d left, 0:00:\d\d so far ?"), "a trial has ended"


def test_progress_is_drawn_without_colors_too() -> None:
    colored, plain = draw(), draw(NO_COLOR="1")
    assert (has_colors(colored), has_colors(plain)) == (True, False)
    assert moves(colored) and moves(plain)
    assert found(lines(plain), r"2/3 ━+.* so far ?")


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"CI": "true"}, {"TTY_COMPATIBLE": "0"}], ids=str)
def test_a_terminal_without_cursor_movement_gets_plain_lines(variables: dict[str, str]) -> None:
    written = draw(**variables)
    assert not moves(written)
    assert [re.sub(r"\d:\d\d:\d\d", "TIME", line) for line in lines(written)] == [
        "[1/3] neox-pocket-chat/adamw-32bit/5 done (1 s, TIME left)",
        "[2/3] not done: no space left (1 s, TIME left)",
        "[3/3] neox-pocket-chat/adamw-32bit/7 done (1 s)",
        "3 jobs in TIME",
    ]


@pytest.mark.parametrize("ci", ["", "0", "false"])
def test_empty_or_false_values_of_ci_mean_no_ci(ci: str) -> None:
    assert moves(draw(CI=ci))


def test_a_pipe_gets_lines_without_any_escape_code() -> None:
    assert "\x1b" not in piped()


def test_a_pipe_with_forced_colors_gets_no_cursor_movement() -> None:
    written = piped(FORCE_COLOR="1")
    assert has_colors(written) and not moves(written)
    assert lines(written) and not found(lines(written), ".*━.*")


def test_a_log_gets_a_sign_of_life_from_time_to_time() -> None:
    logged = lines(piped(sign_of_life=0))
    assert "[0/3] neox-pocket-chat/adamw-32bit/5: finetune 1/6000 loss 165687.931" in logged
    assert found(
        logged, r"\[0/3\] neox-pocket-chat/adamw-32bit/6: finetune 5/6000 loss .* \(at least .* left\)"
    )
    assert not [line for line in lines(piped()) if "/6000" in line], "but not at every step"


def found(drawn: list[str], pattern: str) -> bool:
    """Return whether one of the lines matches the pattern."""
    return any(re.fullmatch(pattern, line) for line in drawn)
