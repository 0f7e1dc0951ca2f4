"""Nothing that the kit prints can move a cursor, color a line, or reverse the order of letters."""

import io
import json
import re
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.text import Text
from support.checkout import copy_folder
from support.laboratory import Lab
from support.made_results import ANY_TEXT
from support.terminal import has_colors, in_terminal, kit_command

from qlora_repeat.api.colors import colored
from qlora_repeat.api.console import PrintableConsole
from qlora_repeat.api.progress import Terminal
from qlora_repeat.cli.main import main
from qlora_repeat.render.html import render_html
from qlora_repeat.system.files import json_text, write_json
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.printable import one_line, printable, printable_json

CLEARING = (
    "\x1b[2J\x1b[H\x1b]0;owned\x07\x9b31m\rverified"
    "\u202e\u2066\u200b\ud800\x7f\u2028\x85 6\nall files are whole"
)
"""Clears the screen, sets the title, colors, returns, reverses, and adds a line that tells success."""
DANGEROUS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
IN_NAMES = CLEARING.replace("\ud800", "")
"""TOML and command lines have no such lone surrogates."""
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}
ANY = st.one_of(ANY_TEXT, st.text(st.characters(categories=[*HIDDEN, "L"])))


@given(ANY)
def test_a_text_has_no_character_that_cannot_be_seen(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert all(letter in " \n" or unicodedata.category(letter) not in HIDDEN for letter in shown)
    assert printable(shown) == shown
    assert "\n" not in one_line(text)


@given(ANY)
def test_json_has_the_same_value_and_no_such_character(text: str) -> None:
    shown = printable_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert printable(shown) == shown
    assert json.loads(shown) == {text: [text]}


def test_ordinary_text_is_unchanged() -> None:
    text = "SmolLM2-135M – „größer“ × 0.5 ± 1 中文 🙂…\n  second line\n"
    assert printable(text) == text


@given(ANY)
def test_pages_show_codes(text: str) -> None:
    page = render_html("study_verdict.html.j2", found=_Found(text))
    assert not DANGEROUS.search(page)
    page.encode()


class _Found:
    """A verification of a study whose name is a stranger's."""

    recorded = 1
    trials = ()

    def __init__(self, text: str) -> None:
        self.study, self.sentences = text, [text]


@pytest.fixture
def hostile(finished: Lab, tmp_path: Path) -> Lab:
    """Return a lab with a stranger's errors, a trial's log, and keys and values in valid records."""
    copy_folder(finished.folder, tmp_path / "lab")
    lab = Lab(tmp_path / "lab", finished.cache)
    first, second, third, fourth = sorted(lab.runs.glob("tiny/*/*/trial-*"))[:4]
    (first / "finetune.json").unlink()
    write_json(first / "failed.json", {"error": IN_NAMES})
    (first / "trial.log").write_text(CLEARING, "utf-8", "replace")
    _change(
        second / "finetune.json", lambda record: record["inputs"]["settings"].update({CLEARING: CLEARING})
    )
    _change(
        third / "evaluate.json", lambda record: record["outputs"].update(responses=[{CLEARING: CLEARING}])
    )
    _change(fourth / "finetune.json", lambda record: record["files"].update({CLEARING: {}}))
    return lab


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record as its author could, with the digest that belongs to it."""
    content = json.loads(path.read_text("utf-8"))
    del content["digest"]
    change(content)
    path.write_bytes(json_text(content | {"digest": json_digest(content)}).encode("utf-8", "surrogatepass"))


def _folder(lab: Lab, place: int) -> Path:
    return sorted(lab.runs.glob("tiny/*/*/trial-*"))[place]


def _titled(lab: Lab) -> Path:
    """Return the study's file with a title that is refused, and shown in the error."""
    title = f"title = {json.dumps(IN_NAMES)}"
    path = lab.folder / "titled.toml"
    path.write_text(re.sub(r'(?m)^title = ".*"', lambda _: title, lab.study.read_text("utf-8")), "utf-8")
    return path


COMMANDS: dict[str, Callable[[Lab], list[object]]] = {
    "check": lambda lab: ["check", lab.study],
    "status": lambda lab: ["status", lab.study],
    "status of a trial": lambda lab: ["status", "llama/adamw-32bit/1", "--study", lab.study],
    "show": lambda lab: ["show", lab.study],
    "collect": lambda lab: ["collect", lab.study],
    "verify": lambda lab: ["verify", _folder(lab, 3), "--study", lab.study],
    "diff": lambda lab: ["diff", _folder(lab, 1), _folder(lab, 2), "--study", lab.study],
    "diff as JSON": lambda lab: ["diff", _folder(lab, 1), _folder(lab, 2), "--study", lab.study, "--json"],
    "diff of a damaged trial": lambda lab: ["diff", _folder(lab, 1), _folder(lab, 3), "--study", lab.study],
    "tables": lambda lab: ["tables", lab.study, "--format", "terminal"],
    "doctor": lambda lab: ["doctor", lab.study, "--json"],
    "a study's title": lambda lab: ["check", _titled(lab)],
    "no such file": lambda lab: ["unpack", f"{IN_NAMES}.zip"],
    "no such option": lambda lab: ["check", f"--{IN_NAMES}"],
    "no such command": lambda lab: [IN_NAMES],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_text_of_strangers_as_text(
    command: str, hostile: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = COMMANDS[command](hostile)
    if len(given) > 1 and given[0] not in ("unpack", "show"):
        given += ["--cache", hostile.cache] if given[0] != "tables" else []
        given += ["--runs", hostile.runs]
    monkeypatch.setattr(sys, "argv", ["qlora-repeat", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = "".join(capsys.readouterr())
    assert ended.value.code != 1, shown  # not a bug
    assert not DANGEROUS.search(shown), shown
    assert "\nall files are whole" not in shown


def test_a_terminal_gets_the_colors_of_the_kit_alone(hostile: Lab) -> None:
    given = ["status", hostile.study, "--runs", hostile.runs, "--cache", hostile.cache]
    written = in_terminal([kit_command(), *given], columns=200)
    assert has_colors(written)
    assert "owned" in written, "the stranger's text is there"
    assert not DANGEROUS.search(re.sub(r"\x1b\[[0-9;]*m|\r\n", "", written))


def test_a_tampered_archive_cannot_write_to_the_terminal(
    hostile: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"runs/{IN_NAMES}", "")
    for words in (["unpack", path], ["check", path], ["verify", f"{path}:a/b/1"]):
        monkeypatch.setattr(sys, "argv", ["qlora-repeat", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = "".join(capsys.readouterr())
        assert (ended.value.code, bool(DANGEROUS.search(shown))) == (3, False), shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize("live", [False, True])
def test_progress_prints_text_of_strangers_as_text(live: bool) -> None:
    file = io.StringIO()
    shown = PrintableConsole(
        file=file, force_terminal=live, color_system=None, width=200, legacy_windows=False
    )
    with Progress(console=shown, transient=True) as bars:
        bars.add_task(CLEARING, total=3)
        shown.print(Text(CLEARING), CLEARING, colored(CLEARING, "failed"))
        Terminal(shown).tell(CLEARING)
    written = file.getvalue()
    assert "owned" in written
    assert not DANGEROUS.search(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", written.replace("\\x1b", "")))
    assert "\x1b[2J\x1b[H" not in written and "\x1b]0" not in written
