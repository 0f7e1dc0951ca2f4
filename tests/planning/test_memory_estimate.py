"""Estimated memory is compared with real models, real steps and real optimizers."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from support.architectures import ARCHITECTURES
from support.checkout import ROOT
from support.places import NO_RUNS, at

from qlora_repeat.assets.base_models import load_full, load_quantized
from qlora_repeat.assets.datasets import Example
from qlora_repeat.assets.fetch import save_plain
from qlora_repeat.errors import UsageError
from qlora_repeat.planning.memory_estimate import (
    LiveMemory,
    adapted_model,
    as_trainer_sets,
    evaluate_memory,
    finetune_memory,
    inside_4bit_product,
    model_config,
    model_tensors,
    optimizer_bytes,
    parameter_count,
    training_step,
    weight_bytes,
)
from qlora_repeat.stages.dequantize import materialize
from qlora_repeat.stages.finetune import with_adapter
from qlora_repeat.stages.perplexity import example_losses
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.determinism import attention_kernels

PARAMETERS = {
    "gpt-neox-20b": 20_554_567_680,
    "gpt-neoxt-chat-20b": 20_554_567_680,
    "llama2-7b": 6_738_415_616,
    "llama2-chat-7b": 6_738_415_616,
}
SHAPE = {"hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL: dict[str, dict[str, Any]] = {
    "llama2-7b": {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": 300} | SHAPE,
    "gpt-neox-20b": {"model_type": "gpt_neox", "rotary_pct": 0.25, "vocab_size": 300} | SHAPE,
}
"""Small models of both architectures, by the name of the paper's model."""
PAPER = load_study("paper")


def changed(name: str, **settings: Any) -> Trial:
    """Return a trial of a paper's model with changed settings."""
    model = PAPER.models[name]
    parts: dict[str, Any] = {"training": model.training}
    study: dict[str, Any] = {}
    for key, value in settings.items():
        if hasattr(model.training, key):
            parts["training"] = dataclasses.replace(parts["training"], **{key: value})
        elif key == "compute":
            study["precision"] = dataclasses.replace(PAPER.precision, compute=value)
        elif key == "double":
            study["quantization"] = dataclasses.replace(PAPER.quantization, double=value)
        elif key in ("profile", "weights"):
            study[key] = value
        elif key == "test_batch":
            study["evaluation"] = dataclasses.replace(PAPER.evaluation, batch_size=value)
        else:
            study["lora"] = dataclasses.replace(study.get("lora", PAPER.lora), **{key: value})
    models = {name: dataclasses.replace(model, **parts)}
    whole: Study = dataclasses.replace(PAPER, models=models, **study)
    return Trial(at(whole, NO_RUNS), name, "adamw-8bit", 1)


def of_study(trial: Trial, **changes: Any) -> Trial:
    """Return the trial in a study with these changes."""
    study = dataclasses.replace(trial.study, **changes)
    return dataclasses.replace(trial, workspace=dataclasses.replace(trial.workspace, study=study))


