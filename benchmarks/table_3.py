"""Find settings that need the GPU memory of the paper's Table 3 (some minutes, no GPU).

    python benchmarks/table_3.py

The script prints the memory of fine-tuning for several lengths of the longest example, with and without
gradient checkpointing, with today's libraries and with two properties of the libraries of mid-2023. Then it
prints the length that gives each number of Table 3. Nothing is fitted: the CUDA context is the nominal value
of `plan`.
"""

import dataclasses
import functools
import math
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from places import at
from tabulate import tabulate

from qlora_repeat.planning.gpu_catalog import PAPER_GPU, find_gpu
from qlora_repeat.planning.memory_estimate import evaluate_memory, finetune_memory, model_config
from qlora_repeat.results.published import read_published
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.memory import CONTEXT_BYTES

STUDY = load_study("paper")
SIZES = {"gpt-neox-20b": ["gpt-neox-20b", "gpt-neoxt-chat-20b"], "llama2-7b": ["llama2-7b", "llama2-chat-7b"]}
"""The paper's models of each architecture; models with the same architecture need the same memory."""
LENGTHS = (256, 512, 1024, 2048)
MEMORY = find_gpu(PAPER_GPU).memory


class _KeepingProduct(torch.autograd.Function):
    """The product with a 4-bit matrix as in bitsandbytes 0.41.0, which saves its input unchanged."""

    @staticmethod
    def forward(ctx: Any, factor: Any, packed: Any, bias: Any, state: Any) -> Any:
        ctx.state, ctx.packed = state, packed
        ctx.save_for_backward(factor)
        return torch.nn.functional.linear(factor, dequantize_4bit(packed, state).to(factor.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        _ = ctx.saved_tensors  # not needed, but with checkpointing this access computes it again
        matrix = dequantize_4bit(ctx.packed, ctx.state).to(gradient.dtype)
        return gradient @ matrix, None, None, None


def _forward_of_2023(layer: Any, inputs: Any) -> Any:
    # 0.41.0 computes in the precision of its first input, whatever the setting says: here, float32.
    bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
    product = _KeepingProduct.apply(inputs, layer.weight, bias, layer.weight.quant_state)
    return product.to(inputs.dtype)


FORWARD = {"today": bitsandbytes.nn.Linear4bit.forward, "2023": _forward_of_2023}


def _trial(name: str, length: int, checkpointing: bool) -> Trial:
    model = STUDY.models[name]
    training = dataclasses.replace(model.training, max_length=length, gradient_checkpointing=checkpointing)
    models = {name: dataclasses.replace(model, training=training)}
    return Trial(at(dataclasses.replace(STUDY, models=models)), name, "adamw-8bit", 1)


def _config(name: str, libraries: str) -> Any:
    architecture = dict(STUDY.bases[STUDY.models[name].base].architecture or {})
    # Until autumn 2023, attention saved its scores of every pair of tokens.
    return model_config(
        architecture | ({"attn_implementation": "eager"} if libraries == "2023" else {}), name
    )


@functools.cache
def percent(name: str, length: int, checkpointing: bool, libraries: str) -> float:
    """Return the peak memory of fine-tuning with 8-bit AdamW, in percent of the paper's GPU."""
    bitsandbytes.nn.Linear4bit.forward = FORWARD[libraries]
    memory = finetune_memory(_trial(name, length, checkpointing), _config(name, libraries))
    return 100 * (memory.peak("adamw-8bit") + CONTEXT_BYTES) / MEMORY


def length_for(name: str, wanted: float, libraries: str) -> int:
    """Return the length that needs this percentage without checkpointing, by a parabola through three."""
    (x1, y1), (x2, y2), (x3, y3) = [(each, percent(name, each, False, libraries)) for each in LENGTHS[1:]]
    slope = (y2 - y1) / (x2 - x1)
    curve = ((y3 - y2) / (x3 - x2) - slope) / (x3 - x1)
    linear, rest = slope - curve * (x1 + x2), y1 - slope * x1 + curve * x1 * x2 - wanted
    if curve < 1e-12:
        return round(-rest / linear)
    return round((-linear + math.sqrt(linear**2 - 4 * curve * rest)) / (2 * curve))


def main() -> None:
    warnings.filterwarnings("ignore")
    rows = [
        [name, libraries, "yes" if checkpointing else "no"]
        + [f"{percent(name, length, checkpointing, libraries):.1f}" for length in LENGTHS]
        for name in SIZES
        for libraries in FORWARD
        for checkpointing in (True, False)
    ]
    headers = ["model", "libraries", "checkpointing", *(f"{length} tokens" for length in LENGTHS)]
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), "\n")

    table_3 = {
        row.model: 100 * row.peak_memory_share
        for row in read_published(Path("paper/published"))
        if row.optimizer == "adamw-8bit" and row.peak_memory_share
    }
    rows = []
    for name, models in SIZES.items():
        for model in models:
            for libraries in FORWARD:
                length = length_for(name, table_3[model], libraries)
                found = percent(name, length, False, libraries)
                rows.append([model, f"{table_3[model]:.2f}", libraries, f"{length:,}", f"{found:.2f}"])
    headers = ["model", "Table 3", "libraries", "longest example", "takes"]
    print(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), "\n")

    for name in SIZES:
        weights = evaluate_memory(_trial(name, 512, True), _config(name, "today")).weights
        both = 100 * (weights + CONTEXT_BYTES) / MEMORY
        print(f"{name}: weights in float16 {100 * weights / MEMORY:.2f}, with the context {both:.2f} percent")


if __name__ == "__main__":
    main()
