"""docs/commands.md has the current help of the commands."""

import os
import subprocess
import sys

import pytest
from support.checkout import ROOT

from qlora_repeat.cli.main import COMMANDS
from qlora_repeat.cli.reference import PAGE

RENEW = "run `.venv/bin/python -m qlora_repeat.cli.reference` in the checkout, and commit docs/commands.md"


@pytest.fixture(scope="module")
def written() -> str:
    """Return the reference as generated in a terminal of 20 columns by a user with custom folders."""
    script = "from qlora_repeat.cli.reference import reference; print(end=reference())"
    settings = {
        "COLUMNS": "20",
        "FORCE_COLOR": "1",
        "QLORA_REPEAT_CACHE": "/mine",
        "QLORA_REPEAT_RUNS": "/mine",
    }
    settings |= {"STUDY": "/mine.toml", "RANDOMNESS": "seeded"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("QLORA_REPEAT_")}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=others | settings,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_reference_has_the_current_help(written: str) -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == written, RENEW


def test_the_reference_has_a_chapter_and_an_example_for_every_command(written: str) -> None:
    chapters = written.split("\n## ")
    assert [chapter.partition("\n")[0] for chapter in chapters[1:]] == list(COMMANDS)
    for name, chapter in zip(COMMANDS, chapters[1:], strict=True):
        assert f"\n    qlora-repeat {name} [OPTIONS]" in chapter
        assert chapter.count(f"\n    qlora-repeat {name} ") > 1, "an example"
        assert "\n- `--" in chapter or name == "show"


def test_the_reference_does_not_depend_on_the_machine(written: str) -> None:
    assert "/mine" not in written and "\x1b" not in written
    assert max(len(line) for line in written.splitlines() if not line.startswith(("- ", "|"))) <= 120
