"""The plain script of the benchmark trains, merges and evaluates as the kit does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import Example
from qlora_repeat.stages.perplexity import example_losses, perplexity
from qlora_repeat.study.study import Study

TEXTS = ["a quiet mind hears more", "what is done twice is known", "no two runs agree, and why"]


def test_the_plain_script_trains_merges_and_tests_as_the_kit_does(
    study: Study, cache: Path, tmp_path: Path
) -> None:
    base = base_folder(at(study, NO_RUNS, cache), "tiny-llama")
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = [ROOT / "benchmarks" / "baseline.py", base, lines, lines, tmp_path / "out", "--steps", "3"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout.splitlines()[-1])

    found = {}
    for name, folder in (("base", base), ("merged", tmp_path / "out" / "merged")):
        tokenizer = load_tokenizer(folder)
        ids = [tokenizer(text).input_ids for text in TEXTS]
        examples = [Example(row, each, len(each)) for row, each in enumerate(ids)]
        model = load_full(folder, "float32")
        losses = example_losses(model, examples, len(TEXTS), tokenizer.pad_token_id, lambda done: None)
        found[name] = perplexity(losses)
    assert printed["perplexity"] == pytest.approx(found["merged"], rel=1e-4)
    assert printed["perplexity"] < 0.99 * found["base"]
    assert len(printed["responses"]) == 4
    assert printed["seconds"].keys() == {"import", "load", "train", "merge", "perplexity", "responses"}


def test_an_unknown_part_of_the_benchmark_is_refused_at_once() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--only", "trial,tables"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only: tables is none of trial, arm, perplexity, workers, step" in done.stderr
