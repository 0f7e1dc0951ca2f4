"""Deterministic kernels: the settings of torch, refused operations, and unchanged texts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.places import NO_RUNS, at
from support.tiny import write_study
from support.trials import outputs

from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import study_prompts
from qlora_repeat.errors import StageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.stages.generate import respond
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage
from qlora_repeat.system.determinism import (
    WORKSPACE,
    Kernels,
    named_operation,
    prepare_environment,
    set_kernels,
)
from qlora_repeat.system.fingerprint import fingerprint


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    set_kernels("default", 1)


def fused_attention() -> bool:
    """Return whether torch uses a fused kernel for attention."""
    query = torch.randn(1, 3, 16, 64, requires_grad=True)
    output = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    return "Flash" in type(output.grad_fn).__name__


def test_deterministic_kernels_are_strict_and_the_defaults_come_back() -> None:
    set_kernels("deterministic", 1)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ[WORKSPACE] == ":4096:8"
    assert not fused_attention()
    set_kernels("default", 1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert fused_attention()


@pytest.mark.parametrize("kernels", ["default", "deterministic"])
def test_kernels_are_not_launched_one_by_one(kernels: Kernels) -> None:
    set_kernels(kernels, 1)
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.parametrize("kernels", ["default", "deterministic"])
def test_new_memory_is_not_filled(kernels: Kernels) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True  # torch's default
    set_kernels(kernels, 1)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    found = fingerprint()["kernels"]
    assert found["fill_uninitialized_memory"] is False
    assert found["deterministic"] is (kernels == "deterministic")


@pytest.mark.parametrize("name", ["tiny-neox/adamw-8bit/1", "tiny-llama-chat/adamw-32bit/1"])
@pytest.mark.parametrize("weights", ["nf4", "materialized"])
def test_filling_new_memory_changes_no_bit(name: str, weights: str, cache: Path, tmp_path: Path) -> None:
    """With filling, an operation that reads memory before it is written would give NaN."""
    file = f"{write_study(tmp_path)}@bitwise@{weights}"
    trials = {fill: at(file, tmp_path / str(fill), cache).trial(name) for fill in (False, True)}
    for fill, trial in trials.items():

        def progress(stage: str, done: int, total: int, loss: float | None, fill: bool = fill) -> None:
            torch.utils.deterministic.fill_uninitialized_memory = fill
            assert not fill or torch.empty(9).isnan().all()

        run_trial(trial, ["finetune", "merge", "evaluate"], progress)
    assert trials[True].trace.read_bytes() == trials[False].trace.read_bytes()
    wanted: list[tuple[Stage, str]] = [("finetune", "adapter_digest"), ("merge", "merged_digest")]
    for stage, key in [*wanted, ("evaluate", "examples"), ("evaluate", "responses")]:
        assert outputs(trials[True], stage)[key] == outputs(trials[False], stage)[key]


def test_the_number_of_threads_is_set() -> None:
    set_kernels("default", 2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("given", "kept"), [(":16:8", ":16:8"), (":4096:8", ":4096:8"), (":0:0", ":4096:8")])
def test_another_deterministic_workspace_is_kept(
    given: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, given)
    prepare_environment("default")
    assert os.environ[WORKSPACE] == given
    prepare_environment("deterministic")
    assert os.environ[WORKSPACE] == kept


def test_an_operation_without_a_deterministic_form_is_named_with_its_model() -> None:
    set_kernels("deterministic", 1)
    words = r"^model tiny-neox: the operation put_ has no deterministic form on this device; use a profile"
    with pytest.raises(StageError, match=words) as caught, named_operation("tiny-neox"):
        torch.zeros(3).put_(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert len(str(caught.value).splitlines()) == 1


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), named_operation("tiny-neox"):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize("model", ["tiny-neox", "tiny-llama-chat"])
def test_both_kinds_of_kernels_generate_the_same_texts(model: str, study: Study, cache: Path) -> None:
    """Generate on a CPU, where the kit's processing of scores has the same operations as `generate`."""
    folder = base_folder(at(study, NO_RUNS, cache), study.models[model].base)
    loaded, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
    texts: dict[Kernels, list[str]] = {}
    for kernels in ("default", "deterministic"):
        set_kernels(kernels, 1)
        texts[kernels] = [
            respond(loaded, tokenizer, prompt, study, model, sampling, seed)
            for prompt in study_prompts(at(study, NO_RUNS, cache), model, 42)
            for sampling in study.generation.samplings
            for seed in range(3)
        ]
    assert texts["default"] == texts["deterministic"]
    assert len(set(texts["default"])) > 3
