"""Compare a merged model with base plus adapter, and find out before training whether a model can be merged.

Two models are loaded one after the other, in the precision of the tests, so that the comparison needs no more
memory than they do. It has two parts.

**Layers.** For each adapted layer, random inputs x from a normal distribution are multiplied by R, the sum of
base and adapter as PEFT computes it in float32, rounded as the merged model is; and by M, the layer's weight
in the merged model. The mean square of (M - R)x is the sum of the squares of M - R, whatever these are, so

    |(M - R)x| / (|x's| |R|)  estimates  |M - R| / |R|        (Frobenius norms)

R and M are sums of the same numbers, whose relative errors e differ: 2^-24 for the order of a sum in float32,
or the unit roundoff of the type that the models are computed in, if it cannot hold the weights of the base.
Rounding to a type with unit roundoff u hides such errors, except in a share of about e/u of the weights. They
are so close to the middle between two numbers of the type that they are rounded to different ones, 2u apart:
in the norm 2u sqrt(e/u) = 2 sqrt(eu). `layer_bound` allows four times that, and 4u of the type of the
computation if it cannot hold the merged weights. What a merge did wrong is found if it is larger: a wrong
scale, a transposed product or a layer that was left out, if |BA| > 1.2e-4 |R| in bfloat16 (float16: 4.4e-5).

**Logits.** The whole models answer one short text. Weights that were rounded to the merged type, and numbers
that were rounded to the type of the computation, change the output of each layer by about u; over the layers
this adds up, at most in proportion to their number: `logits_bound`. A model that amplifies errors, as after a
training that diverged, gets a larger bound: how its logits change if the embeddings change by u. This finds
what is no adapted layer, such as a tied head that was lost, or a setting of the configuration. With experts,
rounding can change the choice of a router and make a token's logits jump, so the median over tokens counts.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import load_full, load_tokenizer
from qlora_repeat.assets.layers import is_transposed
from qlora_repeat.errors import StageError
from qlora_repeat.stages.merge import read_changes
from qlora_repeat.study.study import Dtype
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.memory import release_memory
from qlora_repeat.system.safetensors_file import read_header, weight_files

TEXT = "The merged model must answer as the base with its adapter does, but for rounding."
"""What both models read; any text would do."""
TOKENS = 16
PROBES = 8
"""Random inputs of a layer."""
FLOAT32 = 2.0**-24
"""The unit roundoff of float32."""


def check_merged(trial: Trial, base: Path, merged: Path) -> dict[str, Any]:
    """Compare a merged model with a base and a trial's adapter; see the module.

    Returns:
        How they compare, for the record: ``logits`` and ``layers``, the relative differences (of layers the
        largest), and the bounds of both. Empty if the adapter has numbers that are not finite, as after a
        training that diverged: then nothing can be compared.

    Raises:
        StageError: they differ by more than rounding.
    """
    if not all(change.is_finite for change in read_changes(trial.adapter).values()):
        return {}
    precision = trial.study.precision
    ids = load_tokenizer(base)(TEXT).input_ids[:TOKENS] or [0]
    return compare(base, trial.adapter, merged, precision.compute, precision.merged, ids)


def compare(
    base: Path, adapter: Path, merged: Path, compute: Dtype, dtype: Dtype, ids: list[int]
) -> dict[str, Any]:
    """Compare a merged model, with weights in `dtype`, with base and adapter on the tokens `ids`.

    Returns:
        As `check_merged`.

    Raises:
        StageError: they differ by more than rounding; names the layer.
    """
    adapted, rounding = load_adapted(base, adapter, compute), unit_roundoff(dtype) + unit_roundoff(compute)
    expected, answer = _reference(adapted, dtype, compute), logits(adapted, ids)
    with _noise(adapted, rounding):
        amplified = logit_difference(answer, logits(adapted, ids))
    del adapted
    release_memory()
    model = load_full(merged, compute)
    apart = {path: _apart(model, path, *known) for path, known in expected.items()}
    lost = logit_difference(answer, logits(model, ids))
    bound = logits_bound(rounding, int(model.config.get_text_config().num_hidden_layers), amplified)
    del model
    release_memory()
    found = {
        "layers": max(apart.values()),
        "layers_bound": layer_bound(dtype, compute, _stored_types(base)),
        "logits": lost,
        "logits_bound": bound,
    }
    worst = max(apart, key=lambda path: apart[path])
    if not found["layers"] <= found["layers_bound"]:
        raise StageError(
            f"{worst}: its merged weight differs from base and adapter by {found['layers']:.2g} of its size, "
            f"rounding explains {found['layers_bound']:.2g}; the kit cannot merge this model"
        )
    if not lost <= bound:
        raise StageError(
            f"the merged model's logits differ from those of base and adapter by {lost:.2g} of their size, "
            f"rounding explains {bound:.2g}; the kit cannot merge this model"
        )
    return found


def load_adapted(base: Path, adapter: Path, compute: Dtype) -> Any:
    """Load a base with an adapter; it computes in `compute`."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # PEFT sees Conv1D itself
        return PeftModel.from_pretrained(load_full(base, compute), str(adapter)).eval()