def saved_model(folder: Path, architecture: dict[str, Any]) -> Any:
    """Save a model with random weights, and return its configuration as the plan reads it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in architecture.items() if key != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **settings)
    save_plain(AutoModelForCausalLM.from_config(config).to(torch.float16), folder)
    return model_config(json.loads((folder / "config.json").read_text()), "small")


def profiled_peak(run: Any) -> int:
    """Return the peak number of bytes that torch allocated on the CPU during a run."""
    # On processors with bfloat16, oneDNN packs the weights again for each product.
    with torch.backends.mkldnn.flags(enabled=False), torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_papers_models_have_their_published_number_of_parameters(name: str) -> None:
    architecture = PAPER.bases[name].architecture
    assert architecture is not None
    assert parameter_count(model_config(architecture, name)) == PARAMETERS[name]


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("name", SMALL)
def test_planned_weights_match_a_loaded_model(name: str, double: bool, tmp_path: Path) -> None:
    config = saved_model(tmp_path, SMALL[name])
    trial = changed(name, double=double)
    real, planned = with_adapter(trial, load_quantized(trial.study, tmp_path)), adapted_model(trial, config)
    assert finetune_memory(trial, config).weights == weight_bytes(real)
    # Tensor by tensor: the same ones are in 4 bits, and all others have the same shape and type.
    true = dict(real.named_parameters())
    for parameter_name, tensor in planned.named_parameters():
        found = true.pop(parameter_name)
        assert type(tensor) is type(found)
        if not isinstance(found, bitsandbytes.nn.Params4bit):
            assert (tensor.shape, tensor.dtype) == (found.shape, found.dtype)
    assert true == {}


@pytest.mark.parametrize("name", SMALL)
def test_dequantized_weights_and_a_step_match_the_plan(name: str, tmp_path: Path) -> None:
    config = saved_model(tmp_path, SMALL[name])
    trial = changed(
        name, weights="materialized", dropout=0.0, max_length=64, batch_size=2, gradient_checkpointing=False
    )
    planned = finetune_memory(trial, config)
    model = with_adapter(trial, load_quantized(trial.study, tmp_path))
    in_4_bits = weight_bytes(model)
    materialize(model)
    assert planned.weights == weight_bytes(model)
    assert (planned.weights.quantized, planned.weights.scales) == (0, 0)
    assert planned.weights.materialized == 4 * in_4_bits.quantized  # float16
    as_trainer_sets(model, False)
    ids = torch.zeros(2, 64, dtype=torch.long)
    live = LiveMemory(inside_4bit_product)
    live.count(model_tensors(model))
    before = live.now
    with attention_kernels(trial.study.randomness.kernels), live:
        saved = training_step(model, ids, "float16", live) - before
    assert (planned.saved, planned.step) == (saved, live.peak - before)
    auto = of_study(trial, weights="auto")
    assert finetune_memory(auto, config) == planned


@pytest.mark.parametrize("name", SMALL)
def test_bytes_of_4_bit_weights_and_scales_follow_their_layout(name: str, tmp_path: Path) -> None:
    trial, config = changed(name), model_config(SMALL[name], "small")
    weights = finetune_memory(trial, config).weights
    sizes = [
        module.in_features * module.out_features
        for module in adapted_model(trial, config).modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    assert len(sizes) == 3 * (7 if name == "llama2-7b" else 4)
    blocks = [-(-size // 64) for size in sizes]
    # A byte for each block of 64, a float32 for each 256 of those, an offset, code books of 16 and of 256.
    scales = sum(each + 4 * -(-each // 256) + 4 + 4 * 16 + 4 * 256 for each in blocks)
    assert (weights.quantized, weights.scales) == (sum(sizes) // 2, scales)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw-8bit", bitsandbytes.optim.PagedAdamW8bit),
        ("adamw-32bit", bitsandbytes.optim.PagedAdamW32bit),
        ("lion-8bit", bitsandbytes.optim.PagedLion8bit),
        ("lion-32bit", bitsandbytes.optim.PagedLion32bit),
    ],
)
def test_planned_optimizer_state_matches_a_real_optimizer(name: OptimizerName, kind: Any) -> None:
    elements = [4095, 4096, 4097, 10_000, 65_536, 120_000]
    tensors = [torch.nn.Parameter(torch.randn(each)) for each in elements]
    optimizer = kind(tensors, lr=1e-3)
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    optimizer.step()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    assert optimizer_bytes(elements, name) == sum(storages.values())


@pytest.fixture(autouse=True)
def kernels_of_a_new_process() -> Iterator[None]:
    """Reset the kernels that an earlier test has set."""
    with attention_kernels("default"):
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        yield
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(
    ("name", "compute", "profile"),
    [
        ("llama2-7b", "bfloat16", "as-published"),
        ("gpt-neox-20b", "float32", "as-published"),
        ("gpt-neox-20b", "float32", "bitwise"),  # attention without fusion, which keeps its scores
    ],
)
def test_a_planned_step_matches_a_profile_of_a_real_step(
    name: str, compute: str, profile: str, checkpointing: bool, tmp_path: Path
) -> None:
    config = saved_model(tmp_path, SMALL[name])
    # Without dropout, for which a CPU keeps more than a GPU.
    trial = changed(
        name,
        compute=compute,
        profile=profile,
        dropout=0.0,
        gradient_checkpointing=checkpointing,
        max_length=64,
        batch_size=2,
    )
    planned = finetune_memory(trial, config)
    model = with_adapter(trial, load_quantized(trial.study, tmp_path))
    as_trainer_sets(model, checkpointing)
    ids = torch.zeros(2, 64, dtype=torch.long)
    live = LiveMemory(inside_4bit_product)
    live.count(model_tensors(model))
    before = live.now
    with attention_kernels(trial.study.randomness.kernels):
        with live:
            saved = training_step(model, ids, compute, live) - before
        assert (planned.saved, planned.step) == (saved, live.peak - before)
        model.zero_grad()
        profiled = profiled_peak(lambda: training_step(model, ids, compute))
    # Attention without fusion allocates memory within one operation, which is invisible from outside.
    assert planned.step == pytest.approx(profiled, rel=0.015 if profile == "bitwise" else 0.01)


def test_dropout_keeps_one_byte_per_element_as_on_a_gpu() -> None:
    config = model_config(SMALL["gpt-neox-20b"], "small")
    without, with_dropout = (
        finetune_memory(changed("gpt-neox-20b", dropout=rate, gradient_checkpointing=False), config)
        for rate in (0.0, 0.5)
    )
    # Masks for the inputs of query_key_value in every layer but the first, whose input needs no gradient. The
    # inputs themselves are kept for the adapter, dropped out or not.
    assert with_dropout.saved - without.saved == 2 * 512 * 256


def test_a_frozen_4_bit_layer_does_not_keep_its_input() -> None:
    layer = bitsandbytes.nn.Linear4bit(
        256, 512, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
    ).to("cpu")
    layer.requires_grad_(False)
    live = LiveMemory()
    live.count(model_tensors(layer))
    before = live.now
    inputs = torch.randn(64, 256, requires_grad=True)
    with live:
        result = layer(inputs * 1)
        kept = live.now - before
        result.sum().backward()
    assert kept == result.nbytes
    assert inputs.grad is not None


def test_planned_testing_matches_a_profile_of_a_real_test(tmp_path: Path) -> None:
    config = saved_model(tmp_path, SMALL["llama2-7b"] | {"vocab_size": 5000})
    trial = changed("llama2-7b", compute="bfloat16", test_batch=3, max_length=64)
    planned = evaluate_memory(trial, config)
    model = load_full(tmp_path, "bfloat16")
    assert planned.weights == sum(each.nbytes for each in [*model.parameters(), *model.buffers()])
    examples = [Example(row, [1] * 64, 64) for row in range(6)]
    profiled = profiled_peak(lambda: example_losses(model, examples, 3, 0, lambda done: None))
    assert planned.work == pytest.approx(profiled, rel=0.01)


def shallow(name: str) -> Any:
    """Return the configuration of a paper's model with three layers of the true width."""
    architecture = PAPER.bases[name].architecture
    assert architecture is not None
    return model_config({**architecture, "num_hidden_layers": 3}, name)


