"""The map by which 8-bit optimizer state becomes numbers, as bitsandbytes 0.36.0 to 0.41.0 had it.

A second moment is kept as one of 256 values, relative to the largest of its block. In those versions
``create_dynamic_map(signed=False)`` gave 524 values, of which the optimizer could use the first 256: it could
keep nothing above 0.093 of the largest. 0.41.1 mended it (issues 152, 227, 262 and 659 of bitsandbytes). Maps
of first moments, which are signed, were right, and 32-bit state has none.

The block of 2,048 values of those versions is not brought back: today's kernels have blocks of 256.
"""

from typing import Any


def old_map() -> list[float]:
    """All 524 values of the map of bitsandbytes 0.36.0 to 0.41.0 for second moments, sorted."""
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
    """Give bitsandbytes' optimizer, before its first step, the map of that version; None leaves today's."""
    if legacy_qmap is None:
        return
    import torch

    optimizer.fill_qmap()
    assert "udynamic" in optimizer.name2qmap, "the optimizer has no map of second moments under that name"
    optimizer.name2qmap["udynamic"] = torch.tensor(old_map()[:256], dtype=torch.float32)
