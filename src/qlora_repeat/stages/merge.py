"""Merging an adapter into the base: W = W0 + BA x alpha/r (section VII; the paper leaves out alpha/r).

Each sum is computed on the CPU in float32 from the full-precision weights of the base, then rounded once to
the study's format. Merging into 4-bit weights would partly round the adapter away. Memory holds one tensor of
the base at a time; the rest of its file is mapped, and the system can drop it.
"""

import contextlib
import functools
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.assets.base_models import base_folder, check_base, load_tokenizer
from qlora_repeat.errors import MissingError, StageError
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.files import delete_folder, new_folder, write_bytes, write_json
from qlora_repeat.system.hashing import remember, weights_digest
from qlora_repeat.system.safetensors_file import (
    INDEX,
    WrittenFile,
    check_weights,
    read_header,
    read_weights,
    stream_weights,
    weight_files,
)
from qlora_repeat.system.typed_json import read_as


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class AdapterConfig(TypedDict):
    """What PEFT writes beside an adapter's weights, as far as it is read."""

    r: Annotated[int, Field(gt=0)]
    lora_alpha: float
    lora_dropout: NotRequired[float]
    target_modules: NotRequired[list[str]]


_CONFIG: TypeAdapter[AdapterConfig] = TypeAdapter(AdapterConfig)


def merge(trial: Trial) -> dict[str, Any]:
    """Merge a trial's adapter into its base, and write a model that transformers loads.

    Returns:
        The record's outputs: the digest of the merged weights, and their size in bytes.

    Raises:
        StageError: the adapter changes weights that the base does not have.
    """
    check_base(trial.workspace, trial.model.base)
    source = base_folder(trial.workspace, trial.model.base)
    with new_folder(trial.merged) as folder:
        written = merge_weights(source, trial.adapter, folder, trial.study.precision.merged)
        load_tokenizer(source).save_pretrained(folder)
        for each in written:
            remember(each)
    size = sum(file.stat().st_size for file in trial.merged.glob("*.safetensors"))
    return {"merged_digest": weights_digest(trial.merged), "merged_bytes": size}


def merge_weights(base: Path, adapter: Path, folder: Path, dtype: str) -> list[WrittenFile]:
    """Write the base with the adapter merged into it; floating-point weights become `dtype`.

    Raises:
        MissingError: files of the base are not safetensors, or files of the adapter are not an adapter.
        StageError: the adapter changes weights that the base does not have.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig

    changes = _changes(adapter)
    check_weights(base)
    files: dict[str, str] = {}
    written = []
    merged_type = getattr(torch, dtype)

    def merged(tensors: Any, name: str) -> Any:
        weight = tensors.get_tensor(name)
        if name in changes:
            a, b, scale = changes.pop(name)
            shapes = [list(each.shape) for each in (b, a, weight)]
            fits = [len(shape) for shape in shapes] == [2, 2, 2] and b.shape[1] == a.shape[0]
            if not fits or [b.shape[0], a.shape[1]] != shapes[2]:  # the product could be huge
                raise StageError(f"{adapter}: B, A and {name} have the shapes {shapes}; fine-tune again")
            weight = weight.float() + (b.float() @ a.float()) * scale
        return weight.to(merged_type) if weight.is_floating_point() else weight

    for path in weight_files(base):
        wanted = {
            name: (dtype if getattr(torch, placed.dtype).is_floating_point else placed.dtype, placed.shape)
            for name, placed in read_header(path).items()
        }
        with safe_open(path, framework="pt") as tensors:
            written.append(stream_weights(folder / path.name, wanted, functools.partial(merged, tensors)))
        files |= dict.fromkeys(wanted, path.name)
    if changes:
        raise StageError(f"{adapter}: it changes {min(changes)}, which is not in {base}")
    if (base / INDEX).is_file():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.dtype, config._name_or_path = merged_type, ""
    config.save_pretrained(folder)
    if (base / "generation_config.json").is_file():
        write_bytes(folder / "generation_config.json", (base / "generation_config.json").read_bytes())
    return written


def adapter_config(adapter: Path) -> AdapterConfig:
    """Return what the merge needs of PEFT's description of an adapter.

    Raises:
        MissingError: it is missing or invalid; says what is wrong with which key.
    """
    path = adapter / "adapter_config.json"
    return read_as(_CONFIG, path, "expected numbers lora_alpha and r; fine-tune again")


def _changes(adapter: Path) -> dict[str, tuple[Any, Any, float]]:
    """Return A, B and alpha/r of the adapter by the name of the weight that they change."""
    config = adapter_config(adapter)
    scale = config["lora_alpha"] / config["r"]
    path = adapter / "adapter_model.safetensors"
    tensors = read_weights(path)
    changes = {}
    for name in tensors:
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            if other not in tensors:
                raise MissingError(f"{path}: {other} is missing; fine-tune again")
            changed = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            changes[changed] = (tensors[name], tensors[other], scale)
    return changes


def require_merged(trial: Trial, digest: str) -> None:
    """Rebuild a trial's merged model if it was deleted or damaged.

    Raises:
        StageError: the rebuilt weights differ from those that the merge stage recorded.
    """
    if _found(trial) == digest:
        return
    found = merge(trial)["merged_digest"]
    if found != digest:
        delete_merged(trial)
        raise StageError(
            f"{trial.merged}: rebuilt weights have digest {found[:16]}, the merge record has {digest[:16]}; "
            f"run `qlora-repeat merge {trial.name} --force` to replace the record"
        )


def _found(trial: Trial) -> str | None:
    """Return the digest of the merged weights, or None if they are missing or unreadable."""
    try:
        return weights_digest(trial.merged) if (trial.merged / "config.json").is_file() else None
    except MissingError:
        return None


def delete_merged(trial: Trial) -> None:
    """Delete the merged weights, if they exist and the disk is not read-only."""
    with contextlib.suppress(OSError):
        delete_folder(trial.merged)
