"""Train, merge, repeat and resume a miniature of each architecture, through the steps of a user."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from support.architectures import ARCHITECTURES, write_base
from support.places import at
from support.tiny import TINY
from support.trials import outputs, quiet

from qlora_repeat.assets.fetch import fetch
from qlora_repeat.errors import StoppedError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial

STEPS = 4
_STOPPED_AT = 3
"""The step after which a trial is stopped; its checkpoint is from the step before."""
_SETTINGS = {
    'name = "tiny"': 'name = "miniatures"',
    'profile = "as-published"': 'profile = "bitwise"',
    "max_length = 128": "max_length = 32",
    "steps = 3": f"steps = {STEPS}",
    "examples = 6\n": "",
}
_ROWS = """
[data.rows]
task = "text-generation"
source = "file"
rows = 10
max_new_tokens = 4
columns = { quote = "quote" }
prompts = ["Row"]
file = { file = "rows.jsonl" }
"""
_MODEL = """
[bases.{name}]
folder = {{ path = "base" }}

[models.{name}]
title = "{name}"
base = "{name}"
data = "rows"
template = "{{quote}}"
target_modules = {targets}
"""


@dataclass(frozen=True)
class Outcome:
    """What a miniature did."""

    trains: bool = False
    """The adapter changed, and the loss is finite."""
    merges: bool = False
    """The merged model agrees with base and adapter."""
    repeats: bool = False
    """A second trial has the same adapter and merged model, bit for bit."""
    resumes: bool = False
    """So has a trial that was stopped between two checkpoints."""
    share_in_4_bits: float = 0.0
    """As the record has it."""
    untrained_layers: int = 0
    """How many adapted layers training did not change."""


def try_out(name: str, folder: Path) -> Outcome:
    """Fetch a miniature, and run its trial: twice as it is, and once with a stop.

    Raises:
        KitError: the base was refused, or a stage failed.
    """
    workspace = at(_write_study(name, folder), folder / "whole", folder / "cache")
    fetch(workspace, lambda line: None)
    trial, again, stopped = (
        replace(workspace, runs=folder / runs).trial(f"{name}/adamw-32bit/1")
        for runs in ("whole", "again", "stopped")
    )
    run_trial(trial, ["finetune", "merge"], quiet)
    first, found = outputs(trial), outputs(trial, "merge")
    run_trial(again, ["finetune", "merge"], quiet)
    try:
        run_trial(stopped, ["finetune"], _stop)
    except StoppedError:
        run_trial(stopped, ["finetune", "merge"], quiet)
    wanted = first["adapter_digest"], found["merged_digest"]
    return Outcome(
        trains=first["steps"] == STEPS and first["diverged_at"] is None,
        merges=bool(found["compared"]),
        repeats=_digests(again) == wanted,
        resumes=_digests(stopped) == wanted and outputs(stopped)["resumed_from"] == _STOPPED_AT - 1,
        share_in_4_bits=first["share_in_4_bits"],
        untrained_layers=first["untrained_layers"],
    )


def _write_study(name: str, folder: Path) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    write_base(name, folder / "base", "bfloat16")
    rows = [{"quote": f"Row {number} says {number * 7}."} for number in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = TINY.read_text(encoding="utf-8").partition("[bases.")[0]
    for old, new in _SETTINGS.items():
        assert old in text, old
        text = text.replace(old, new)
    text += _ROWS + _MODEL.format(name=name, targets=json.dumps(ARCHITECTURES[name].targets))
    (folder / "miniatures.toml").write_text(text, encoding="utf-8")
    return load_study(str(folder / "miniatures.toml"))


def _digests(trial: Trial) -> tuple[str, str]:
    return outputs(trial)["adapter_digest"], outputs(trial, "merge")["merged_digest"]


def _stop(stage: str, done: int, total: int, loss: float | None) -> None:
    if stage == "finetune" and done == _STOPPED_AT:
        raise StoppedError("stopped")
