"""Measure and free memory of the GPU, or of the process without one; pause garbage collection."""

import contextlib
import gc
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from qlora_repeat.system.fingerprint import nvidia_smi
from qlora_repeat.system.limits import memory_left

CONTEXT_BYTES = 1343 * 2**20
"""A nominal allowance for the CUDA context and kernels: the use before any model is loaded, according to
transformers' documentation (GPU memory anatomy). It depends on the GPU, the driver and the libraries. Plans
and records count it alike, because a process cannot tell its own context from the memory of others."""
_RESERVED = 0.05
"""The largest part of a GPU's memory that the driver may keep from CUDA; usually it keeps 1 to 3 percent."""


def free_memory() -> int:
    """Return the bytes that this process can still allocate, on the GPU if there is one, else on the machine.

    On the machine, the limits of the container and of the job count too.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free, left = _proc_bytes("/proc/meminfo", "MemAvailable") or 0, memory_left()
    return free if left is None else min(free, left)


def release_memory() -> None:
    """Free objects that only refer to each other, as a used model does, and GPU memory that torch keeps."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing if no GPU was used


def reset_peak_memory() -> None:
    """Start a new measurement of the peak, from the memory in use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # Not allowed everywhere; then the peak of the whole process counts.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current size


def peak_memory(outside_torch: int = 0) -> int:
    """Return the peak of this process since the last reset, in bytes; 0 if it is unknown.

    On a GPU it is what `plan` estimates: the most bytes of live tensors in torch's allocator, the bytes
    allocated `outside_torch` (paged optimizer state), and the nominal context. Other processes on the GPU do
    not count, nor does memory that the allocator holds without a tensor, so `nvidia-smi` shows more. Without
    a GPU it is the resident memory.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated()) + outside_torch + CONTEXT_BYTES
    return _proc_bytes("/proc/self/status", "VmHWM") or 0


def gpu_memory() -> int | None:
    """Return all bytes of this process's GPU as `nvidia-smi` shows them; None without a GPU.

    Plans have the same total (`planning.gpu_catalog`). CUDA shows less, because the driver keeps a part.
    CUDA's total counts if `nvidia-smi` is missing, or shows no such GPU, as for a part of a GPU (MIG).
    """
    import torch

    if not torch.cuda.is_available():
        return None
    usable = int(torch.cuda.get_device_properties(0).total_memory)
    shown = nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    totals = [int(line) * 2**20 for line in shown if line.strip().isdecimal()]
    return min((each for each in totals if usable <= each <= usable * (1 + _RESERVED)), default=usable)


def _proc_bytes(file: str, key: str) -> int | None:
    """Return a value of a file in /proc, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let this process allocate at most `size` more bytes in the block; libraries then raise an error.

    For libraries that read files of strangers, which may be small and expand.
    """
    before, now = resource.getrlimit(resource.RLIMIT_DATA), _proc_bytes("/proc/self/status", "VmData") or 0
    lower = min([now + size, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (lower, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's search for reference cycles during the block or the decorated function.

    The search takes a fifth of the time of importing the libraries. Memory of cycles is freed later.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
