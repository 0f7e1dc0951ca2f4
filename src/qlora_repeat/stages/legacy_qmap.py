"""The quantization map of 8-bit optimizer state in bitsandbytes 0.36.0 to 0.41.0.

A second moment is stored as one of 256 values, relative to the largest of its block. In those versions
``create_dynamic_map(signed=False)`` returned 524 values, of which the optimizer used the first 256, so it
could store nothing above 0.093 of the largest. 0.41.1 fixed this (issues 152, 227, 262 and 659 of
bitsandbytes). The signed maps of first moments were correct, and 32-bit state has no map.

Those versions had blocks of 2,048 values. This is not restored: today's kernels have blocks of 256.
"""

from typing import Any


def old_map() -> list[float]:
    """Return all 524 values of the old map of second moments, sorted."""
    import torch

    def middles(parts: int) -> Any:
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float32)
        return (edges[:-1] + edges[1:]) / 2

    values = [0.0, 1.0]
    for exponent in range(7):
        for parts in (2 ** (exponent + 2), 2):
            values += (10.0 ** (exponent - 6) * middles(parts)).tolist()
    return sorted(values)


def set_legacy_qmap(optimizer: Any, legacy_qmap: str | None) -> None:
    """Give an optimizer that has made no step the old map; with None, keep today's."""
    if legacy_qmap is None:
        return
    import torch

    optimizer.fill_qmap()
    assert "udynamic" in optimizer.name2qmap, "the optimizer has no map of second moments"
    optimizer.name2qmap["udynamic"] = torch.tensor(old_map()[:256], dtype=torch.float32)
