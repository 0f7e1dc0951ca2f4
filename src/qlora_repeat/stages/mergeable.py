"""Find out before training whether an adapter can be merged, on one layer of each kind."""

import copy
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.layers import base_skeleton, is_transposed, model_targets, stored_layers
from qlora_repeat.errors import StageError
from qlora_repeat.stages.merge import changes_of
from qlora_repeat.stages.trainer import saved_name
from qlora_repeat.study.randomness import torch_stream
from qlora_repeat.study.workspace import Workspace

TOLERANCE = 1e-4
"""The relative difference of products in float32 that rounding explains, generously."""


def check_mergeable(workspace: Workspace, model_name: str, lora: Any) -> None:
    """Check that an adapter on a model of the study can be merged into its fetched base.

    For the first layer with each name, class and shape, merge a random adapter of PEFT, with settings `lora`
    for a layer named "layer", and compare.

    Raises:
        UsageError: a target module is no linear layer, shares its weight, or is stored in another layout.
        StageError: the kit merges such a layer wrongly.
        MissingError: the base cannot be read.
    """
    folder = base_folder(workspace, workspace.study.models[model_name].base)
    model = base_skeleton(folder)
    layers = model_targets(workspace, model_name, model)
    stored = stored_layers(folder, model, layers, model_name)
    kinds = dict[tuple[Any, ...], str]()
    for path, layer in layers.items():
        kinds.setdefault((path.rpartition(".")[2], type(layer), *layer.weight.shape), path)
    with torch_stream(0):
        for path in kinds.values():
            file, name, _ = stored[path]
            if (difference := _difference(layers[path], file, name, lora)) > TOLERANCE:
                raise StageError(
                    f"{folder}: merging an adapter into {path} changes it by {difference:.2g} of its output "
                    f"more than the adapter does; the kit cannot merge {type(layers[path]).__name__} layers"
                )


def _difference(layer: Any, file: Path, name: str, lora: Any) -> float:
    """Return the relative difference of the outputs of a layer with an adapter, and with it merged."""
    import torch
    from peft import inject_adapter_in_model
    from safetensors import safe_open

    plain = copy.deepcopy(layer).to_empty(device="cpu").requires_grad_(False)
    with safe_open(file, framework="pt") as tensors:
        plain.weight.copy_(tensors.get_tensor(name))
    if plain.bias is not None:
        plain.bias.zero_()
    holder = torch.nn.Module()
    holder.layer = copy.deepcopy(plain)
    random = copy.copy(lora)
    random.init_lora_weights = False
    adapted = inject_adapter_in_model(random, holder).eval()
    adapter = {saved_name(name): value for name, value in adapted.named_parameters() if value.requires_grad}
    for name, value in adapter.items():
        if name.endswith("magnitude_vector"):  # which begins as the norm, so that it changes nothing
            value.data *= 0.5 + torch.rand(value.shape)
    change = changes_of(adapter, random.to_dict(), file)["layer"]
    inputs = torch.randn(4, change.a.shape[1])
    with torch.inference_mode():
        expected = adapted.layer(inputs)
        plain.weight.copy_(change.added_to(plain.weight, is_transposed(plain)))
        return float((plain(inputs) - expected).norm() / expected.norm())
