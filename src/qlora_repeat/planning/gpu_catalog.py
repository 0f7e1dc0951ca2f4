"""List GPUs to plan for, with their memory and their speed relative to the paper's GPU."""

import math
from dataclasses import dataclass

from qlora_repeat.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an amount of memory."""

    name: str
    memory: int
    """All bytes, of which the CUDA context uses a part."""
    bandwidth: int | None
    """Of its memory, in GB (1e9 bytes) per second; None for an amount of memory."""

    @property
    def speed(self) -> float:
        """Return the speed relative to the paper's GPU, estimated from the memory bandwidth.

        A QLoRA step with one example dequantizes every weight for few tokens, so it waits for memory.
        """
        return 1.0 if self.bandwidth is None else self.bandwidth / _PAPER_BANDWIDTH


PAPER_GPU = "a100-80gb"
"""The paper names an A100 (section VII); its 80 GB are inferred from Table 3."""
_PAPER_BANDWIDTH = 2039

# Memory is the total that nvidia-smi shows, with error correction if that is the default; drivers differ by
# about one per cent. Bandwidth is from NVIDIA's data sheets, for the SXM form if there are two (in PCIe form
# an A100 80GB has 1935 GB/s and an H100 2000).
GPUS = tuple(
    Gpu(name, mebibytes * 2**20, bandwidth)
    for name, mebibytes, bandwidth in (
        ("t4-16gb", 15360, 300),
        ("l4-24gb", 23034, 300),
        ("a10-24gb", 23028, 600),
        ("rtx4090-24gb", 24564, 1008),
        ("v100-32gb", 32768, 900),
        ("a100-40gb", 40960, 1555),
        ("a40-48gb", 46068, 696),
        ("l40s-48gb", 46068, 864),
        ("a6000-48gb", 49140, 768),
        ("h100-80gb", 81559, 3350),
        ("a100-80gb", 81920, 2039),
        ("h200-141gb", 143771, 4800),
        ("b200-180gb", 183359, 8000),
    )
)
"""The known GPUs, smallest first."""


def find_gpu(text: str) -> Gpu:
    """Return a known GPU by name, or a number of GB (1e9 bytes) with the speed of the paper's GPU.

    Raises:
        UsageError: the GPU is not known; names the known ones.
    """
    for gpu in GPUS:
        if gpu.name == text.lower():
            return gpu
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < 1e6:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise UsageError(f"GPU {text!r} is not known; expected a number of GB, or one of {known}")
    return Gpu(f"{size:g} GB", int(size * 1e9), None)


def large_enough(size: int) -> list[str]:
    """Return the names of the known GPUs with at least `size` bytes of memory."""
    return [gpu.name for gpu in GPUS if gpu.memory >= size]
