"""The layers of a base that an adapter can change, by the names in the model and in the files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import ARCHITECTURES, chosen, commit, write_base
from support.hub_server import Hub
from support.hub_study import QUOTER, SHARD, User
from support.places import at

from qlora_repeat.assets.base_models import load_full
from qlora_repeat.assets.fetch import fetch
from qlora_repeat.assets.layers import (
    base_skeleton,
    check_finite,
    linear_layers,
    skeleton,
    stored_layers,
    target_layers,
)
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.loading import load_study

KEY = "models.m.target_modules"


def skeleton_of(name: str) -> Any:
    return skeleton(ARCHITECTURES[name].config())


@pytest.mark.parametrize("name", chosen(commit()))
def test_the_layers_are_those_that_peft_adapts(name: str) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    targets = ARCHITECTURES[name].targets
    found = target_layers(skeleton_of(name), targets, KEY)
    adapted = get_peft_model(skeleton_of(name), LoraConfig(target_modules=targets), low_cpu_mem_usage=True)
    by_peft = [path for path, layer in adapted.named_modules() if isinstance(layer, LoraLayer)]
    assert list(found) == [path.removeprefix("base_model.model.") for path in by_peft]
    assert {path.rpartition(".")[2] for path in found} == set(targets)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        (
            "mistral",
            "q_prj",
            "the base has no layer q_prj; did you mean q_proj?; its linear layers are q_proj, k_proj, "
            "v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head",
        ),
        ("mixtral", "w1", "the base has no layer w1; its linear layers are q_proj, k_proj, v_proj, o_proj"),
        ("mixtral", "gate", "model.layers.0.mlp.gate is no linear layer but MixtralTopKRouter; its linear"),
        ("mistral", "mlp", "model.layers.0.mlp is no linear layer but MistralMLP; its linear layers are"),
        ("mistral", "embed_tokens", "model.embed_tokens is no linear layer but Embedding; its linear"),
        ("llama-3-tied", "embed_tokens", "model.embed_tokens shares its weight with lm_head, and an adapter"),
        ("llama-3-tied", "lm_head", "lm_head shares its weight with model.embed_tokens, and an adapter"),
        ("gpt-2", "wte", "transformer.wte shares its weight with lm_head, and an adapter"),
    ],
)
def test_a_layer_that_cannot_be_merged_is_refused_by_name(name: str, target: str, words: str) -> None:
    known = ARCHITECTURES[name].targets[0]
    with pytest.raises(UsageError) as caught:
        target_layers(skeleton_of(name), [known, target], KEY)
    assert str(caught.value).startswith(f"{KEY}: {words}")
    assert "\n" not in str(caught.value)


def test_a_head_is_a_linear_layer_unless_it_is_tied() -> None:
    assert "lm_head" in linear_layers(skeleton_of("mistral"))
    assert "lm_head" not in linear_layers(skeleton_of("llama-3-tied"))


def renamed(base: Path, change: Any) -> Path:
    """Change the name of each tensor in the file of a base."""
    file = base / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return base


@pytest.mark.parametrize("name", ["gpt-2", "bloom", "pythia", "mistral"])
def test_names_may_lack_the_prefix_of_the_model(name: str, tmp_path: Path) -> None:
    base = write_base(name, tmp_path / "base")
    model = base_skeleton(base)
    layers = target_layers(model, ARCHITECTURES[name].targets, KEY)
    before = stored_layers(base, model, layers, "m")
    renamed(base, lambda name: name.removeprefix(f"{model.base_model_prefix}."))
    after = stored_layers(base, model, layers, "m")
    assert list(after) == list(before)
    for path, (_, stored, tensor) in after.items():
        assert f"{model.base_model_prefix}.{stored}" == before[path][1]
        assert tensor.shape == before[path][2].shape


def test_weights_may_be_in_several_files(tmp_path: Path) -> None:
    base = write_base("mistral", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, base / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    model = base_skeleton(base)
    found = stored_layers(base, model, target_layers(model, ["q_proj", "up_proj"], KEY), "m")
    assert all(stored in shards[file.name] for file, stored, _ in found.values())
    assert {file.name for file, _, _ in found.values()} == set(shards)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, tensor: {}, "have no tensor for the weight of model.layers.0.self_attn.q_proj alone"),
        (lambda name, tensor: {name: tensor[:8].contiguous()}, r"float32 with shape \[8, 64\]"),
        (lambda name, tensor: {name: tensor.to(torch.int8)}, r"int8 with shape \[64, 64\]"),
        (lambda name, tensor: {name: tensor.to(torch.float8_e4m3fn)}, "float8_e4m3fn with shape"),
    ],
)
def test_a_weight_that_is_missing_or_in_another_layout_is_refused(
    change: Any, words: str, tmp_path: Path
) -> None:
    base = write_base("mistral", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    changed = change(name, tensors.pop(name))
    save_file(tensors | changed, base / "model.safetensors", {"format": "pt"})
    model = base_skeleton(base)
    with pytest.raises(UsageError, match=f"^{KEY}: .*{words}.*leave it out"):
        stored_layers(base, model, target_layers(model, ["q_proj"], KEY), "m")


def test_a_layer_that_peft_refuses_is_refused_before_training() -> None:
    from peft import LoraConfig, get_peft_model

    with pytest.raises(UsageError, match=r"an adapter on backbone\.layers\.0\.mixer\.out_proj.*leave it out"):
        target_layers(skeleton_of("mamba"), ["x_proj", "out_proj"], KEY)
    with pytest.raises(ValueError, match="out_proj"):
        get_peft_model(skeleton_of("mamba"), LoraConfig(target_modules=["out_proj"]))


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    """Its attention can be in 16 bits, as in gpt-oss, whose experts are in MXFP4."""
    base = write_base("gpt-oss", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    model = base_skeleton(base)
    layers = target_layers(model, ["q_proj"], KEY)
    with pytest.raises(UsageError, match=r"^models\.m\.base: .* is quantized already \(mxfp4\); name one"):
        stored_layers(base, model, layers, "m")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("gpt-2", "transformer.h.1.mlp.c_fc.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    name: str, stored: str, number: float, tmp_path: Path
) -> None:
    base = write_base(name, tmp_path / "base", "float16")
    tensors = load_file(base / "model.safetensors") | {"unused.mask": torch.tensor([float("-inf")])}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    check_finite(base)
    tensors[stored].view(-1)[7] = number
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MissingError, match=rf"model\.safetensors: 1 of the \d+ numbers in {stored} are NaN or"
    ):
        check_finite(base)


def test_weights_that_would_be_random_are_refused(tmp_path: Path) -> None:
    """Transformers only warns, and each load would give another model."""
    base = write_base("mistral", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingError, match=r"lack 2 weights of the model, such as lm_head\.weight, which"):
        load_full(base, "float32")


def test_fetch_refuses_a_name_before_it_downloads_weights(user: User, hub: Hub) -> None:
    user.study.write_text(user.study.read_text().replace('["q_proj", "v_proj"]', '["q_prj"]'))
    refused = user.refused(*QUOTER, code=2)
    assert "models.quoter.target_modules: the base has no layer q_prj; did you mean q_proj?" in refused
    assert hub.asked_for("config.json") == 1
    assert hub.asked_for(SHARD) == 0


def test_fetch_refuses_a_name_for_a_base_that_is_there(study_file: Path, cache: Path, tmp_path: Path) -> None:
    text = study_file.read_text()
    study_file.write_text(text.replace('["q_proj", "down_proj"]', '["q_proj", "lm_hed"]'))
    with pytest.raises(
        UsageError, match=r"^models\.tiny-llama-chat\.target_modules: .*lm_hed; did you mean lm_head"
    ):
        fetch(at(load_study(str(study_file)), tmp_path, cache), lambda line: None)


def test_another_model_of_the_study_does_not_stop_a_fetch(reader: User) -> None:
    text = reader.study.read_text()
    _, found, quoter = text.partition("[models.quoter]")
    other = f"\n[models.other]{quoter.partition('[models.')[0]}".replace('"q_proj", "v_proj"', '"q_prj"')
    reader.study.write_text(text + other)
    assert found and "base llama: fetched, verified" in reader.fetch(*QUOTER)
