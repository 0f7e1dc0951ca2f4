"""Skipped steps, infinite losses, and resuming with every way of training."""

import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.places import at
from support.tiny import write_study
from support.trials import outputs, quiet

from qlora_repeat.errors import StoppedError
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.trace import read_trace
from qlora_repeat.results.collect import collect
from qlora_repeat.stages import finetune, trainer
from qlora_repeat.stages.trainer import TracingTrainer
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import STAGES, Trial

NAME = "tiny-neox/adamw-8bit/1"


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every fine-tuning a gradient scaler, as float16 on a GPU has, with a far too high scale."""
    make = finetune.make_trainer

    def with_scaler(*arguments: Any) -> Any:
        trainer = make(*arguments)
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=2)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return trainer

    monkeypatch.setattr(finetune, "make_trainer", with_scaler)


@pytest.fixture
def trial(cache: Path, tmp_path: Path) -> Trial:
    replacements = (("\nsteps = 3", "\nsteps = 6"), ('adapter_init = "fresh"', "adapter_init = 7"))
    return at(write_study(tmp_path, *replacements), tmp_path / "runs", cache).trial(NAME)


@pytest.mark.usefixtures("scaled")
def test_a_step_that_the_scaler_skips_is_marked_and_changes_nothing(trial: Trial, cache: Path) -> None:
    run_trial(trial, ["finetune"], quiet)
    steps = read_trace(trial.trace)
    skipped = [step.step for step in steps if step.skipped]
    assert skipped
    assert skipped[0] == 1
    assert len(skipped) < 6, "the scale decreases"
    for before, after in itertools.pairwise(steps):
        assert (before.adapter == after.adapter) == after.skipped
        assert math.isfinite(after.loss or 0)
    assert outputs(trial)["skipped_steps"] == len(skipped)
    assert outputs(trial)["diverged_at"] is None
    assert outputs(trial)["loss_scaling"]


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("stop", [2, 4])
def test_the_scaler_resumes_from_a_checkpoint(stop: int, trial: Trial, cache: Path, tmp_path: Path) -> None:
    run_trial(trial, ["finetune"], quiet)
    other = at(trial.study, tmp_path / "others", cache).trial(NAME)

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done == stop:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        run_trial(other, ["finetune"], watch)
    run_trial(other, ["finetune"], quiet)
    assert outputs(other)["resumed_from"] == stop
    assert other.trace.read_bytes() == trial.trace.read_bytes()


def test_a_diverged_trial_ends_is_marked_and_stays_in_the_results(cache: Path, tmp_path: Path) -> None:
    largest = ("learning_rate = 1e-3", "learning_rate = 1e3"), ("weight_decay = 0.0", "weight_decay = 1e6")
    study = load_study(str(write_study(tmp_path, *largest)))
    trial = at(study, tmp_path / "runs", cache).trial(NAME)
    run_base_test(trial.workspace.base_tests("tiny-neox")[0], quiet)
    run_trial(trial, STAGES, quiet)
    steps = read_trace(trial.trace)
    first = next(step.step for step in steps if step.diverged)
    assert 1 < first < len(steps)
    assert outputs(trial)["diverged_at"] == first
    assert json.loads(trial.trace.read_text().splitlines()[first])["loss"] in ("nan", "inf")
    row = collect(trial.workspace)[0]
    assert (row.status, row.diverged_at) == ("done", first)
    assert row.perplexity is not None
    assert not math.isfinite(row.perplexity)


WAYS = {
    "linear": 'schedule = "linear"',
    "cosine, warmed up, decaying": 'schedule = "cosine"|warmup_steps = 2|weight_decay = 0.1',
    "batches, epochs, the last batch in part": "batch_size = 7|steps = 0",
    "gradient checkpointing": "gradient_checkpointing = true",
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_resumes_to_the_same_bits(way: str, cache: Path, tmp_path: Path) -> None:
    text = write_study(
        tmp_path, ('adapter_init = "fresh"', "adapter_init = 7"), ("\nsteps = 3", "\nsteps = 6")
    )
    content = text.read_text()
    for change in WAYS[way].split("|"):
        key = change.partition(" = ")[0]
        new = "epochs = 1.4" if change == "steps = 0" else change
        content, count = re.subn(rf"(?m)^{key} = .*$", new, content, count=1)
        assert count
    text.write_text(content)
    study = load_study(str(text))
    whole, stopped = (at(study, tmp_path / runs, cache).trial(NAME) for runs in ("whole", "stopped"))
    run_trial(whole, ["finetune"], quiet)

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        if loss is not None and done == total - 2:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        run_trial(stopped, ["finetune"], watch)
    run_trial(stopped, ["finetune"], quiet)
    assert outputs(stopped)["resumed_from"]
    assert outputs(stopped)["adapter_digest"] == outputs(whole)["adapter_digest"]
    assert stopped.trace.read_bytes() == whole.trace.read_bytes()


def test_the_peak_has_paged_state_and_a_share_and_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a trainer without a model the numbers of a GPU; bitsandbytes allocates paged state itself."""
    own, paged = torch.zeros(1000), torch.zeros(500)
    paged.is_paged = True  # type: ignore[attr-defined]
    state = {"a": {"step": 1, "state1": own}, "b": {"step": 1, "state1": paged}}
    made = TracingTrainer.__new__(TracingTrainer)
    made.optimizer, made.spent, made.began = SimpleNamespace(state=state), {}, 1.0
    monkeypatch.setattr(trainer, "peak_memory", lambda outside_torch: 30_000 + outside_torch)
    monkeypatch.setattr(trainer, "gpu_memory", lambda: 64_000)
    assert made.peak_memory() == {"peak_memory_bytes": 32_000, "peak_memory_share": 0.5}
    made.spent["peak_memory_bytes"] = 48_000.0  # of an interrupted attempt
    assert made.peak_memory() == {"peak_memory_bytes": 48_000, "peak_memory_share": 0.75}
    made.began = None  # this process has not trained, so only the earlier attempt counts
    monkeypatch.setattr(trainer, "peak_memory", lambda outside_torch: 90_000)
    assert made.peak_memory()["peak_memory_bytes"] == 48_000
    made.spent.clear()
    assert made.peak_memory() == {"peak_memory_bytes": None, "peak_memory_share": None}
