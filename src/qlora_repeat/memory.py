"""Peak memory: of the GPU where there is one, resident memory of the process otherwise."""

import contextlib
import re
from pathlib import Path


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
