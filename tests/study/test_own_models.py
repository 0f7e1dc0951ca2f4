"""The how-to guide's blocks change few lines; the pocket study accepts them, and a tiny study is trained."""

import difflib
import re
from pathlib import Path

import pytest
from support.checkout import ROOT, copy_folder, kit
from support.places import at
from support.tiny import write_study

from qlora_repeat.records.record import read_record
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES

GUIDE = ROOT / "docs/howto/use-your-own-model-and-data.md"
BLOCKS = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
MODEL, DATASET, OPTIMIZER = BLOCKS
MOST_LINES = 20


def extended(plain: str, block: str) -> str:
    """Write a study file with a block: its tables at the end, other lines next to their keys."""
    if block.startswith("["):
        return f"{plain}\n{block}"
    for line in block.splitlines():
        key = line.partition(" = ")[0]
        plain = re.sub(rf"^{key} = .*$", line, plain, count=1, flags=re.MULTILINE)
    return plain


def written(plain: str, block: str, path: Path) -> Study:
    """Return the extended study, if few enough lines differ."""
    text = re.sub(
        r'^name = ".*"$', f'name = "{path.stem}"', extended(plain, block), count=1, flags=re.MULTILINE
    )
    changes = [
        line for line in difflib.ndiff(plain.splitlines(), text.splitlines()) if line[:2] in ("+ ", "- ")
    ]
    added = sum(line.startswith("+") for line in changes)
    assert 2 <= added < MOST_LINES
    assert len(changes) - added <= 3, "the old lines are kept"
    path.write_text(text, encoding="utf-8")
    return load_study(str(path))


@pytest.mark.parametrize("block", BLOCKS, ids=["model", "dataset", "optimizer"])
def test_the_pocket_study_accepts_the_block(block: str, tmp_path: Path) -> None:
    plain = (ROOT / "studies/pocket.toml").read_text("utf-8")
    study, pocket = written(plain, block, tmp_path / "mine.toml"), load_study("pocket")
    if block == OPTIMIZER:
        assert study.optimizers == ["lion-8bit", "lion-32bit"]
        assert {model.training.learning_rate for model in study.models.values()} == {3e-4}
    else:
        assert len(study.models) == len(pocket.models) + 1
    shown = kit("show", tmp_path / "mine.toml").stdout
    assert len(re.findall(r"^# [^ ]+/[^ ]+/1 to 7$", shown, re.MULTILINE)) == len(study.models) * 2


def tiny_block(block: str) -> str:
    """Use the tiny study's base and almost no pretraining."""
    changes = {"fortune_steps = 80": "fortune_steps = 1", "question_steps = 30": "question_steps = 1"}
    changes |= {"batch_size = 16": "batch_size = 2", 'base = "smollm2-135m"': 'base = "tiny-llama"'}
    for old, new in changes.items():
        block = block.replace(old, new)
    return block


@pytest.mark.parametrize(
    ("block", "trial", "of"),
    [
        (MODEL, "neox-deep/adamw-8bit/1", "query_key_value"),
        (DATASET, "smollm2-verne/adamw-32bit/1", "q_proj"),
        (OPTIMIZER, "tiny-neox/lion-8bit/2", "query_key_value"),
    ],
    ids=["model", "dataset", "optimizer"],
)
def test_a_tiny_study_with_the_block_is_trained(
    block: str, trial: str, of: str, cache: Path, tmp_path: Path
) -> None:
    own = tmp_path / "cache"
    copy_folder(cache, own)
    plain = write_study(tmp_path).read_text("utf-8")
    study = written(plain, tiny_block(block), tmp_path / "mine.toml")
    options = ["--study", tmp_path / "mine.toml", "--runs", tmp_path / "runs", "--cache", own]
    done = kit("trial", trial, *options)
    assert done.returncode == 0, done.stderr
    found = at(study, tmp_path / "runs", cache).trial(trial)
    records = [read_record(found.record(stage)) for stage in STAGES]
    assert all(records)
    assert f'"{of}"' in (found.adapter / "adapter_config.json").read_text("utf-8")
    if block == OPTIMIZER:
        assert records[0] is not None
        assert records[0].outputs["optimizer_state"].keys() >= {"uint8"}, "8-bit state"
        again = kit("verify", trial, "--steps", 2, "--scratch", tmp_path / "again", *options)
        assert "lion-8bit/2: " in again.stdout and "different" not in again.stdout
