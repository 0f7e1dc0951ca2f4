"""Peak and free memory, of the GPU or else of the process; and Python's search for unreachable cycles."""

import contextlib
import gc
import re
from collections.abc import Iterator
from pathlib import Path

_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Files of a control group, of version 2 and 1: what it may use, and what it uses."""


def free_memory() -> int:
    """Bytes that this process could still take: of the GPU where there is one, else of the machine.

    Of the machine, no more than what is left of the limit of its container or job, where one is set.
    """
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else [0]
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or the limit is "max"
            groups = Path("/sys/fs/cgroup")
            free.append(int((groups / limit).read_text()) - int((groups / used).read_text()))
    return max(min(free), 0)


def reset_peak_memory() -> None:
    """Starts a new measurement: what follows counts from what is in use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(
            OSError
        ):  # not allowed everywhere: then the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present size


def peak_memory() -> dict[str, float | int | None]:
    """The peak since the last reset, in bytes, and as a share (0 to 1) of the GPU's memory.

    On a GPU it is the most that torch's allocator reserved, and what the driver counts besides: the CUDA
    context, and paged optimizer state, which bitsandbytes allocates itself. So it is what `nvidia-smi` shows.
    """
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        besides = total - free - torch.cuda.memory_reserved()
        peak = torch.cuda.max_memory_reserved() + besides
        return {"peak_memory_bytes": peak, "peak_memory_share": peak / total}
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {"peak_memory_bytes": int(found[1]) * 1024 if found else None, "peak_memory_share": None}


@contextlib.contextmanager
def no_search() -> Iterator[None]:
    """For the block, or the function that it decorates, Python does not look for cycles of objects.

    It would go through all objects that there are, again and again as they become more: a fifth of the time
    of importing the libraries. Memory is freed as ever; only that of cycles waits for the next search.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
