"""The plan of a study: hours and disk (checked by hand), GPUs by name, and the command."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkout import ROOT, kit
from support.places import NO_RUNS, at
from support.tiny import write_study

from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.assets.pins import Pin, PinnedFile
from qlora_repeat.errors import UsageError
from qlora_repeat.planning.gpu_catalog import GPUS, find_gpu, large_enough
from qlora_repeat.planning.plan import (
    Plan,
    disk_plan,
    make_plan,
    makespan,
    train_seconds,
)
from qlora_repeat.render.text.plan import plan_text
from qlora_repeat.results.published import read_published
from qlora_repeat.study.data_sources import Hub, train_examples
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.memory import CONTEXT_BYTES

PUBLISHED = read_published(ROOT / "paper/published")
A100 = find_gpu("a100-80gb")


@pytest.fixture(scope="module")
def only_llama() -> Study:
    """Return the paper's study with one of its models."""
    study = load_study("paper")
    return dataclasses.replace(study, models={"llama2-7b": study.models["llama2-7b"]})


@pytest.fixture(scope="module")
def llama(only_llama: Study, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Return the plan of that study for two of the paper's GPUs, with nothing fetched or locked."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    return make_plan(at(only_llama, nowhere, nowhere), A100, 2, PUBLISHED)


def test_the_name_of_a_gpu_ignores_case() -> None:
    assert find_gpu("A100-80GB") is find_gpu("a100-80gb")
    assert find_gpu("a100-80gb").speed == 1
    assert find_gpu("a100-40gb").speed < 1 < find_gpu("h100-80gb").speed


def test_a_number_is_memory_in_gb_at_the_speed_of_the_papers_gpu() -> None:
    gpu = find_gpu("24")
    assert (gpu.memory, gpu.speed, gpu.name) == (24_000_000_000, 1, "24 GB")
    assert find_gpu("0.5").memory == 500_000_000


@pytest.mark.parametrize("text", ["a10", "", "0", "-24", "nan", "inf", "1e9", "24GB"])
def test_an_unknown_gpu_is_refused_with_the_known_ones_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert len(str(caught.value).splitlines()) == 1
    assert [gpu.name for gpu in GPUS if gpu.name not in str(caught.value)] == []


def test_large_enough_gpus_have_the_memory() -> None:
    assert large_enough(0) == [gpu.name for gpu in GPUS]
    assert large_enough(find_gpu("h200-141gb").memory) == ["h200-141gb", "b200-180gb"]
    assert large_enough(10**12) == []


def test_makespan_does_not_divide_jobs() -> None:
    assert makespan([3, 3, 3], 2) == 6
    assert makespan([1, 1, 4], 2) == 5
    assert makespan([4, 1, 1], 2) == 4
    assert makespan([2], 8) == 2
    assert makespan([1, 2, 3], 1) == 6


def test_eighty_per_cent_of_the_rows_are_for_training() -> None:
    data = load_study("paper").data
    assert {name: train_examples(each) for name, each in data.items()} == {
        "quotes": 2508 - 502,
        "instructions": 24926 - 4986,
    }
    assert train_examples(dataclasses.replace(data["quotes"], max_rows=100)) == 100
    assert train_examples(dataclasses.replace(data["quotes"], max_rows=5000)) == 2006


def test_time_depends_on_steps_and_memory_bandwidth() -> None:
    rows = [row for row in PUBLISHED if (row.model, row.optimizer) == ("gpt-neox-20b", "adamw-32bit")]
    mean = sum(row.train_seconds or 0 for row in rows) / 7
    usual = train_seconds(rows, 6018, A100)
    assert usual == pytest.approx(mean)
    assert train_seconds(rows, 3009, A100) == pytest.approx(usual / 2)
    assert train_seconds(rows, 6018, find_gpu("a100-40gb")) == pytest.approx(usual * 2039 / 1555)


def test_the_hours_of_the_papers_study_match_the_papers_tables(llama: Plan) -> None:
    printed = [row.train_seconds or math.nan for row in PUBLISHED if row.model == "llama2-7b"]
    assert llama.gpu_hours == pytest.approx(sum(printed) / 3600)
    assert llama.wall_hours is not None
    assert llama.wall_hours == pytest.approx(sum(printed) / 3600 / 2, rel=1e-3)
    assert llama.trials_without_estimate == 0


def test_the_parts_of_a_peak_add_up(llama: Plan) -> None:
    (model,) = llama.models
    weights = model.base_quantized + model.base_scales + model.base_unquantized + model.adapter
    for arm in model.arms:
        parts = weights + arm.optimizer_state + model.saved + model.passing + CONTEXT_BYTES
        assert arm.finetune_peak == parts
        assert arm.finetune_share == parts / A100.memory
    assert model.evaluate_peak == model.evaluate_weights + model.evaluate_work + CONTEXT_BYTES
    # The tables of rotary frequencies come on top of the parameters.
    assert 2 * model.parameters < model.evaluate_weights < 2.001 * model.parameters


def test_disk_has_the_download_and_merged_weights_of_parallel_trials(
    llama: Plan, only_llama: Study, tmp_path: Path
) -> None:
    assert llama.disk.bases == 2 * 6_738_415_616
    assert llama.disk.merged == 2 * 2 * 6_738_415_616  # on two GPUs
    assert llama.disk.adapters == 14 * 4 * 32 * 2 * (4096 * 8 + 8 * 4096)
    workspace = at(dataclasses.replace(only_llama, keep_merged=True), tmp_path)
    hub = only_llama.bases["llama2-7b"].hub
    assert isinstance(hub, Hub)
    files = {name: PinnedFile(size, "0" * 64) for name, size in (("weights", 5), ("tokenizer", 6))}
    lock_file(workspace).add(hub, Pin("model", hub.revision, "0" * 40, files))
    assert disk_plan(workspace, llama.models, 2) == dataclasses.replace(
        llama.disk, bases=11, merged=14 * 2 * 6_738_415_616
    )


def test_the_document_shows_the_output_of_the_command(llama: Plan) -> None:
    page = (ROOT / "docs/explanation/memory-and-time.md").read_text(encoding="utf-8")
    lines = [line for line in plan_text(llama).splitlines() if line.startswith("llama2-7b")]
    assert len(lines) == 5  # an arm's memory and its hours, twice, and the test
    shown = [re.sub(r"\s+", " ", line) for line in page.splitlines()]
    assert [line for line in lines if re.sub(r"\s+", " ", line).rstrip() not in shown] == []


def test_a_too_small_gpu_is_refused_for_each_model_with_larger_ones(llama: Plan) -> None:
    small = find_gpu("a10-24gb")
    assert dataclasses.replace(llama, gpu=small).too_large() == []
    refused = dataclasses.replace(llama, gpu=find_gpu("15")).too_large()
    assert refused == [
        f"model llama2-7b: testing the merged model needs 15.2 GB on one GPU, 15 GB has 15.0; large enough: "
        f"{', '.join(gpu.name for gpu in GPUS)}"
    ]
    assert (
        "none of the known GPUs"
        in dataclasses.replace(
            llama, gpu=find_gpu("1"), models=[dataclasses.replace(llama.models[0], evaluate_peak=10**12)]
        ).too_large()[0]
    )


Place = Callable[..., list[str]]


@pytest.fixture
def place(cache: Path, study_file: Path) -> Place:
    """Return the command for the tiny study, whose models are in the cache."""
    return lambda *options: ["plan", str(study_file), "--cache", str(cache), *options]


def test_a_study_of_other_models_has_memory_but_no_hours(study: Study, cache: Path) -> None:
    plan = make_plan(at(study, NO_RUNS, cache), find_gpu("t4-16gb"), 3, PUBLISHED)
    text = plan_text(plan)
    assert text.startswith("Study tiny on 3 x t4-16gb: 16.1 GB each, 300 GB/s, thus 0.15 times")
    assert "No estimate" in text
    arms = [line.split() for line in text.splitlines() if line.startswith("tiny-neox/adamw-8bit ")]
    assert [arm[-1] for arm in arms] == ["-", "-"]  # without a counterpart in the paper there are no hours


def test_a_too_small_gpu_ends_the_plan_with_exit_code_2_and_a_line_for_each_model(place: Place) -> None:
    done = kit(*place("--gpu", "0.5", "--json"))
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("Error: model tiny-neox: ")
    assert second.startswith("Error: model tiny-llama-chat: ")
    plan = json.loads(done.stdout)
    assert (plan["study"], plan["gpus"], plan["gpu"]["memory"]) == ("tiny", 1, 500_000_000)
    assert [model["model"] for model in plan["models"]] == ["tiny-neox", "tiny-llama-chat"]
    for model in plan["models"]:
        assert [arm["optimizer"] for arm in model["arms"]] == ["adamw-8bit", "adamw-32bit"]
        assert model["arms"][0]["finetune_peak"] < model["arms"][1]["finetune_peak"]
    assert (plan["gpu_hours"], plan["trials_without_estimate"]) == (None, 8)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Missing option '--gpu'"),
        (["--gpu", "a10"], 2, "GPU 'a10' is not known"),
        (["--gpu", "24", "--gpus", "0"], 2, "--gpus"),
    ],
)
def test_a_mistake_gives_one_line(place: Place, options: list[str], code: int, words: str) -> None:
    done = kit(*place(*options))
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_base_without_an_architecture_must_be_fetched(study_file: Path, tmp_path: Path) -> None:
    done = kit("plan", study_file, "--gpu", "24", "--cache", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "[bases.tiny-neox.architecture]" in done.stderr
    assert f"run `qlora-repeat fetch {study_file} --cache {tmp_path}`" in done.stderr


def test_a_mistake_in_the_study_file_is_reported(tmp_path: Path) -> None:
    path = write_study(tmp_path, ("trials = 2", "trials = 0"))
    done = kit("plan", path, "--gpu", "24")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {path}: line 4: key trials: expected more than 0 (found 0)\n"
