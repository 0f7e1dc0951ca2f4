"""The base class of what the API returns: a sequence that can also have a name and show itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

Item = TypeVar("Item")


@dataclass(frozen=True, repr=False)
class Listed(Sequence[Item]):
    """A read-only sequence of items."""

    items: list[Item]

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)
