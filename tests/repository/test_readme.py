"""Trials in the documents are trials of the pocket study, and commands that need no model run."""

import re

from support.checkout import ROOT, kit
from support.places import at

from qlora_repeat.study.loading import load_study


def test_trials_in_the_documents_are_trials_of_the_pocket_study() -> None:
    study = load_study("pocket")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"\b[a-z0-9-]+/adamw-\d+bit/\d+\b", text))
    assert named
    for name in named:
        at(study, ROOT / "runs").trial(name)


def test_commands_that_need_no_model_run() -> None:
    for arguments in (["show"], ["show", "pocket"], ["status", "pocket"], ["--version"]):
        done = kit(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout
