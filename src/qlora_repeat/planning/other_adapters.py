"""Estimate what DoRA, and a base in 8 bits, need of memory, on models without memory for their weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qlora_repeat.assets.layers import linear_layers


@dataclass(frozen=True)
class EightBits:
    """What changes, in bytes, if the linear layers of an unquantized model are in 8 bits."""

    quantized: int
    scales: int
    replaced: int
    """Their size without quantization."""
    largest: int
    """The size of the largest of them, which a backward pass dequantizes."""


def eight_bits(model: Any) -> EightBits:
    """Return what the linear layers of a model with an adapter need in 8 bits."""
    layers = list(_eight_bit_layers(model))
    return EightBits(
        quantized=sum(each.weight.numel() for each in layers),
        scales=4 * sum(max(each.weight.shape) for each in layers),
        replaced=sum(each.weight.nbytes for each in layers),
        largest=max((each.weight.nbytes for each in layers), default=0),
    )


def make_others_float(base: Any) -> None:
    """Make all weights float32 but those that will be in 8 bits, as PEFT does."""
    linear = {id(each.weight) for each in _eight_bit_layers(base)}
    for parameter in base.parameters():
        if id(parameter) not in linear:
            parameter.data = parameter.data.float()


def _eight_bit_layers(model: Any) -> Iterator[Any]:
    output = model.get_output_embeddings()
    for path, layer in linear_layers(model).items():
        if layer is not output and ".lora_" not in path:
            yield layer


def add_magnitudes(model: Any) -> None:
    """Turn the LoRA of a model into DoRA, with magnitudes of any value."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.variants import DoraLinearVariant

    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer):
            made = DoraLinearLayer(getattr(layer, "fan_in_fan_out", False))
            made.weight = torch.nn.Parameter(torch.empty(layer.out_features))
            layer.lora_magnitude_vector["default"] = made
            layer.lora_variant["default"] = DoraLinearVariant()
