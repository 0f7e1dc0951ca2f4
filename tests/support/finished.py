"""Finished trials without training: all files that the four stages leave, with made-up content."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy import full
from safetensors.numpy import save_file
from support.places import at

from qlora_repeat.records.record import Record, keep, write_record
from qlora_repeat.records.stage_inputs import base_inputs, stage_inputs
from qlora_repeat.records.trace import Step, trace_line
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES, Stage, Trial
from qlora_repeat.system.files import new_folder, write_text
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.hashing import weights_digest

SPLIT = 6
"""The seed of the split for tests of trials and base models."""


Outputs = Mapping[Stage, dict[str, Any]]


def finish_study(
    study: Study, runs: Path, cache: Path, more: Callable[[Trial], Outputs] = lambda trial: {}
) -> list[Trial]:
    """Finish every trial and base test of a study; `more` gives each trial's outputs for `finish`."""
    workspace = at(study, runs, cache)
    for test in workspace.base_tests():
        outputs = {**_measured(9.5), "miniature": False, "split_seed": SPLIT}
        write_record(test.record, _record("evaluate", test.name, base_inputs(test), outputs))
    trials = workspace.trials()
    for trial in trials:
        finish(trial, more=more(trial))
    return trials


def finish(trial: Trial, split: int = SPLIT, more: Outputs = MappingProxyType({})) -> None:
    """Write a trial's adapter, trace and merged model, and the record of each stage.

    `split` is the seed of the split; `more` adds to or replaces the outputs of stages.
    """
    with new_folder(trial.adapter) as folder:
        save_file({"lora_A": full((4, 8), trial.number, "f")}, folder / "adapter_model.safetensors")
        write_text(folder / "adapter_config.json", json.dumps({"r": 8, "lora_alpha": 32}))
    digest = weights_digest(trial.adapter)
    steps = [Step(0, adapter=digest), *(Step(n, n / 3, [n], 9, 3 - n / 2, 1.5, 1e-3) for n in (1, 2))]
    steps.append(Step(3, 1.0, [3], 9, 1.5, 1.5, 1e-3, adapter=digest))
    write_text(trial.trace, "".join(map(trace_line, steps)))
    with new_folder(trial.merged) as folder:
        save_file({"weight": full((16, 8), trial.number, "float16")}, folder / "model.safetensors")
        write_text(folder / "config.json", json.dumps({"architectures": ["LlamaForCausalLM"]}))
    outputs: dict[str, dict[str, Any]] = {
        "finetune": {
            "adapter_digest": digest,
            "seeds": {"split": split, "adapter_init": 7, "data_order": 8, "dropout": 9},
            "steps": 3,
            "initial_loss": 2.5,
            "final_loss": 1.5,
            "loss_curve": [[1.0, 2.0]],
            "diverged_at": None,
            "train_seconds": 3.25,
            "peak_memory_bytes": 2**30,
            "peak_memory_share": None,
            "weights": "nf4",
            "miniature": False,
        },
        "merge": {"merged_digest": weights_digest(trial.merged), "merged_bytes": 256},
        "evaluate": {**_measured(8.25), "responses": [], "repeated_responses": []},
        "time": {"test_seconds": 1.5, "test_seconds_min": 1.25, "test_seconds_max": 1.75},
    }
    upstream: dict[str, Any] = {}
    for stage in STAGES:
        outputs[stage] |= more.get(stage, {})
        inputs = stage_inputs(trial, stage, upstream)
        kept = {
            "finetune": [trial.trace, *trial.adapter.iterdir()],
            "merge": [*trial.merged.iterdir()],
        }.get(stage, [])
        files = {path.relative_to(trial.folder).as_posix(): keep(path) for path in kept}
        write_record(trial.record(stage), _record(stage, trial.name, inputs, outputs[stage], files))
        upstream |= outputs[stage]


def _measured(perplexity: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_example_mean": perplexity + 0.125,
        "test_examples": 6,
        "accuracy": None,
    }


def _record(
    stage: str, trial: str, inputs: dict[str, Any], outputs: dict[str, Any], files: Any = None
) -> Record:
    begun, ended = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"
    return Record(stage, trial, inputs, outputs, files or {}, fingerprint(), begun, ended, 1.25)
