"""What README and docs tell a newcomer to type exists, and what they link to is there."""

import re
import subprocess

import pytest
from support.checkout import ROOT, kit

from qlora_repeat.cli.main import COMMANDS
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import find_trial

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "lockfiles" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "paper" / "published" / "README.md",
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_make_targets_exist() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^make ([\w-]+)", listed, re.MULTILINE))
    named = {
        target
        for line in re.findall(r"^ {4}make (.+?)(?: +#.*)?$|`make ([^`]+)`", TEXT, re.MULTILINE)
        for target in re.sub(r'\w+=("[^"]*"|\S+)', "", " ".join(line)).split()
    }
    assert {"all", "test"} <= named
    assert named <= known


def test_subcommands_exist() -> None:
    named = set(re.findall(r"^ {4}qlora-repeat (\w+)|`qlora-repeat (\w+)", TEXT, re.MULTILINE))
    assert {"".join(pair) for pair in named} <= set(COMMANDS)


def test_trials_that_are_named_are_trials_of_the_pocket_study() -> None:
    study = load_study("pocket")
    named = set(re.findall(r"\b[a-z0-9-]+/adamw-\d+bit/\d+\b", TEXT))
    assert named
    for name in named:
        find_trial(study, name, ROOT / "runs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_commands_that_need_no_model_run() -> None:
    for arguments in (["show"], ["show", "pocket"], ["status", "pocket"], ["--version"]):
        done = kit(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout
