"""Frozen weights while fine-tuning: unpacked from 4 bits for every product, or unpacked once and kept.

A frozen matrix unpacks to the same values each time. bitsandbytes does it anew for each product, forwards
and backwards, and frees it again (``MatMul4Bit``): that keeps memory small. Kept, it is the same operand of
the same product, so the bits are the same, too. Only where bitsandbytes multiplies without unpacking, which
it does on some GPUs for some numbers of tokens, sums run in another order; `gives_same_bits` tries that out
on the device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from qlora_repeat.study.study import FrozenWeights
from qlora_repeat.system.memory import free_memory

TRIED_ON_CPU = 4
"""Shapes of batches that are tried there, where bitsandbytes has one way of multiplying; on a GPU all are."""

Shape = tuple[int, int]
"""Examples and tokens of a batch."""


class Materialized(torch.nn.Module):
    """A frozen layer with its weight unpacked, which computes what the 4-bit layer does."""

    def __init__(self, layer: Linear4bit) -> None:
        super().__init__()
        unpacked = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        self.weight = torch.nn.Parameter(unpacked.to(layer.compute_dtype), requires_grad=False)
        self.bias = layer.bias

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """The layer's output, in the type of what is given; the product is in that of the weight."""
        kind = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return torch.nn.functional.linear(given.to(kind), self.weight, bias).to(given.dtype)


def set_frozen_weights(
    model: Any, setting: FrozenWeights, batches: Sequence[Shape], trials_at_once: int
) -> dict[str, Any]:
    """Leaves a quantized model's frozen weights as they are, or unpacks them, as a study says.

    "auto" unpacks them where they take at most half of a trial's share of the free memory, and give the same
    bits for the batches that will come.

    Returns:
        What goes into the record: ``weights``, and whether they gave the bits of 4-bit layers
        (``weights_same_bits``, None where that was not tried).
    """
    if setting == "nf4":
        return {"weights": "nf4", "weights_same_bits": None}
    if setting == "auto" and materialized_bytes(model) > free_memory() // (2 * trials_at_once):
        return {"weights": "nf4", "weights_same_bits": None}
    same = gives_same_bits(model, batches)
    if setting == "auto" and not same:
        return {"weights": "nf4", "weights_same_bits": False}
    materialize(model)
    return {"weights": "materialized", "weights_same_bits": same}


def materialize(model: Any) -> None:
    """Unpacks every 4-bit layer of a model for good, one after the other; each frees its packed weight."""
    for parent, name, layer in list(_layers(model)):
        setattr(parent, name, Materialized(layer))


def materialized_bytes(model: Any) -> int:
    """What the unpacked weights of a model would take."""
    layers = [layer for _, _, layer in _layers(model)]
    return sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)


def gives_same_bits(model: Any, batches: Sequence[Shape]) -> bool:
    """Whether unpacked weights give, forwards and backwards, the bits of 4-bit layers on this device.

    One layer of each size is tried, on batches of random numbers of the shapes that training will have.
    """
    sizes = {(layer.in_features, layer.out_features): layer for _, _, layer in _layers(model)}
    return all(
        _products_agree(layer, Materialized(layer), shape)
        for layer in sizes.values()
        for shape in _to_try(batches, next(model.parameters()).is_cuda)
    )


def _to_try(batches: Sequence[Shape], on_gpu: bool) -> list[Shape]:
    found = sorted(set(batches))
    if on_gpu or len(found) <= TRIED_ON_CPU:
        return found
    return [found[place * (len(found) - 1) // (TRIED_ON_CPU - 1)] for place in range(TRIED_ON_CPU)]


def _products_agree(layer: Linear4bit, kept: Materialized, shape: Shape) -> bool:
    generator = torch.Generator().manual_seed(0)
    device = kept.weight.device
    given = torch.randn(*shape, layer.in_features, generator=generator).to(device)
    gradient = torch.randn(*shape, layer.out_features, generator=generator).to(device)
    found = []
    for module in (layer, kept):
        argument = given.clone().requires_grad_()
        product = module(argument)
        product.backward(gradient)
        assert argument.grad is not None, "it asks for one"
        found.append((product, argument.grad))
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _layers(model: Any) -> Iterator[tuple[Any, str, Linear4bit]]:
    """The plain 4-bit layers of a model, those inside adapted ones included, each with its place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is Linear4bit:
                yield parent, name, child
