"""Measure memory and time of a trial's stages from inside their process."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch._C._autograd import DeviceType
from torch.nn.modules import module as hooks
from torch.profiler import ProfilerActivity, profile

from qlora_repeat.planning.memory_estimate import LiveMemory, inside_4bit_product, model_tensors
from qlora_repeat.selftest.clock import now
from qlora_repeat.study.trial import Progress

Measured = tuple[Progress, dict[str, Any]]
PROFILED = (2, 4)
"""The profile begins after the first of these steps, and ends after the second."""
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_GPU_KINDS = {
    "unpacking 4-bit weights": ("kDequantize",),
    "matrix products": ("gemm", "gemv", "nvjet", "cutlass", "xmma", "splitK"),
    "copies": ("Memcpy", "Memset"),
}
"""Kinds of work of a GPU, by parts of the names of kernels."""
_CPU_KINDS = {
    "unpacking 4-bit weights": ("bitsandbytes::dequantize",),
    "matrix products": _PRODUCTS,
    "launches": ("LaunchKernel",),
    "waiting": ("Synchronize", "cudaMemcpy", "aten::item", "aten::_local_scalar_dense"),
    "the optimizer": ("Optimizer.", "bitsandbytes::optimizer"),
}
"""Kinds of work of the CPU, by parts of the names of events."""


@contextlib.contextmanager
def memory_of(progress: Progress) -> Iterator[Measured]:
    """Measure the peak of each stage: what torch allocated on a GPU, or the live tensors on a CPU.

    On a CPU, a fine-tuning is measured after its first step, and without optimizer state.
    """
    found: dict[str, Any] = {}
    counting: _LiveModel | None = None

    def told(stage: str, done: int, total: int, loss: float | None) -> None:
        nonlocal counting
        progress(stage, done, total, loss)
        if torch.cuda.is_available():
            if done == 0:
                torch.cuda.reset_peak_memory_stats()
            found[stage] = torch.cuda.max_memory_allocated()
        elif counting is None and done == (1 if stage == "finetune" else 0):
            counting = _LiveModel()
            counting.__enter__()
        elif counting is not None and done == total:
            counting.__exit__(None, None, None)
            found[stage] = counting.peak
            counting = None

    # On a CPU, inference mode would hide the parts of operations, and what they allocate.
    mode = torch.inference_mode if torch.cuda.is_available() else torch.no_grad
    with patch.object(torch, "inference_mode", mode):
        yield told, found


class _LiveModel(LiveMemory):  # type: ignore[no-untyped-call]
    """Count live tensors from the first pass of a model on, and the model's own."""

    def __init__(self) -> None:
        super().__init__(inside_4bit_product)
        self._seen = False

    def __enter__(self) -> "_LiveModel":
        self._hook = hooks.register_module_forward_pre_hook(self._count_model)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hook.remove()

    def _count_model(self, module: Any, arguments: Any) -> None:
        if not self._seen:
            self._seen = True
            self.count(model_tensors(module))


@contextlib.contextmanager
def steps_of(progress: Progress) -> Iterator[Measured]:
    """Measure the times after each step of a fine-tuning."""
    found: dict[str, Any] = {"times": []}

    def told(stage: str, done: int, total: int, loss: float | None) -> None:
        progress(stage, done, total, loss)
        if stage == "finetune" and done:
            found["times"].append(now())

    yield told, found


@contextlib.contextmanager
def time_of(progress: Progress) -> Iterator[Measured]:
    """Measure the steps of a fine-tuning, and profile the steps after them.

    Returns:
        The times after each step before the profile, and the milliseconds of a step by kind of work.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities)
    found: dict[str, Any] = {"times": []}
    began = 0.0

    def told(stage: str, done: int, total: int, loss: float | None) -> None:
        nonlocal began
        progress(stage, done, total, loss)
        if stage != "finetune" or done == 0:
            return
        first, last = total - PROFILED[1], total - PROFILED[0]
        if done <= first:
            found["times"].append(now())
        if done == first:
            profiler.__enter__()  # type: ignore[no-untyped-call]
            began = now()
        if done == last:
            spent = (now() - began) / (last - first)
            profiler.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            events: Any = profiler.events()  # type: ignore[no-untyped-call]
            found.update(_where_time_goes(events, spent, last - first))

    yield told, found


def _where_time_goes(events: Any, seconds: float, steps: int) -> dict[str, Any]:
    """Return the milliseconds of a step by kind of work, on the CPU and on the GPU, and numbers of launches.

    A GPU works while the CPU prepares the next kernels, so their times overlap. What is left of a step on a
    GPU, it waits. Without CUPTI there is no profile of the GPU.
    """
    spent: dict[str, dict[str, float]] = {"cpu": defaultdict(float), "gpu": defaultdict(float)}
    counts = Counter[str]()
    for event in events:
        if event.device_type == DeviceType.CUDA:
            if not event.is_user_annotation:  # which covers the kernels within
                kind = next((kind for kind, names in _GPU_KINDS.items() if _named(event, names)), "others")
                spent["gpu"][kind] += event.self_device_time_total / 1000 / steps
                counts["kernels"] += kind != "copies"
            continue
        kind = next((kind for kind, names in _CPU_KINDS.items() if _named(event, names)), "other operations")
        spent["cpu"][kind] += event.self_cpu_time_total / 1000 / steps
        counts["launches"] += kind == "launches"
    if spent["gpu"]:
        spent["gpu"]["waiting"] = max(0.0, 1000 * seconds - sum(spent["gpu"].values()))
    seen = sum(spent["cpu"].values())
    spent["cpu"]["Python, and what the profiler does not see"] = 1000 * seconds - seen
    return {
        "milliseconds": {where: dict(found) for where, found in spent.items() if found},
        "profiled_step": 1000 * seconds,
        "counts": {kind: count / steps for kind, count in counts.items() if count},
    }


def _named(event: Any, parts: tuple[str, ...]) -> bool:
    return any(part in event.name for part in parts)
