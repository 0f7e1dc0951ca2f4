"""Changes to a fine-tuning: the state map, one weight, and the number of steps."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.analysis.trial_diff import first_divergence
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import trial_state
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
