"""How many bytes of tensors are alive while a computation runs, and at most were.

Sees every operation that torch dispatches, and when the storage of a result is freed again. It works with
real tensors and with fake ones, which have a shape and a type but no memory (torch's FakeTensorMode).
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Within = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], int]
"""The bytes that an operation takes and frees again within itself, from the operation and its arguments."""


def _nothing(operation: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> int:
    return 0


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which the bytes of storages are counted, each once however many tensors share it."""

    def __init__(self, within: Within = _nothing) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._within = within
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts tensors that were there before, or that no operation returns."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place not in self._sizes:
                self._sizes[place] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, place)
        self.peak = max(self.peak, self.now)

    def _freed(self, place: int) -> None:
        self.now -= self._sizes.pop(place)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.count(each for each in tree_iter(result) if isinstance(each, torch.Tensor))
        self.peak = max(self.peak, self.now + self._within(operation, args, kwargs or {}))
        return result
