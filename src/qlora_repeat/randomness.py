"""The sources of randomness, each with a stream of its own.

A stream's seed depends on the study's seed for that source and on the source's name, and on nothing that
ran before in the process. "fresh" draws entropy from the operating system instead: processes forked from
one server share the state of every generator, but not that.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from typing import Literal

Source = Literal["split", "adapter_init", "data_order", "dropout", "generation"]


def stream_seed(seed: int | Literal["fresh"], source: Source, *position: int | float) -> int:
    """The 32-bit seed of a source's stream; `position` tells apart streams within a source.

    32 bits, since that is what every library's seeding accepts.
    """
    if seed == "fresh":
        return secrets.randbits(32)
    name = ":".join(["qlora-repeat", source, str(seed), *map(str, position)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@contextlib.contextmanager
def torch_stream(seed: int) -> Iterator[None]:
    """Seeds torch's generators (CPU, and CUDA where used) for the block, and restores them after it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
