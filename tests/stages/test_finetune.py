"""Changes to a fine-tuning: the state map, one weight, and the number of steps."""

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.places import at
from support.tiny import write_study
from support.trials import outputs, quiet

from qlora_repeat.analysis.trial_diff import first_divergence
from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import trial_state
from qlora_repeat.stages import finetune
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import Trial

SEVERAL = ("\nsteps = 3", "\nsteps = 4")
PINNED = ('adapter_init = "fresh"', "adapter_init = 7")


def trained(folder: Path, cache: Path, optimizer: str, *changes: tuple[str, str], number: int = 1) -> Trial:
    folder.mkdir()
    study = load_study(f"{write_study(folder, SEVERAL, PINNED, *changes)}@{optimizer}")
    trial = at(study, folder / "runs", cache).trial(f"tiny-neox/{optimizer}/{number}")
    run_trial(trial, ["finetune"], quiet)
    return trial


def test_the_old_map_changes_the_second_update(cache: Path, tmp_path: Path) -> None:
    """Compare updates; the first one does not use stored second moments."""
    today = trained(tmp_path / "today", cache, "adamw-8bit")
    old = trained(tmp_path / "old", cache, "adamw-8bit+bitsandbytes-0.41.0")
    parted = first_divergence(read_trace(today.trace), read_trace(old.trace))
    assert parted is not None
    assert (parted.step, parted.kind) == (2, "update")


@pytest.mark.parametrize("number", [1, 2])
def test_a_nudge_changes_one_weight_by_one_ulp(number: int, cache: Path, tmp_path: Path) -> None:
    still = trained(tmp_path / "still", cache, "adamw-32bit", number=number)
    nudged = trained(tmp_path / "nudged", cache, "adamw-32bit", NUDGE, number=number)
    parted = first_divergence(read_trace(still.trace), read_trace(nudged.trace))
    assert parted is not None
    assert (parted.step, parted.kind) == (0, "init")
    ours, theirs = (load_file(trial.adapter / "adapter_model.safetensors") for trial in (still, nudged))
    most = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert 0 < most < 1e-3, "the difference stays small"


NUDGE = ('kernels = "default"\n\n[profiles.seeded]', 'kernels = "default"\nnudge = true\n\n[profiles.seeded]')


def test_the_first_steps_equal_those_of_a_whole_trial(cache: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", cache, "adamw-8bit", ('schedule = "constant"', 'schedule = "cosine"'))
    begun = at(whole.study, tmp_path / "begun", cache).trial(whole.name)
    steps: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None:
            steps.append((done, total))

    run_trial(begun, ["finetune"], progress, until_step=3)
    assert read_trace(begun.unfinished / "trace.jsonl") == read_trace(whole.trace)[:4]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert not begun.adapter.exists()
    assert trial_state(begun).state == "missing"
    record, all_of_it = read_record(begun.first_steps), read_record(whole.record("finetune"))
    assert record is not None and all_of_it is not None
    assert record.inputs == all_of_it.inputs
    assert record.outputs == {"seeds": all_of_it.outputs["seeds"], "steps": 3}
    run_trial(begun, ["finetune"], quiet)
    assert read_trace(begun.trace) == read_trace(whole.trace), "it resumes after them"


def test_loading_does_not_count_as_peak_memory(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load a base with 1.2 GB of temporary memory, as a large model needs it, also after the last step."""
    if torch.cuda.is_available() or not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the resident memory of this process is not measured, or its peak cannot be reset")
    load, spike = finetune.load_frozen_base, 1200 * 2**20
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    def wasteful(*arguments: Any) -> Any:
        held = mmap.mmap(-1, spike)  # not from the heap, so that it is returned
        for start in range(0, spike, mmap.PAGESIZE):
            held[start] = 1
        held.close()
        return load(*arguments)

    (tmp_path / "begun").mkdir()
    study = load_study(f"{write_study(tmp_path / 'begun', SEVERAL)}@adamw-8bit")
    trial = at(study, tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    monkeypatch.setattr(finetune, "load_frozen_base", wasteful)
    finetune.finetune(trial, quiet, {}, until_step=4)
    found = finetune.finetune(trial, quiet, {})  # loads again, and has nothing left to train
    assert found["resumed_from"] == 4
    assert 2**27 < found["peak_memory_bytes"] < resident + spike / 2
    assert found["peak_memory_share"] is None


def test_layers_that_training_never_changed_are_counted(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the only step, warm-up has a learning rate of zero."""
    constant, warm = 'schedule = "constant"', 'schedule = "constant_with_warmup"'
    trial = trained(
        tmp_path / "warm",
        cache,
        "adamw-32bit",
        (constant, warm),
        ("warmup_steps = 0", "warmup_steps = 2"),
        ONE_STEP,
    )
    adapted = 2 * 2  # two layers of two kinds
    assert outputs(trial)["untrained_layers"] == adapted
    assert (
        f"changed nothing in {adapted} of {adapted} layers with an adapter, such as"
        in capsys.readouterr().err
    )


ONE_STEP = ("\nsteps = 4", "\nsteps = 1")


class Disordered(set[str]):
    """A set in an order that PYTHONHASHSEED may give it."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), reverse=True))


def test_the_file_of_an_adapter_has_an_order_of_its_own(cache: Path, tmp_path: Path) -> None:
    """PEFT keeps names in sets, and writes them as they come."""
    trial = at(write_study(tmp_path), tmp_path / "runs", cache).trial("tiny-neox/adamw-8bit/1")
    config = finetune.lora_config(trial.study, [])
    config.target_modules = Disordered(["q_proj", "v_proj", "k_proj"])
    adapted = SimpleNamespace(peft_config={"default": config})
    finetune._name_base(adapted, trial, base_folder(trial.workspace, trial.model.base))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == ["k_proj", "q_proj", "v_proj"]
