"""`power`: from a pilot or a stated SD, with a plot, and mistakes in one line."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import KitError


@pytest.fixture
def pilot(tmp_path: Path) -> Path:
    path = tmp_path / "pilot.csv"
    path.write_text("accuracy\n" + "".join(f"{50 + each}\n" for each in range(7)))
    return path


def asked(*words: object) -> Result:
    return CliRunner().invoke(cli, ["power", *map(str, words)])


def test_a_stated_sd_answers_in_one_line_for_each_test() -> None:
    lines = asked("--sd", 1, "--difference", 1).output.splitlines()
    assert lines[2:4] == ["difference of means (t test), 1 (1 SD)", "  needs 17 trials in each arm"]


def test_a_pilot_gives_the_sd_and_what_it_leaves_open(pilot: Path) -> None:
    shown = asked(pilot, "--difference", 4).output
    assert shown.startswith("pilot pilot: 7 values of accuracy, SD 2.16\n")
    assert "as the pilot leaves the SD open" in shown
    assert "  7 trials in each arm find it in 89 % of cases" in shown


def test_without_an_effect_the_smallest_ones_are_shown(pilot: Path) -> None:
    shown = asked(pilot).output
    assert "7 trials in each arm can find 3.53 (1.63 SD)" in shown
    assert "7 trials in each arm can find 77 % beside 0 %" in shown


def test_the_plot_is_drawn(pilot: Path, tmp_path: Path) -> None:
    done = asked(pilot, "--rates", 0, 0.6, "--plot", tmp_path / "power.png")
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "power.png").read_bytes().startswith(b"\x89PNG")


WRONG: dict[str, tuple[list[object], str]] = {
    "no effect": ([], "give --difference, --ratio or --rates, or a pilot or --trials"),
    "no SD": (["--difference", 1], "--difference needs --sd or a pilot"),
    "a negative SD": (["--sd", -1, "--difference", 1], "SD -1: expected above 0"),
    "no difference": (["--sd", 1, "--difference", 0], "difference 0: expected one that is not 0"),
    "a ratio below 1": (["--ratio", 0.5], "ratio 0.5: expected above 1"),
    "equal rates": (["--rates", 0.5, 0.5], "rates 0.5 and 0.5: expected two different ones"),
    "a rate above 1": (["--rates", 0, 2], "rates 0 and 2: expected two different ones from 0 to 1"),
    "no power": (["--ratio", 2, "--power", 1], "power 1: expected between"),
    "another kind of plot": (["--rates", 0, 0.9, "--plot", "x.gif"], "x.gif: expected a file that ends in"),
    "a plot of nothing": (["--trials", 7, "--plot", "x.png"], "--plot needs --difference"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_gives_one_line(mistake: str) -> None:
    words, error = WRONG[mistake]
    done = asked(*words)
    assert isinstance(done.exception, KitError), done.output
    assert error in str(done.exception)
