"""Merging an adapter into the base: W = W0 + BA x alpha/r (section VII; the paper leaves out alpha/r).

With rsLoRA, the scale is alpha / sqrt(r). With DoRA, each row of W gets the length that was learned for it.

Each sum is computed on the CPU in float32 from the full-precision weights of the base, then rounded once to
the study's format. Merging into 4-bit weights would partly round the adapter away. Memory holds one tensor of
the base at a time; the rest of its file is mapped, and the system can drop it. Afterwards the merged model is
compared with base and adapter (`qlora_repeat.stages.merge_check`).
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.assets.base_models import base_folder, check_base, load_tokenizer
from qlora_repeat.assets.layers import base_skeleton, is_transposed, model_names
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
    use_rslora: NotRequired[bool]
    use_dora: NotRequired[bool]


_CONFIG: TypeAdapter[AdapterConfig] = TypeAdapter(AdapterConfig)
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


@dataclass(frozen=True)
class Change:
    """What an adapter adds to the weight of a layer: B A x scale, with B (outputs, r) and A (r, inputs).

    With a `magnitude` (outputs), the weights of each output then get this norm (DoRA, equation 5).
    """

    a: Any
    b: Any
    scale: float
    magnitude: Any = None

    def added_to(self, weight: Any, transposed: bool) -> Any:
        """Return the changed weight in float32; `transposed` if its shape is (inputs, outputs)."""
        change = (self.b.float() @ self.a.float()) * self.scale
        changed = weight.float() + (change.T if transposed else change)
        if self.magnitude is None:
            return changed
        factor = self.magnitude.float() / changed.norm(dim=0 if transposed else 1)
        return factor.view(1, -1) * changed if transposed else factor.view(-1, 1) * changed

    @property
    def is_finite(self) -> bool:
        """Whether all its numbers are finite; those of a training that diverged may not be."""
        parts = [each for each in (self.a, self.b, self.magnitude) if each is not None]
        return all(bool(each.isfinite().all()) for each in parts)

    def fits(self, weight: Any, transposed: bool) -> bool:
        """Return whether the shapes fit; if not, the product could be huge."""
        shapes = [list(each.shape) for each in (self.b, self.a, weight)]
        if [len(shape) for shape in shapes] != [2, 2, 2] or self.b.shape[1] != self.a.shape[0]:
            return False
        shape = [self.b.shape[0], self.a.shape[1]]
        if self.magnitude is not None and list(self.magnitude.shape) != shape[:1]:
            return False
        return shapes[2] == (shape[::-1] if transposed else shape)


def merge(trial: Trial) -> dict[str, Any]:
    """Merge a trial's adapter into its base, and write a model that transformers loads.

    Returns:
        The record's outputs: the digest of the merged weights, their size in bytes, and how the merged model
        compares with base and adapter.

    Raises:
        StageError: the adapter cannot be merged whole, weights become infinite in the precision of the merged
            model, or the merged model differs from base and adapter.
    """
    from qlora_repeat.stages.merge_check import check_merged

    compared: dict[str, Any] = {}
    _write(trial, lambda base, folder: compared.update(check_merged(trial, base, folder)))
    size = sum(file.stat().st_size for file in trial.merged.glob("*.safetensors"))
    return {"merged_digest": weights_digest(trial.merged), "merged_bytes": size, "compared": compared}


def _write(trial: Trial, check: Callable[[Path, Path], None] = lambda base, folder: None) -> None:
    """Write the merged model; `check` gets the folders of the base and of the new model before it counts."""
    check_base(trial.workspace, trial.model.base)
    source = base_folder(trial.workspace, trial.model.base)
    with new_folder(trial.merged) as folder:
        written = merge_weights(source, trial.adapter, folder, trial.study.precision.merged)
        load_tokenizer(source).save_pretrained(folder)
        for each in written:
            remember(each)
        check(source, folder)


def merge_weights(base: Path, adapter: Path, folder: Path, dtype: str) -> list[WrittenFile]:
    """Write the base with the adapter merged into it; floating-point weights become `dtype`.

    Raises:
        MissingError: files of the base are not safetensors, or files of the adapter are not an adapter.
        StageError: the adapter changes weights that the base does not have, or has other tensors; or finite
            weights become infinite.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig

    changes = read_changes(adapter)
    check_weights(base)
    model = base_skeleton(base)
    names, layers = model_names(base, model), dict(model.named_modules())
    files: dict[str, str] = {}
    written = []
    merged_type = getattr(torch, dtype)
    overflow = dict[str, int]()

    def merged(tensors: Any, name: str) -> Any:
        weight = tensors.get_tensor(name)
        if not weight.is_floating_point():
            return weight
        path, is_weight, _ = names.get(name, "").rpartition(".weight")
        change, transposed = changes.pop(path, None) if is_weight else None, is_transposed(layers.get(path))
        if change is None:
            rounded = weight.to(merged_type)
        elif change.fits(weight, transposed):
            rounded = change.added_to(weight, transposed).to(merged_type)
        else:
            shapes = [list(each.shape) for each in (change.b, change.a, weight)]
            raise StageError(f"{adapter}: B, A and {name} have the shapes {shapes}; fine-tune again")
        if (change is None or change.is_finite) and (lost := _beyond(weight, rounded)):
            overflow[name] = lost
        return rounded

    for path in weight_files(base):
        wanted = {
            name: (dtype if getattr(torch, placed.dtype).is_floating_point else placed.dtype, placed.shape)
            for name, placed in read_header(path).items()
        }
        with safe_open(path, framework="pt") as tensors:
            written.append(stream_weights(folder / path.name, wanted, functools.partial(merged, tensors)))
        files |= dict.fromkeys(wanted, path.name)
    if changes:
        raise StageError(f"{adapter}: it changes {min(changes)}.weight, which is not in {base}")
    if overflow:
        raise StageError(
            f"{adapter}: {sum(overflow.values())} merged weights are beyond {dtype}, which ends at "
            f"{torch.finfo(merged_type).max:.3g}, such as in {min(overflow)}; "
            "set precision.merged to bfloat16 or float32"
        )
    if (base / INDEX).is_file():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.dtype, config._name_or_path = merged_type, ""
    config.save_pretrained(folder)
    if (base / "generation_config.json").is_file():
        write_bytes(folder / "generation_config.json", (base / "generation_config.json").read_bytes())
    return written


