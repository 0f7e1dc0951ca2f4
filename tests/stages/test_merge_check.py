"""Honest merges of all architectures pass the comparison, and each kind of wrong merge is found."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import ARCHITECTURES, miniature, write_base

from qlora_repeat.errors import StageError
from qlora_repeat.stages.merge import merge_weights
from qlora_repeat.stages.merge_check import compare, logits
from qlora_repeat.study.study import Dtype

IDS = list(range(30, 46))
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
IN_A_RUN = ("gpt-2", "llama-3-tied", "mixtral", "falcon")
"""The architectures that each test run tries: transposed layers, tied embeddings, experts, own classes."""
TRIED = ARCHITECTURES if os.environ.get("QLORA_REPEAT_ARCHITECTURES") == "all" else IN_A_RUN


def write_adapter(name: str, folder: Path, size: float = 0.02, **settings: Any) -> Path:
    """Write an adapter with random weights of this standard deviation for a miniature."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=ARCHITECTURES[name].targets, task_type="CAUSAL_LM", **settings
    )
    model = get_peft_model(miniature(name), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=size)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(base: Path, adapter: Path, folder: Path, dtype: Dtype) -> Path:
    folder.mkdir()
    merge_weights(base, adapter, folder, dtype)
    return folder


@pytest.mark.parametrize("name", TRIED)
def test_an_honest_merge_passes_in_every_precision(name: str, tmp_path: Path) -> None:
    adapter = write_adapter(name, tmp_path / "adapter")
    for stored in ("float32", "bfloat16"):
        base = write_base(name, tmp_path / stored, stored)
        for dtype in DTYPES:
            found = merged(base, adapter, tmp_path / f"{stored}-{dtype}", dtype)
            compare(base, adapter, found, "float32", dtype, IDS)
    compare(base, adapter, found, "bfloat16", "float16", IDS)


def test_what_the_comparison_returns(tmp_path: Path) -> None:
    base, adapter = write_base("gpt-2", tmp_path / "base"), write_adapter("gpt-2", tmp_path / "adapter")
    found = compare(
        base, adapter, merged(base, adapter, tmp_path / "m", "bfloat16"), "float32", "bfloat16", IDS
    )
    assert 0 <= found["layers"] < found["layers_bound"] == pytest.approx(2**-13, rel=0.01)
    assert 1e-4 < found["logits"] < found["logits_bound"] == pytest.approx(2 * 8 * 2**-8, rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama-3-tied", "mixtral"])
def test_a_model_that_amplifies_rounding_passes(name: str, dtype: Dtype, tmp_path: Path) -> None:
    """As after a training that diverged: the adapter is a hundred times as large as the base."""
    base, adapter = write_base(name, tmp_path / "base"), write_adapter(name, tmp_path / "adapter", 1.5)
    compare(base, adapter, merged(base, adapter, tmp_path / "merged", dtype), dtype, dtype, IDS)


WRONG = {
    "another scale": lambda base, summed: base + (summed - base) * 0.9,
    "no scale": lambda base, summed: base + (summed - base) / 4,
    "transposed": lambda base, summed: base + (summed - base).T,
    "dropped": lambda base, summed: base,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "layer"), [("llama-3-tied", "self_attn.o_proj"), ("gpt-2", "attn.c_proj")])
def test_a_single_layer_that_was_merged_wrongly_is_named(
    name: str, layer: str, wrong: str, dtype: Dtype, tmp_path: Path
) -> None:
    """The adapter is so small that it changes a layer by 0.2 %, as a short training does."""
    base, adapter = write_base(name, tmp_path / "base"), write_adapter(name, tmp_path / "adapter", 0.005)
    file = merged(base, adapter, tmp_path / "merged", "float32") / "model.safetensors"
    tensors, before = load_file(file), load_file(base / "model.safetensors")
    (key,) = [key for key in tensors if key.endswith(f".1.{layer}.weight")]
    tensors[key] = WRONG[wrong](before[key], tensors[key])
    kept = {key: tensor.to(getattr(torch, dtype)).contiguous() for key, tensor in tensors.items()}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(
        StageError, match=rf"\.1\.{layer}: its merged weight differs from base and adapter by"
    ):
        compare(base, adapter, tmp_path / "merged", "float32", dtype, IDS)


def test_a_part_of_the_model_that_has_no_adapter_is_compared_too(tmp_path: Path) -> None:
    base, adapter = write_base("mistral", tmp_path / "base"), write_adapter("mistral", tmp_path / "adapter")
    folder = merged(base, adapter, tmp_path / "merged", "float16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(
            {**config, "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}}
        )
    )
    with pytest.raises(StageError, match="logits differ from those of base and adapter"):
        compare(base, adapter, folder, "float32", "float16", IDS)


def test_gpt_2_answers_as_base_and_adapter_do(tmp_path: Path) -> None:
    """Do without the functions under test; square and wide layers of GPT-2 have transposed weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter = write_base("gpt-2", tmp_path / "base"), write_adapter("gpt-2", tmp_path / "adapter")
    plain, other = (AutoModelForCausalLM.from_pretrained(base).eval() for _ in range(2))
    found = AutoModelForCausalLM.from_pretrained(merged(base, adapter, tmp_path / "m", "float32")).eval()
    expected = logits(PeftModel.from_pretrained(other, adapter).eval(), IDS)
    assert (logits(found, IDS) - expected).abs().max() < 1e-4
    assert (logits(plain, IDS) - expected).abs().max() > 0.05
