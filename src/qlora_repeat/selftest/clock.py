"""Times of steps, on a CPU or a GPU."""

import time
from itertools import pairwise


def fastest(times: list[float]) -> float:
    """Return the fewest seconds between times, which other work on the machine affects least."""
    return min(after - before for before, after in pairwise(times))


def now() -> float:
    """Return the clock when all kernels that were launched have ended."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
