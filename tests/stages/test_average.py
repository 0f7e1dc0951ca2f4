"""Averages of adapters: of several trials, and of the last steps of a trial."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import kit
from support.places import at
from support.tiny import write_study
from support.trials import outputs, quiet

from qlora_repeat.errors import StageError, UsageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.trial_state import stage_states, trial_state
from qlora_repeat.results.collect import collect
from qlora_repeat.stages.merge import read_changes
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.selection import select
from qlora_repeat.study.trial import ALL_STAGES, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.safetensors_file import read_weights

ONE_ARM = ('optimizers = ["adamw-8bit", "adamw-32bit"]', 'optimizers = ["adamw-32bit"]')
STEPS = 3


def averaging(text: str) -> tuple[str, str]:
    """Return the replacement that adds this table to the tiny study."""
    return "[bases.tiny-llama.gguf]", f"[averaging]\n{text}\n\n[bases.tiny-llama.gguf]"


@pytest.fixture(scope="module")
def done(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a study of four trials of one arm, all run, with averages of two trials and of two steps."""
    folder = tmp_path_factory.mktemp("averaging")
    file = write_study(
        folder,
        ONE_ARM,
        averaging("trials = 2\nlast_steps = 2"),
        ("trials = 2\nthreads", "trials = 5\nthreads"),
    )
    only = ["--only", "tiny-neox"]
    ran = kit("run", file, "--runs", folder / "runs", "--cache", cache, "--out", folder / "out", *only)
    assert ran.returncode == 0, ran.stderr
    return at(file, folder / "runs", cache)


def trials(workspace: Workspace, kind: str) -> list[Trial]:
    return [each for each in workspace.trials() if each.model_name == "tiny-neox" and kind in each.optimizer]


def products(folder: Path) -> dict[str, Any]:
    """Return what an adapter adds to each layer."""
    return {layer: change.b @ change.a * change.scale for layer, change in read_changes(folder).items()}


def test_a_mean_of_trials_adds_the_mean_of_what_they_add(done: Workspace) -> None:
    means = trials(done, "~mean-of-2")
    assert [[source.number for source in mean.sources] for mean in means] == [[1, 2], [3, 4]], "5 is left"
    for mean in means:
        found, parts = products(mean.adapter), [products(source.adapter) for source in mean.sources]
        for layer, product in found.items():
            expected = (parts[0][layer] + parts[1][layer]) / 2
            assert torch.allclose(product, expected, rtol=1e-4, atol=1e-7)
            assert not torch.allclose(product, parts[0][layer], rtol=1e-2)
        assert outputs(mean, "average")["trials"] == [source.name for source in mean.sources]


def test_a_mean_of_steps_lies_between_them(done: Workspace, cache: Path, tmp_path: Path) -> None:
    """The mean of the last two of three steps: the last one, and the one before, which ended another run."""
    (file,) = (tmp_path / "tiny.toml",)
    write_study(tmp_path, ONE_ARM, ("\nsteps = 3", "\nsteps = 2"))
    for mean in trials(done, "~last-2-steps")[:2]:
        (source,) = mean.sources
        shorter = at(file, tmp_path / "runs", cache).trial(source.name)
        run_trial(shorter, ["finetune"], quiet, seeds=outputs(source)["seeds"])
        last, before, found = (
            read_weights(each.adapter / "adapter_model.safetensors") for each in (source, shorter, mean)
        )
        for name, value in found.items():
            assert torch.equal(value, (before[name] + last[name]) / 2)


def test_averages_are_tested_like_any_trial(done: Workspace) -> None:
    rows = {row.name: row for row in collect(done) if row.model == "tiny-neox"}
    assert [row.status for row in rows.values()] == ["done"] * 12
    for name, row in rows.items():
        assert row.perplexity is not None and row.perplexity > 1
        assert row.test_seconds is not None
        assert (row.final_loss is None) == ("~" in name), "an average has no training"
    mean, source = rows["tiny-neox/adamw-32bit~last-2-steps/3"], rows["tiny-neox/adamw-32bit/3"]
    assert mean.adapter_init_seed == source.adapter_init_seed, "so that both can be compared in pairs"
    assert mean.perplexity != source.perplexity
    checked = kit("check", done.file, "--runs", done.runs, "--cache", done.cache)
    assert checked.returncode == 0, checked.stdout


def test_an_average_is_stale_if_a_trial_that_it_averages_is_trained_again(
    done: Workspace, tmp_path: Path
) -> None:
    shutil.copytree(done.runs, tmp_path / "runs")
    workspace = at(done.file, tmp_path / "runs", done.cache)
    first, second = trials(workspace, "~mean-of-2")
    run_trial(first.sources[0], ["finetune"], quiet, force=True)
    assert stage_states(first)["average"].changed == ["sources"]
    assert trial_state(second).state == "done"
    run_trial(first, ALL_STAGES, quiet)
    assert trial_state(first).state == "done"


def test_an_average_names_the_trial_that_it_needs(done: Workspace, tmp_path: Path) -> None:
    workspace = at(done.file, tmp_path / "runs", done.cache)
    mean = trials(workspace, "~mean-of-2")[1]
    needed = r"adamw-32bit/3, which has not run; run `qlora-repeat trial tiny-neox/adamw-32bit/3 --study"
    with pytest.raises(StageError, match=needed):
        run_trial(mean, ALL_STAGES, quiet)
    with pytest.raises(StageError, match=r"merge needs the average stage, which has not run"):
        run_trial(mean, ["merge"], quiet)


def test_the_first_trials_have_only_averages_of_themselves(done: Workspace) -> None:
    chosen = select(done, ["tiny-neox"], 3)
    assert [each.name.partition("/")[2] for each in chosen.trials] == [
        *(f"adamw-32bit/{number}" for number in (1, 2, 3)),
        "adamw-32bit~mean-of-2/1",
        *(f"adamw-32bit~last-2-steps/{number}" for number in (1, 2, 3)),
    ]


def test_an_average_cannot_be_verified_or_compared(done: Workspace) -> None:
    mean = trials(done, "~mean-of-2")[0]
    for command in (["verify", mean.name], ["diff", mean.name, mean.sources[0].name]):
        ran = kit(*command, "--study", done.file, "--runs", done.runs, "--cache", done.cache)
        assert ran.returncode == 3
        assert "an average, which has no training to compare or verify; give one of its trials" in ran.stderr
    ran = kit("verify", mean.folder, "--cache", done.cache)
    assert ran.returncode == 3 and "an average, which has no training to verify" in ran.stderr


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        ([averaging("trials = 1")], "averaging.trials"),
        ([averaging("last_steps = 4")], f"averaging.last_steps is 4; model tiny-neox has {STEPS} steps"),
        ([averaging("trials = 2"), ("dropout = 0.05", "dropout = 0.05\ndora = true")], "lora.dora = false"),
        ([averaging("trials = 2"), ("split = 42", 'split = "fresh"')], "one split for all trials"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    replacements: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        load_study(str(write_study(tmp_path, *replacements)))