def _beyond(weight: Any, rounded: Any) -> int:
    """Return how many finite numbers of a weight are infinite after rounding."""
    is_finite = rounded.isfinite()
    return 0 if is_finite.all() else int((weight.isfinite() & ~is_finite).sum())


def adapter_config(adapter: Path) -> AdapterConfig:
    """Return what the merge needs of PEFT's description of an adapter.

    Raises:
        MissingError: it is missing or invalid; says what is wrong with which key.
    """
    path = adapter / "adapter_config.json"
    return read_as(_CONFIG, path, "expected numbers lora_alpha and r; fine-tune again")


def read_changes(adapter: Path) -> dict[str, Change]:
    """Return what an adapter adds, by the path of the layer.

    Raises:
        MissingError: its files are missing or invalid, or lack a tensor.
        StageError: it has tensors that a merge would drop.
    """
    path = adapter / "adapter_model.safetensors"
    return changes_of(read_weights(path), adapter_config(adapter), path)


def changes_of(tensors: Mapping[str, Any], config: AdapterConfig, path: Path) -> dict[str, Change]:
    """Return what the tensors of an adapter add, by the path of the layer.

    Args:
        tensors: by the names that they have in a file.
        config: PEFT's description of the adapter.
        path: the file, for errors.

    Raises:
        MissingError: a tensor is missing.
        StageError: a merge would drop a tensor.
    """
    changes, left = dict[str, Change](), set(tensors)
    ranks = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / ranks
    for name in tensors:
        if name.endswith(_A):
            other, magnitude = name.removesuffix(_A) + _B, name.removesuffix(_A) + _MAGNITUDE
            needed = [other, magnitude] if config.get("use_dora") else [other]
            if absent := [each for each in needed if each not in tensors]:
                raise MissingError(f"{path}: {absent[0]} is missing; fine-tune again")
            layer = name.removeprefix("base_model.model.").removesuffix(_A)
            learned = tensors[magnitude] if magnitude in needed else None
            changes[layer] = Change(tensors[name], tensors[other], scale, learned)
            left -= {name, *needed}
    if left:
        raise StageError(f"{path}: {min(left)} cannot be merged; only A and B of linear layers can")
    return changes


def require_merged(trial: Trial, digest: str) -> None:
    """Rebuild a trial's merged model if it was deleted or damaged.

    Raises:
        StageError: the rebuilt weights differ from those that the merge stage recorded.
    """
    if _found(trial) == digest:
        return
    _write(trial)
    found = weights_digest(trial.merged)
    if found != digest:
        delete_merged(trial)
        raise StageError(
            f"{trial.merged}: rebuilt weights have digest {found[:16]}, the merge record has {digest[:16]}; "
            f"run `{trial.workspace.command('merge', '--force', trial=trial.name)}` to replace the record"
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
