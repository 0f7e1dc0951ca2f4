"""CONTRIBUTING.md, CHANGELOG.md and `make help` are complete and up to date."""

import re
import subprocess
import tomllib

from support.checkout import ROOT

from qlora_repeat import __version__

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_contributing_names_every_folder() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {f"{path.split('/')[0]}/" for path in listed.splitlines() if "/" in path and path[0] != "."}
    assert sorted(folder for folder in folders if f"`{folder}" not in CONTRIBUTING) == []


def test_the_drawing_shows_the_layers_that_lint_checks() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in rules["contracts"] if contract["type"] == "layers")
    drawn = re.findall(r"^ {4}([a-z]+(?: \| [a-z]+)*)  +[A-Z].+\.$", CONTRIBUTING, re.MULTILINE)
    assert drawn == layers


def test_make_help_shows_every_target_under_a_heading() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    groups = listed.strip().split("\n\n")
    shown = [re.findall(r"^  make ([\w-]+) +\S", group, re.MULTILINE) for group in groups]
    assert all(not group.startswith(" ") and targets for group, targets in zip(groups, shown, strict=True))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = " ".join(re.findall(r"^\.PHONY: ([a-z].*)$", makefile, re.MULTILINE)).split()
    assert sorted(name for names in shown for name in names) == sorted(targets)


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert versions[0][0] == __version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
