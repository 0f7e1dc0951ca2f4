"""`qlora-repeat selftest` as its user sees it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.checkout import kit

from qlora_repeat.cli.main import cli
from qlora_repeat.errors import StageError
from qlora_repeat.records.self_test import Check, SelfTest
from qlora_repeat.selftest import run
from qlora_repeat.selftest.bench import Bench


def test_this_machine_passes_and_the_results_are_kept(tmp_path: Path) -> None:
    done = kit("selftest", "--runs", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:9]] == ["passed"] * 9
    assert re.match("(passed|cannot tell) +seconds of a step", lines[9])  # other work on the machine
    assert "two processes, deterministic kernels: the same bits: 4 of 4 trials" in done.stdout
    (path,) = tmp_path.iterdir()
    assert last.startswith("self-test of 20")
    assert last.endswith(str(path))
    found = json.loads(path.read_text())
    assert [check["outcome"] for check in found["checks"][:9]] == ["passed"] * 9
    assert found["fingerprint"]["packages"]["torch"]


def test_a_folder_that_cannot_be_made_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = kit("selftest", "--runs", tmp_path / "file" / "runs", timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"Error: {tmp_path}/file")


def test_a_check_that_fails_is_named_and_ends_in_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> Any:
        raise KeyError("no such thing")

    def stopped(bench: Bench) -> Any:
        raise StageError("the job failed; see log.txt")

    three = {"one": broken, "two": stopped, "three": lambda bench: ("passed", "1", {})}
    monkeypatch.setattr(run, "CHECKS", three)
    done = CliRunner().invoke(cli, ["selftest", "--runs", str(tmp_path)])
    assert "failed       one: KeyError: 'no such thing'; see " in done.stdout
    log = Path(re.findall(r"see (\S+one\.txt)", done.stdout)[0])
    assert "Traceback" in log.read_text()
    assert "failed       two: the job failed; see log.txt\npassed       three: 1\n" in done.stdout
    assert isinstance(done.exception, StageError)
    assert str(done.exception).startswith("2 of 3 checks failed; ")
    shutil.rmtree(log.parent)


def test_a_later_test_keeps_the_checks_that_it_does_not_repeat() -> None:
    def tested(full: bool, **figures: str) -> SelfTest:
        named = [Check(name.replace("_", " "), "passed", figure) for name, figure in figures.items()]
        return SelfTest("2026-01-01", 9.0, full, named, {})

    both = run.with_earlier(tested(True, full_size="new"), tested(False, software="old", gone="old"))
    assert [check.name for check in both.checks] == ["software", "full size"]
    again = run.with_earlier(tested(False, software="new"), both)
    assert [(each.name, each.figure) for each in again.checks] == [("software", "new"), ("full size", "new")]
    assert again.full
