"""Frozen weights during fine-tuning: dequantized for every product, or dequantized once and kept.

A frozen matrix always dequantizes to the same values. bitsandbytes does so for each product, forward and
backward, and frees the result (``MatMul4Bit``), which saves memory. If it is kept instead, the operands of
each product are the same, and so are the bits. An exception are fused kernels, which bitsandbytes uses on
some GPUs for some numbers of tokens: they sum in another order. `gives_same_bits` tests this on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from qlora_repeat.study.study import FrozenWeights
from qlora_repeat.system.memory import free_memory

TESTED_ON_CPU = 4
"""How many batch shapes to test on a CPU, where bitsandbytes has one kernel."""

LEAST_IN_4_BITS = 0.9
"""The share of a base's layers that users of QLoRA expect to be in 4 bits."""

Shape = tuple[int, int]
"""The number of examples and of tokens in a batch."""


class Materialized(torch.nn.Module):
    """A frozen layer with a dequantized weight, which computes what the 4-bit layer computes."""

    def __init__(self, layer: Linear4bit) -> None:
        super().__init__()
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        self.weight = torch.nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output in the dtype of the input; the product is computed in the dtype of the weight."""
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), self.weight, bias).to(x.dtype)


def set_frozen_weights(
    model: Any, setting: FrozenWeights, batches: Sequence[Shape], trials_at_once: int
) -> dict[str, Any]:
    """Keep the 4-bit frozen weights of a model, or dequantize them, as the study says.

    "auto" dequantizes them if they take at most half of a trial's share of the free memory, and give the same
    bits for the given batches.

    Returns:
        Outputs for the record: ``weights``, and ``weights_same_bits``, whether they gave the same bits as the
        4-bit layers (None if not tested).
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
    """Replace each 4-bit layer of a model by a dequantized one, one at a time to save memory."""
    for parent, name, layer in list(_layers(model)):
        setattr(parent, name, Materialized(layer))


def materialized_bytes(model: Any) -> int:
    """Return the size in bytes of a model's dequantized weights."""
    layers = [layer for _, _, layer in _layers(model)]
    return sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)


def gives_same_bits(model: Any, batches: Sequence[Shape]) -> bool:
    """Return whether dequantized weights give the same bits as 4-bit layers on this device.

    Compare one layer of each size, forward and backward, on random batches of the shapes used in training.
    """
    sizes = {(layer.in_features, layer.out_features): layer for _, _, layer in _layers(model)}
    shapes = _shapes_to_test(batches, next(model.parameters()).is_cuda)
    return all(_layer_agrees(layer, shapes) for layer in sizes.values())


def _layer_agrees(layer: Linear4bit, shapes: list[Shape]) -> bool:
    materialized = Materialized(layer)
    return all(_products_agree(layer, materialized, shape) for shape in shapes)


def _shapes_to_test(batches: Sequence[Shape], on_gpu: bool) -> list[Shape]:
    """Return the shapes to test: on a CPU a few, on a GPU one for each number of tokens in a batch.

    A GPU's kernels are chosen by that number: a product has a row for each token of all examples.
    """
    found = sorted(set(batches))
    if on_gpu:
        return list({examples * tokens: (examples, tokens) for examples, tokens in found}.values())
    if len(found) <= TESTED_ON_CPU:
        return found
    return [found[index * (len(found) - 1) // (TESTED_ON_CPU - 1)] for index in range(TESTED_ON_CPU)]


def _products_agree(layer: Linear4bit, materialized: Materialized, shape: Shape) -> bool:
    device = materialized.weight.device
    generator = torch.Generator(device).manual_seed(0)  # one thread of a CPU would take minutes
    x = torch.randn(*shape, layer.in_features, generator=generator, device=device)
    gradient = torch.randn(*shape, layer.out_features, generator=generator, device=device)
    found = []
    for module in (layer, materialized):
        argument = x.clone().requires_grad_()
        product = module(argument)
        product.backward(gradient)
        assert argument.grad is not None, "set by backward"
        found.append((product, argument.grad))
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@dataclass(frozen=True)
class WeightCounts:
    """How many weights of a base are in 4 bits, and how many are not."""

    in_4_bits: int
    embeddings: int
    """Of tokens and positions, and of the output layer, which transformers leaves as they are."""
    other: int
    """Such as fused experts, which are no linear layers."""
    largest: str
    """The path of the largest of the other weights; empty if there is none."""

    @property
    def share(self) -> float:
        """The share of all weights that is in 4 bits, 0 to 1."""
        return self.in_4_bits / (self.in_4_bits + self.embeddings + self.other)

    @property
    def share_of_layers(self) -> float:
        """The share without embeddings, 0 to 1."""
        return self.in_4_bits / ((self.in_4_bits + self.other) or 1)

    def warning(self) -> str | None:
        """Return a sentence if many weights are not in 4 bits that users may expect there, else None."""
        if self.share_of_layers >= LEAST_IN_4_BITS:
            return None
        return (
            f"{100 * self.share:.0f} % of its weights are in 4 bits, because only plain linear layers are "
            f"quantized, and not, for example, {self.largest}"
        )


def count_weights(model: Any) -> WeightCounts:
    """Count the weights of a quantized base without an adapter, before `materialize`."""
    in_4_bits = embeddings = other = 0
    largest, size = "", 0
    output, seen = model.get_output_embeddings(), set[int]()
    for path, module in model.named_modules():
        is_embedding = module is output or isinstance(module, torch.nn.Embedding)
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if type(module) is Linear4bit and name == "weight":
                in_4_bits += module.in_features * module.out_features
            elif is_embedding:
                embeddings += weight.numel()
            else:
                other += weight.numel()
                if weight.numel() > size:
                    largest, size = f"{path}.{name}", weight.numel()
    return WeightCounts(in_4_bits, embeddings, other, largest)


def _layers(model: Any) -> Iterator[tuple[Any, str, Linear4bit]]:
    """Yield each 4-bit layer of a model, also those inside layers with an adapter: parent, name, layer."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is Linear4bit:
                yield parent, name, child
