"""Tests of what may be changed of a fine-tuning: the state map, one weight, and how far it goes."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.tiny import write_study

from qlora_repeat.analysis.trial_diff import first_divergence
from qlora_repeat.execution.run_trial import run_stages
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.stages.finetune import first_steps
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import draw_seeds
from qlora_repeat.study.trial import Trial, find_trial

SEVERAL = ("\nsteps = 3", "\nsteps = 4")
PINNED = ('adapter_init = "fresh"', "adapter_init = 7")


def quiet(stage: str, done: int, total: int, loss: float | None) -> None:
    """Ignores progress."""


def trained(folder: Path, cache: Path, optimizer: str, *changes: tuple[str, str], number: int = 1) -> Trial:
    folder.mkdir()
    study = load_study(f"{write_study(folder, SEVERAL, PINNED, *changes)}@{optimizer}")
    trial = find_trial(study, f"tiny-neox/{optimizer}/{number}", folder / "runs")
    run_stages(trial, ["finetune"], cache, quiet)
    return trial


def test_the_old_map_changes_the_second_update(cache: Path, tmp_path: Path) -> None:
    """The first update has second moments that were never kept."""
    today = trained(tmp_path / "today", cache, "adamw-8bit")
    old = trained(tmp_path / "old", cache, "adamw-8bit+bitsandbytes-0.41.0")
    parted = first_divergence(read_trace(today.trace), read_trace(old.trace))
    assert parted is not None
    assert (parted.step, parted.kind) == (2, "update")


@pytest.mark.parametrize("number", [1, 2])
def test_a_nudge_is_one_weight_by_one_ulp(number: int, cache: Path, tmp_path: Path) -> None:
    still = trained(tmp_path / "still", cache, "adamw-32bit", number=number)
    nudged = trained(tmp_path / "nudged", cache, "adamw-32bit", NUDGE, number=number)
    parted = first_divergence(read_trace(still.trace), read_trace(nudged.trace))
    assert parted is not None
    assert (parted.step, parted.kind) == (0, "init")
    ours, theirs = (load_file(trial.adapter / "adapter_model.safetensors") for trial in (still, nudged))
    most = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert 0 < most < 1e-3, "it stays a small difference"


NUDGE = ('kernels = "default"\n\n[profiles.seeded]', 'kernels = "default"\nnudge = true\n\n[profiles.seeded]')


def test_the_first_steps_are_those_of_the_whole(cache: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", cache, "adamw-8bit", ('schedule = "constant"', 'schedule = "cosine"'))
    begun = Trial(whole.study, whole.model_name, whole.optimizer, 1, tmp_path / "begun")
    told: list[int] = []

    def report(done: int, total: int, loss: float | None) -> None:
        assert total == 3
        told.append(done)

    steps: list[Step] = first_steps(
        begun, 3, cache, report, {}, draw_seeds(whole.study.randomness, whole.number)
    )
    assert steps == read_trace(whole.trace)[:4]
    assert told == [1, 2, 3]
    assert not begun.adapter.exists()
