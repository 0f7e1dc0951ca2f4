"""Merging an adapter into the base: W = W0 + BA x alpha/r (section VII; the paper leaves out alpha/r).

Each sum is computed on the CPU in float32 from the base's own full-precision weights, and then rounded once
to the study's format. Merging into 4-bit weights instead would round the adapter away in part. One file of
the base at a time is in memory.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from qlora_repeat.base_model import base_folder, check_base, load_tokenizer
from qlora_repeat.digest import weights_digest
from qlora_repeat.errors import StageError
from qlora_repeat.files import new_folder, write_json
from qlora_repeat.trial import Trial

INDEX = "model.safetensors.index.json"


def merge(trial: Trial, cache: Path) -> dict[str, Any]:
    """Merges a trial's adapter and leaves a model that plain transformers loads.

    Returns:
        The record's outputs: the digest of the merged weights, and their size in bytes.

    Raises:
        StageError: the adapter changes weights that the base does not have.
    """
    study, base = trial.study, trial.model.base
    check_base(study, base, cache)
    source = base_folder(study, base, cache)
    with new_folder(trial.merged) as folder:
        merge_weights(source, trial.adapter, folder, study.precision.merged)
        load_tokenizer(source).save_pretrained(folder)
    size = sum(file.stat().st_size for file in trial.merged.glob("*.safetensors"))
    return {"merged_digest": weights_digest(trial.merged), "merged_bytes": size}


def merge_weights(base: Path, adapter: Path, folder: Path, dtype: str) -> None:
    """Writes the base with the adapter merged into it, its floating-point weights as `dtype`."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoConfig

    changes = _changes(adapter)
    files: dict[str, str] = {}
    merged_type = getattr(torch, dtype)
    for path in sorted(base.glob("*.safetensors")):
        merged = {}
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                weight = tensors.get_tensor(name)
                if name in changes:
                    a, b, scale = changes.pop(name)
                    weight = weight.float() + (b.float() @ a.float()) * scale
                merged[name] = weight.to(merged_type) if weight.is_floating_point() else weight
        save_file(merged, folder / path.name, metadata={"format": "pt"})
        files |= dict.fromkeys(merged, path.name)
    if changes:
        raise StageError(f"{adapter}: it changes {min(changes)}, which {base} does not have")
    if (base / INDEX).is_file():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    config = AutoConfig.from_pretrained(base)
    config.dtype, config._name_or_path = merged_type, ""
    config.save_pretrained(folder)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")


def _changes(adapter: Path) -> dict[str, tuple[Any, Any, float]]:
    """The adapter's A, B and alpha/r by the name of the weight that they change."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        name.removeprefix("base_model.model.").replace(".lora_A.", "."): (
            tensors[name],
            tensors[name.replace(".lora_A.", ".lora_B.")],
            scale,
        )
        for name in tensors
        if ".lora_A." in name
    }


def require_merged(trial: Trial, cache: Path, digest: str) -> None:
    """Rebuilds a trial's merged model if it has been deleted since, and checks that it is the recorded one.

    Raises:
        StageError: the weights are not those that the merge stage recorded.
    """
    if (trial.merged / "config.json").is_file():
        found = weights_digest(trial.merged)
    else:
        found = merge(trial, cache)["merged_digest"]
    if found != digest:
        delete_merged(trial)
        raise StageError(
            f"{trial.merged}: the weights have digest {found[:16]}, the merge record says {digest[:16]}; "
            f"run `qlora-repeat merge {trial.name} --force` if this machine is to replace them"
        )


def delete_merged(trial: Trial) -> None:
    """Frees the disk that merged weights take."""
    shutil.rmtree(trial.merged, ignore_errors=True)
