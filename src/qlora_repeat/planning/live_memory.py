"""Count the bytes of live tensors during a computation, and their peak.

It observes every operation that torch dispatches, and when the storage of a result is freed. It works with
real tensors and with fake ones, which have a shape and a type but no memory (torch's FakeTensorMode).
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Within = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], int]
"""Returns the bytes that an operation allocates and frees internally, given its arguments."""


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the bytes of storages; a storage that several tensors share counts once."""

    def __init__(self, within: Within = lambda operation, arguments, keywords: 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._within = within
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that existed before the context, or that no operation returns."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self._sizes:
                self._sizes[address] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, address)
        self.peak = max(self.peak, self.now)

    def _freed(self, address: int) -> None:
        self.now -= self._sizes.pop(address)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.count(each for each in tree_iter(result) if isinstance(each, torch.Tensor))
        self.peak = max(self.peak, self.now + self._within(operation, args, kwargs or {}))
        return result
