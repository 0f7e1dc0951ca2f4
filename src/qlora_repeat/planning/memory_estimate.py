"""Estimate the GPU memory of fine-tuning and testing a model from its architecture alone.

The estimate uses the libraries that train. They build the model without memory for its weights (torch's meta
device), quantize and adapt it as `qlora_repeat.stages.finetune` does, and run one step with tensors that have
a shape and a type but no content (FakeTensorMode), while `LiveMemory` counts their bytes:
docs/explanation/memory-and-time.md.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qlora_repeat.assets.base_models import quantization_config
from qlora_repeat.assets.configuration import code_key, mend_padding
from qlora_repeat.assets.layers import model_targets, skeleton
from qlora_repeat.errors import UsageError
from qlora_repeat.planning.other_adapters import add_magnitudes, eight_bits, make_others_float
from qlora_repeat.stages.dequantize import Materialized, WeightCounts, count_weights, materialize
from qlora_repeat.stages.finetune import with_adapter
from qlora_repeat.study.optimizers import Optimizer, OptimizerName
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.determinism import attention_kernels

OPTIMIZER_BLOCK = 256
"""The number of elements that share a scale in 8-bit optimizer state (bitsandbytes since 0.44)."""
OPTIMIZER_LEAST = 4096
"""Tensors with fewer elements keep 32-bit state (bitsandbytes' min_8bit_size)."""

_ATTENTION = "sdpa-without-mask"
"""transformers' default attention under another name than `sdpa`, so that it gets no mask. Without padding,
transformers omits the mask itself, but it reads the mask first, and a fake mask cannot be read."""


@dataclass(frozen=True)
class WeightBytes:
    """The memory of a model before it runs, in bytes."""

    quantized: int
    """Weights in 4 bits."""
    scales: int
    """What dequantization needs: block scales, their own scales, offsets and code books."""
    materialized: int
    """Weights that were dequantized from 4 bits once and are kept."""
    unquantized: int
    """All other weights and buffers of the base, in the precision of fine-tuning."""
    adapter: int

    @property
    def total(self) -> int:
        return self.quantized + self.scales + self.materialized + self.unquantized + self.adapter


@dataclass(frozen=True)
class FinetuneMemory:
    """Memory of fine-tuning in bytes, without the optimizer state (see `optimizer_bytes`)."""

    weights: WeightBytes
    counts: WeightCounts
    adapter_tensors: list[int]
    """The number of elements of each."""
    saved: int
    """What the forward pass of a batch of maximum length keeps for the backward pass."""
    step: int
    """The peak of a step beyond the weights: saved tensors, gradients and temporary tensors."""

    def peak(self, optimizer: OptimizerName) -> int:
        """Return the peak of any step after the first."""
        return self.weights.total + optimizer_bytes(self.adapter_tensors, optimizer) + self.step


@dataclass(frozen=True)
class EvaluateMemory:
    """Memory of testing a merged model, in bytes."""

    weights: int
    work: int
    """The peak beyond the weights: the logits of a batch, or keys and values while generating."""


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the bytes of live tensors, and their peak; a shared storage counts once.

    `within` returns the bytes that an operation allocates and frees internally, given its arguments.
    """

    def __init__(self, within: Callable[..., int] = lambda operation, arguments, keywords: 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._within = within
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that existed before the context, or that no operation returns."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self._sizes:
                self._sizes[address] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, address)
        self.peak = max(self.peak, self.now)

    def _freed(self, address: int) -> None:
        self.now -= self._sizes.pop(address)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.count(each for each in tree_iter(result) if isinstance(each, torch.Tensor))
        self.peak = max(self.peak, self.now + self._within(operation, args, kwargs or {}))
        return result


def model_config(architecture: Mapping[str, Any], name: str) -> Any:
    """Return the transformers configuration of an architecture; `name` is the base, for errors.

    Raises:
        UsageError: transformers does not know the architecture, or a value is invalid.
    """
    if "model_type" not in architecture:
        raise UsageError(f"bases.{name}.architecture: it has no model_type, such as llama or gpt_neox")
    if key := code_key(dict(architecture)):
        raise UsageError(
            f"bases.{name}.architecture: {key} names Python code, which the kit never runs; delete it"
        )
    from transformers import AttentionInterface, AutoConfig
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)

    def with_attention(kind: str) -> Any:
        settings = {"attn_implementation": kind} | dict(architecture)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        mend_padding(config)
        return config

    try:
        usual, plain = with_attention(_ATTENTION), with_attention("eager")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"bases.{name}.architecture: {reason[:200]}") from None
    try:
        skeleton(usual)
    except Exception:  # some models have no other attention; what else is wrong is found with this one too
        return plain
    return usual


def parameter_count(config: Any) -> int:
    """Return the number of parameters of a model; shared ones count once."""
    return sum(parameter.numel() for parameter in skeleton(config).parameters())


def optimizer_bytes(adapter_tensors: list[int], optimizer: OptimizerName) -> int:
    """Return the bytes of optimizer state for tensors with these numbers of elements.

    AdamW has two moments, Lion has one. A moment in 8 bits has a float32 scale for each block of 256
    elements, and a code book of 256 that all tensors share.
    """
    kind = Optimizer.parse(optimizer)
    in_8_bits = [] if kind.bits == 32 else [each for each in adapter_tensors if each >= OPTIMIZER_LEAST]
    moment = 4 * (sum(adapter_tensors) - sum(in_8_bits))
    moment += sum(elements + 4 * math.ceil(elements / OPTIMIZER_BLOCK) for elements in in_8_bits)
    return kind.moments * (moment + (4 * 256 if in_8_bits else 0))


def finetune_memory(trial: Trial, config: Any) -> FinetuneMemory:
    """Return the memory of a trial's fine-tuning, from a forward and a backward pass of its longest batch.

    "auto" weights are dequantized here, which needs more memory, so that a plan is never too low.
    """
    training, study = trial.model.training, trial.study
    base = quantized_skeleton(study, config)
    counts, model = count_weights(base), _adapted(trial, base)
    with attention_kernels(trial.study.randomness.kernels), _fake_tensors():
        _make_fake(model, getattr(torch, trial.study.precision.compute))
        _fuse_dropout(model)
        if study.weights != "nf4" or study.lora.dora:  # DoRA dequantizes each weight, and keeps it
            materialize(model)
        as_trainer_sets(model, training.gradient_checkpointing)
        weights = weight_bytes(model)
        dequantized = 0
        if study.quantization.type == "int8":
            small = eight_bits(model)
            rest, dequantized = weights.unquantized - small.replaced, small.largest
            weights = replace(weights, quantized=small.quantized, scales=small.scales, unquantized=rest)
        live = LiveMemory(inside_4bit_product)
        live.count(model_tensors(model))
        before = live.now
        ids = torch.zeros(training.batch_size, training.max_length, dtype=torch.long)
        with live:
            for _ in range(min(2, training.gradient_accumulation_steps)):  # beside gradients of earlier ones
                saved = training_step(model, ids, trial.study.precision.compute, live) - before
    tensors = [each.numel() for each in model.parameters() if each.requires_grad]
    return FinetuneMemory(weights, counts, tensors, saved, live.peak - before + dequantized)


def as_trainer_sets(model: Any, checkpointing: bool) -> None:
    """Prepare a model as the Trainer does before its first step."""
    model.config.use_cache = False
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()


def training_step(model: Any, ids: Any, compute: str, live: LiveMemory | None = None) -> int:
    """Run the Trainer's forward and backward pass, and return the live bytes between them."""
    half = compute != "float32"
    with torch.autocast("cpu", getattr(torch, compute)) if half else contextlib.nullcontext():
        output = model(input_ids=ids, labels=ids)
    loss = output.loss
    if half:  # accelerate upcasts the output of the model, which still exists
        upcast = output.logits.float()
        del upcast
    del output
    between = live.now if live else 0
    loss.backward()
    return between


def evaluate_memory(trial: Trial, config: Any) -> EvaluateMemory:
    """Return the memory of testing a trial's merged model: perplexity of the longest batch, and a response.

    The response is to a prompt of maximum length; keys and values of the prompt and new tokens are kept.
    """
    study, length = trial.study, trial.model.training.max_length
    batch, compute = study.evaluation.batch_size, getattr(torch, study.precision.compute)
    model = skeleton(config, compute).eval()
    # inference_mode would hide the parts of operations
    with attention_kernels(study.randomness.kernels), _fake_tensors(), torch.no_grad():
        _make_fake(model, compute)
        live = LiveMemory()
        live.count(model_tensors(model))
        weights = live.now
        with live:
            earlier = torch.empty(batch, length, config.vocab_size, dtype=compute)
            ids = torch.zeros(batch, length, dtype=torch.long)
            logits = model(input_ids=ids, use_cache=False).logits
            del earlier  # the logits of the previous batch exist until these do
            torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
            del logits
            ids = torch.zeros(1, length + trial.data.max_new_tokens, dtype=torch.long)
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return EvaluateMemory(weights, live.peak - weights)


def adapted_model(trial: Trial, config: Any) -> Any:
    """Return a trial's quantized base with its adapter, as in fine-tuning, on the meta device.

    Raises:
        UsageError: a target module does not exist, or no adapter can be merged into it.
    """
    return _adapted(trial, quantized_skeleton(trial.study, config))


def quantized_skeleton(study: Study, config: Any) -> Any:
    """Return a quantized base, as in fine-tuning, on the meta device.

    transformers chooses the modules that stay unquantized. A base in 8 bits stays so too (`eight_bits`).
    """
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    base = skeleton(config, getattr(torch, study.precision.compute))
    if study.quantization.type == "int8":
        make_others_float(base)
    if not study.quantization.in_4_bits:
        return base
    quantization = quantization_config(study)
    quantizer = Bnb4BitHfQuantizer(quantization, pre_quantized=False)
    kept = quantizer.get_modules_to_not_convert(base, None, base._keep_in_fp32_modules)
    base = replace_with_bnb_linear(base, modules_to_not_convert=kept, quantization_config=quantization)
    base.is_loaded_in_4bit = True
    return base


def _adapted(trial: Trial, base: Any) -> Any:
    model_targets(trial.workspace, trial.model_name, base)
    study = trial.study
    lora = replace(study.lora, dora=False)  # which needs weights
    kind = "none" if study.quantization.type == "int8" else study.quantization.type
    plain = replace(study, lora=lora, quantization=replace(study.quantization, type=kind))
    with torch.device("meta"):  # the adapter needs no memory either, whatever the study's sizes are
        model = with_adapter(replace(trial, workspace=replace(trial.workspace, study=plain)), base)
        if study.lora.dora:
            add_magnitudes(model)
    return model


def weight_bytes(model: Any) -> WeightBytes:
    """Return the memory of the weights of an adapted model; a shared storage counts once."""
    seen: set[int] = set()
    found = dict.fromkeys(("quantized", "scales", "materialized", "unquantized", "adapter"), 0)
    for tensor, kind in _tensors(model):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found[kind] += storage.nbytes()
    return WeightBytes(**found)


def model_tensors(model: Any) -> list[Any]:
    """Return the parameters, the buffers and the scales of 4-bit weights of a model."""
    return [tensor for tensor, _ in _tensors(model)]


def _tensors(model: Any) -> Iterator[tuple[Any, str]]:
    kept = {id(module.weight) for module in model.modules() if isinstance(module, Materialized)}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            frozen = "materialized" if id(parameter) in kept else "unquantized"
            yield parameter, "adapter" if parameter.requires_grad else frozen
            continue
        yield parameter, "quantized"
        parts = [state.absmax, state.code]
        if state.nested:
            parts += [state.offset, state.state2.absmax, state.state2.code]
        yield from ((part, "scales") for part in parts)
    yield from ((buffer, "unquantized") for buffer in model.buffers())


@contextlib.contextmanager
def _fake_tensors() -> Iterator[None]:
    from bitsandbytes.functional import quantize_blockwise
    from transformers.integrations import moe

    quantize_blockwise(torch.zeros(1))  # creates a code book that is cached and must not be fake
    # torch knows the products of fused experts in bfloat16 alone; transformers' have the same tensors
    in_one_kernel, moe._can_use_grouped_mm = moe._can_use_grouped_mm, lambda *operands: False
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        moe._can_use_grouped_mm = in_one_kernel


def _make_fake(model: Any, compute: Any) -> None:
    """Give a model on the meta device fake weights on the CPU, in 4 bits in its 4-bit layers.

    They are on the CPU because torch without CUDA has no backward pass for fake tensors on a GPU.
    """
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made and isinstance(module, Linear4bit) and name == "weight":
                full = torch.empty(module.out_features, module.in_features, dtype=compute)
                packed, state = quantize_4bit(
                    full,
                    blocksize=old.blocksize,
                    compress_statistics=old.compress_statistics,
                    quant_type=old.quant_type,
                )
                made[id(old)] = torch.nn.Parameter(packed, requires_grad=False)
                made[id(old)].quant_state = state
            elif id(old) not in made:
                made[id(old)] = torch.nn.Parameter(torch.empty_like(old, device="cpu"), old.requires_grad)
            module._parameters[name] = made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


class _FusedDropout(torch.nn.Dropout):
    """Dropout as on a GPU, which keeps a mask of one byte per element; a CPU keeps a factor of full size."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = torch.native_dropout(input, self.p, self.training)[0]
        return dropped


def _fuse_dropout(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Dropout and child.p > 0:
                setattr(module, name, _FusedDropout(child.p))


def inside_4bit_product(operation: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> int:
    """Return the bytes that bitsandbytes' 4-bit product allocates for the dequantized matrix and its scales.

    Some GPUs do not need them, nor do products with few tokens.
    """
    if operation is not torch.ops.bitsandbytes.gemm_4bit.default:
        return 0
    factor, _, shape, _, block = arguments[:5]
    elements = math.prod(shape)
    scales = 2 * 4 * math.ceil(elements / block) if keywords.get("absmax_8bit") is not None else 0
    return int(elements * factor.element_size() + scales)
