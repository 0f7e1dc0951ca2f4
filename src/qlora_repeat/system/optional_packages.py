"""Keep libraries from importing optional packages that a process does not use."""

import contextlib
import sys
from collections.abc import Iterator

UNWANTED = ("kernels",)
"""Packages that change arithmetic: with kernels, on CPUs with AVX512-BF16, bitsandbytes takes a product with
4-bit weights from a hub."""


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Hide packages from imports during the block, as if they were not installed.

    Libraries import an optional package wherever it is installed. Python takes None in ``sys.modules`` for a
    package that does not exist. Packages that are imported already stay visible.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
