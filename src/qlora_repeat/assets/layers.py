"""The linear layers of a base, which an adapter can change, and the tensors of its files that hold them."""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.configuration import mend_padding, usable
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.safetensors_file import StoredTensor, read_header, weight_files

_TYPES = ("float16", "bfloat16", "float32", "float64")
"""The types of weights that mean what they say; others have scales elsewhere."""
_MOST_LISTED = 40
"""Names of layers in an error."""
_WITH_FUSED_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Models of which PEFT adapts no `out_proj`, because fused kernels read its weight and never call it."""


def check_layers(workspace: Workspace, model_name: str) -> None:
    """Check that an adapter on a model's target modules can be merged into its fetched base.

    Raises:
        UsageError: a name matches no layer, or a layer into which no adapter can be merged; says why.
        MissingError: the base cannot be read.
    """
    folder = base_folder(workspace, workspace.study.models[model_name].base)
    model = base_skeleton(folder)
    stored_layers(folder, model, model_targets(workspace, model_name, model), model_name)


def base_skeleton(folder: Path) -> Any:
    """Return the model in a folder on torch's meta device, without memory for its weights."""
    from transformers import AutoConfig

    with usable(folder):
        return skeleton(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def skeleton(config: Any, dtype: Any = None) -> Any:
    """Return the model of a configuration on torch's meta device; `dtype` is torch's, by default float32."""
    import torch
    from transformers import AutoModelForCausalLM

    mend_padding(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32, trust_remote_code=False)


def is_transposed(layer: Any) -> bool:
    """Return whether a layer keeps its weight as (inputs, outputs), as GPT-2's layers do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def linear_layers(model: Any) -> dict[str, Any]:
    """Return the linear layers of a model by their path, without those that share weights, as a tied head."""
    from torch.nn import Linear

    shared = _shared(model)
    return {
        path: layer
        for path, layer in model.named_modules()
        if (isinstance(layer, Linear) or is_transposed(layer)) and path not in shared
    }


def _shared(model: Any) -> dict[str, str]:
    """Return the path of each module whose weight is also another module's, with the path of the other."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "_parameters", {}).get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(path)
    return {
        path: next(each for each in paths if each != path)
        for paths in owners.values()
        for path in paths
        if len(paths) > 1
    }


def model_targets(workspace: Workspace, model_name: str, model: Any) -> dict[str, Any]:
    """Return the layers of a base that a model of the study adapts, by their path (see `target_layers`)."""
    names = workspace.study.models[model_name].target_modules
    if names == "all-linear":
        return _all_linear(model)
    return target_layers(model, names, _key(model_name))


def _all_linear(model: Any) -> dict[str, Any]:
    """Return what PEFT adapts for "all-linear": all linear layers but the output, and those it refuses."""
    output = model.get_output_embeddings()
    return {
        path: layer
        for path, layer in linear_layers(model).items()
        if layer is not output and not _is_never_called(model, path)
    }


def _is_never_called(model: Any, path: str) -> bool:
    """Return whether fused kernels read the weight of a layer, so that they would ignore an adapter."""
    return path.endswith("out_proj") and model.config.model_type in _WITH_FUSED_MAMBA


def target_layers(model: Any, names: Sequence[str], key: str) -> dict[str, Any]:
    """Return the layers with these names by their path; PEFT adapts the same ones.

    A name is a path, or its end. `key` is the place in the study, for errors.

    Raises:
        UsageError: a name matches no layer, or one that is not linear or shares its weight with another.
    """
    modules, linear, shared = dict(model.named_modules()), linear_layers(model), _shared(model)
    found = dict[str, Any]()
    for name in names:
        paths = [path for path in modules if path == name or path.endswith(f".{name}")]
        if not paths:
            close = difflib.get_close_matches(name, _short_names(linear), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{key}: the base has no layer {name}{hint}; {_listed(linear)}")
        for path in paths:
            if path in shared:
                reason = f"{path} shares its weight with {shared[path]}, and an adapter would change only one"
                raise UsageError(f"{key}: {reason}; leave it out; {_listed(linear)}")
            if path not in linear:
                reason = f"{path} is no linear layer but {type(modules[path]).__name__}"
                raise UsageError(f"{key}: {reason}; {_listed(linear)}")
            if _is_never_called(model, path):
                reason = f"fused kernels of Mamba would ignore an adapter on {path}, and PEFT refuses it"
                raise UsageError(f"{key}: {reason}; leave it out; {_listed(linear)}")
            found[path] = modules[path]
    return {path: found[path] for path in linear if path in found}


def stored_layers(
    folder: Path, model: Any, layers: Iterable[str], model_name: str
) -> dict[str, tuple[Path, str, StoredTensor]]:
    """Return the file, the name and the place of the weight of each of these layers, by their path.

    `model_name` is the model of the study, for errors.

    Raises:
        UsageError: the files have no such weight, or keep it in another layout than the model, as those of
            a model that is quantized already.
        MissingError: they cannot be read.
    """
    if quantized := getattr(model.config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UsageError(
            f"models.{model_name}.base: the model in {folder} is quantized already"
            f"{f' ({method})'[:40] if method else ''}; name one with weights in 16 or 32 bits, which the kit "
            "quantizes itself"
        )
    names, key = {name: stored for stored, name in model_names(folder, model).items()}, _key(model_name)
    placed = {name: (path, each) for path in weight_files(folder) for name, each in read_header(path).items()}
    found = dict[str, tuple[Path, str, StoredTensor]]()
    for path in layers:
        stored = names.get(f"{path}.weight")
        if stored is None:
            raise UsageError(
                f"{key}: the files in {folder} have no tensor for the weight of {path} alone, so no adapter "
                "can be merged into it; leave it out"
            )
        file, tensor = placed[stored]
        expected = list(model.get_submodule(path).weight.shape)
        if tensor.shape != expected or tensor.dtype not in _TYPES:
            raise UsageError(
                f"{key}: {stored} in {file} is {tensor.dtype} with shape {tensor.shape}, the model expects "
                f"{expected} in 16 or 32 bits, so no adapter can be merged into it; leave it out"
            )
        found[path] = file, stored, tensor
    return found


def model_names(folder: Path, model: Any) -> dict[str, str]:
    """Return the model's name of each tensor in a folder that transformers loads as it is, by its own name.

    Files may lack the prefix of the model, as those of GPT-2, or have other names, which transformers knows.
    Tensors that transformers joins with others, splits or transposes are left out.
    """
    return {stored: name for _, stored, name, converted in _renamed(folder, model) if not converted}


def check_finite(folder: Path) -> None:
    """Check that the weights of a base have no NaN and nothing infinite, which 4 bits could hide.

    Tensors that the model does not use, such as masks, may have them.

    Raises:
        MissingError: a weight has some.
    """
    from safetensors import safe_open

    model = base_skeleton(folder)
    known = model.state_dict()
    for file, names in itertools.groupby(_renamed(folder, model), key=lambda each: each[0]):
        with safe_open(file, framework="pt") as tensors:
            for _, stored, name, _ in names:
                weight = tensors.get_tensor(stored)
                if name not in known or str(weight.dtype).removeprefix("torch.") not in _TYPES:
                    continue
                if wrong := int((~weight.isfinite()).sum()):
                    raise MissingError(
                        f"{file}: {wrong} of the {weight.numel()} numbers in {stored} are NaN or infinite; "
                        "the study must name another model"
                    )


def _renamed(folder: Path, model: Any) -> Iterator[tuple[Path, str, str, bool]]:
    """Yield for each tensor in a folder its file, its name, the model's, and whether it is converted."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    steps = get_model_conversion_mapping(model)
    converters = [each for each in steps if isinstance(each, WeightConverter)]
    renamings = [each for each in steps if not isinstance(each, WeightConverter)]
    prefix, known = model.base_model_prefix, model.state_dict()
    for path in weight_files(folder):
        for stored in read_header(path):
            name, converted = rename_source_key(stored, renamings, converters, prefix, known)
            if name not in known and stored in known:
                name, converted = rename_source_key(stored, [], [], prefix, known)
            yield path, stored, name, converted is not None


def _key(model_name: str) -> str:
    return f"models.{model_name}.target_modules"


def _short_names(layers: Mapping[str, Any]) -> list[str]:
    """Return the ends of paths that name layers, such as q_proj; a number gets the name before it."""
    ends = (path.split(".") for path in layers)
    return list(dict.fromkeys(".".join(end[-2:]) if end[-1].isdecimal() else end[-1] for end in ends))


def _listed(layers: Mapping[str, Any]) -> str:
    names = _short_names(layers)
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"its linear layers are {', '.join(names[:_MOST_LISTED])}{more}"