@pytest.mark.parametrize("name", SMALL)
def test_memory_depends_on_the_settings(name: str) -> None:
    config = shallow(name)
    usual = finetune_memory(changed(name), config)
    longer = finetune_memory(changed(name, max_length=1024), config)
    more = finetune_memory(changed(name, batch_size=2), config)
    checkpointed = finetune_memory(changed(name, gradient_checkpointing=True), config)
    wider = finetune_memory(changed(name, r=16), config)
    assert usual.saved < longer.saved
    assert usual.step < longer.step
    assert longer.saved == pytest.approx(more.saved, rel=0.01)  # as many tokens
    assert checkpointed.saved < usual.saved
    assert checkpointed.step < usual.step
    assert wider.weights.adapter == 2 * usual.weights.adapter
    assert wider.weights.total - wider.weights.adapter == usual.weights.total - usual.weights.adapter
    for optimizer in ("adamw-8bit", "adamw-32bit"):
        assert usual.peak(optimizer) < wider.peak(optimizer)
    assert usual.peak("adamw-8bit") < usual.peak("adamw-32bit")


def test_saved_memory_grows_linearly_with_the_layers() -> None:
    architecture = PAPER.bases["gpt-neox-20b"].architecture
    assert architecture is not None
    trial = changed("gpt-neox-20b", gradient_checkpointing=False)
    saved = [
        finetune_memory(trial, model_config({**architecture, "num_hidden_layers": layers}, "base")).saved
        for layers in (2, 3, 4)
    ]
    assert saved[2] - saved[1] == saved[1] - saved[0] > 0


