"""Do work that releases Python's lock, such as reading and hashing, on several cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qlora_repeat.system.limits import usable_cores

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
_WORTH_THREADS = 64 * 2**20
"""Bytes below which threads would gain nothing."""


def in_parallel(compute: Callable[[_Item], _Made], items: Sequence[_Item], size: int) -> list[_Made]:
    """Return `compute(item)` for each item, in their order, with a thread for each usable core.

    `size` is the number of bytes of all items; a few are computed one by one. If some raise errors, the first
    of them is raised.
    """
    threads = min(len(items), usable_cores())
    if threads < 2 or size < _WORTH_THREADS:
        return [compute(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(compute, items))