def logits(model: Any, ids: list[int]) -> Any:
    """Return the logits of a text in float32 on the CPU: (tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().cpu()


@contextlib.contextmanager
def _noise(model: Any, size: float) -> Iterator[None]:
    """Change the embeddings of a model by random relative errors of this size in the block."""
    import torch

    def change(module: Any, inputs: Any, output: Any) -> Any:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)) * size
        return output * (1 + noise).to(output)

    handle = model.get_input_embeddings().register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def logit_difference(expected: Any, found: Any) -> float:
    """Return the relative difference of logits, the median over tokens; softmax ignores their mean.

    Tokens whose expected logits are not finite do not count.
    """
    tokens = expected.isfinite().all(-1)
    if not tokens.any():
        return 0.0
    expected, found = (each[tokens] - each[tokens].mean(-1, keepdim=True) for each in (expected, found))
    ratios = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(ratios.nan_to_num(math.inf).median())


def layer_bound(dtype: Dtype, compute: Dtype, stored: set[str]) -> float:
    """Return the largest relative difference of a layer that rounding explains; see the module.

    Args:
        dtype: the type of the merged weights.
        compute: the type that both models are loaded in.
        stored: the types of the weights of the base.
    """
    merged, error = unit_roundoff(dtype), FLOAT32
    if not all(compute in ("float32", each) for each in stored):
        error = unit_roundoff(compute)
    bound = 8 * math.sqrt(error * max(error, merged))
    return bound if compute in ("float32", dtype) else bound + 4 * unit_roundoff(compute)


def logits_bound(rounding: float, depth: int, amplified: float) -> float:
    """Return the largest relative difference of logits that rounding explains.

    Args:
        rounding: the relative error of each rounding.
        depth: the number of layers.
        amplified: the difference that such an error of the embeddings makes.
    """
    return max(min(0.5, 8 * depth * rounding), 8 * amplified)


def unit_roundoff(dtype: str) -> float:
    """Return the largest relative error of rounding a number to a type."""
    import torch

    return float(torch.finfo(getattr(torch, dtype)).eps) / 2


def _reference(adapted: Any, dtype: Dtype, compute: Dtype) -> dict[str, tuple[Any, float]]:
    """Return for each adapted layer, by path, the products of the random inputs, and the norm of its weight.

    The sums are made on the CPU, one layer at a time, and are PEFT's own.
    """
    import torch

    found = {}
    for path, layer in _lora_layers(adapted):
        summed = copy.deepcopy(layer).to("cpu", torch.float32)
        summed.merge()
        rounded = summed.base_layer.to(getattr(torch, dtype)).to(getattr(torch, compute))
        found[path] = _products(rounded), float(rounded.weight.norm())
    return found


def _lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            yield path.removeprefix("base_model.model."), layer


def _products(layer: Any) -> Any:
    """Return the products of a layer on the CPU with the same random inputs each time, in float32."""
    import torch

    weight = layer.float().weight
    inputs = weight.shape[0] if is_transposed(layer) else weight.shape[1]
    x = torch.randn(PROBES, inputs, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return layer(x)


def _apart(model: Any, path: str, expected: Any, norm: float) -> float:
    """Return how far a layer of the merged model is from what is expected, relative to its weight."""
    found = _products(copy.deepcopy(model.get_submodule(path)).cpu())
    difference = float((found - expected).norm()) / (math.sqrt(PROBES) * norm)
    return math.inf if math.isnan(difference) else difference


def _stored_types(folder: Path) -> set[str]:
    """Return the floating-point types of the weights in a folder."""
    found = {tensor.dtype for path in weight_files(folder) for tensor in read_header(path).values()}
    return {dtype for dtype in found if "float" in dtype}