def test_a_response_to_a_longer_prompt_needs_more_memory() -> None:
    config = shallow("llama2-7b")
    short, long = (evaluate_memory(changed("llama2-7b", max_length=each), config) for each in (512, 4096))
    assert short.weights == long.weights
    assert short.work < long.work


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"hidden_size": 64}, "model_type"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "auto_map": "evil/model--modeling.AutoModelForCausalLM"}, "auto_map"),
        ({"model_type": "llama", "attn_implementation": "evil/kernel"}, "attn_implementation"),
    ],
)
def test_an_unknown_architecture_is_refused_in_one_line(architecture: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"^bases\.mine\.architecture") as caught:
        model_config(architecture, "mine")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_target_modules_are_refused_in_one_line() -> None:
    trial = changed("llama2-7b")
    model = dataclasses.replace(trial.model, target_modules=["nonesuch"])
    wrong = of_study(trial, models={"llama2-7b": model})
    with pytest.raises(UsageError, match=r"^models\.llama2-7b\.target_modules: .*nonesuch") as caught:
        finetune_memory(wrong, shallow("llama2-7b"))
    assert len(str(caught.value).splitlines()) == 1


def test_deterministic_attention_needs_memory_for_its_scores() -> None:
    config = shallow("llama2-7b")
    fused, written_out = (
        finetune_memory(changed("llama2-7b", profile=profile, gradient_checkpointing=False), config)
        for profile in ("as-published", "bitwise")
    )
    assert written_out.saved > fused.saved
    assert written_out.step > fused.step


def test_the_activation_of_gpt_neox_keeps_six_more_tensors_in_each_layer() -> None:
    """Compare `gelu_fast`, which the study and the hub have, with transformers' default."""
    architecture = PAPER.bases["gpt-neox-20b"].architecture
    assert architecture is not None

    def saved(layers: int, **changes: Any) -> int:
        config = model_config({**architecture, "num_hidden_layers": layers, **changes}, "base")
        return finetune_memory(changed("gpt-neox-20b"), config).saved

    own, default = (saved(3, **act) - saved(2, **act) for act in ({}, {"hidden_act": "gelu"}))
    assert own - default == 6 * 4 * 512 * architecture["intermediate_size"]  # float32


PAGED_FROM = 100_000
"""The number of elements from which bitsandbytes pages the state of a tensor."""


@pytest.mark.parametrize("elements", [PAGED_FROM - 1, PAGED_FROM])
def test_bitsandbytes_pages_the_state_of_large_tensors_only(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged: list[int] = []

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        paged.append(math.prod(shape))
        return torch.empty(shape, dtype=dtype, device=device)

    monkeypatch.setattr(bitsandbytes.functional, "get_paged", get_paged)
    monkeypatch.setattr(bitsandbytes.functional, "fill", lambda buffer, value: None)
    parameter = torch.nn.Parameter(torch.empty(elements, device="meta"))
    optimizer = bitsandbytes.optim.PagedAdamW8bit([parameter], lr=1e-3)
    monkeypatch.setattr(optimizer.page_mng, "paged_tensors", [])
    optimizer.get_state_buffer(parameter, dtype=torch.uint8)
    assert paged == ([elements] if elements >= PAGED_FROM else [])


def test_in_the_papers_study_only_lora_b_of_gpt_neox_is_paged() -> None:
    document = (ROOT / "docs/explanation/memory-and-time.md").read_text(encoding="utf-8")
    for name in PARAMETERS:
        architecture = {**(PAPER.bases[name].architecture or {}), "num_hidden_layers": 1}
        model = adapted_model(changed(name), model_config(architecture, name))
        sizes = {
            re.sub(r".*(lora_[AB]).*", r"\1", parameter): tensor.numel()
            for parameter, tensor in model.named_parameters()
            if tensor.requires_grad
        }
        paged = {part for part, size in sizes.items() if size >= PAGED_FROM}
        assert paged == ({"lora_B"} if "neox" in name else set())
        assert max(sizes.values()) == (147_456 if "neox" in name else 32_768)
        assert f"{max(sizes.values()):,} elements" in document


@pytest.mark.parametrize("name", ["bloom", "falcon", "gpt-oss", "mixtral"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_models_with_other_attention_or_fused_experts_have_a_plan(name: str, compute: str) -> None:
    """Attention that is not torch's, and experts, which are in float32 in training, as PEFT prepares them."""
    family = ARCHITECTURES[name]
    trial = changed("llama2-7b", compute=compute, max_length=32)
    model = dataclasses.replace(trial.model, target_modules=family.targets)
    trial = of_study(trial, models={"llama2-7b": model})
    config = model_config(family.config().to_dict(), name)
    found = finetune_memory(trial, config)
    assert found.weights.unquantized >= 4 * (found.counts.other + found.counts.embeddings)
    assert found.step > 0
    assert evaluate_memory(trial, config).work > 0
