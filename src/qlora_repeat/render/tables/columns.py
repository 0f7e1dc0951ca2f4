"""Which columns of a table stand side by side, and the headings above them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Headings = tuple[str, ...]
"""The headings of a column, from the top."""


@dataclass(frozen=True)
class Heading:
    """A heading above columns `first` to `last`; column 1 contains the row names."""

    text: str
    first: int
    last: int


def grouped(columns: Sequence[Headings], depth: int = 1) -> list[list[int]]:
    """Return the columns, by index from 0, in groups of neighbors with the same first `depth` headings."""
    return _grouped(columns, range(len(columns)), depth)


def _grouped(columns: Sequence[Headings], places: Sequence[int], depth: int) -> list[list[int]]:
    return [list(group) for _, group in itertools.groupby(places, lambda place: columns[place][:depth])]


def heading_levels(columns: Sequence[Headings]) -> list[list[Heading]]:
    """Return the rows of headings above columns; equal neighbors under one heading are merged."""
    return [
        [Heading(columns[each[0]][depth], each[0] + 2, each[-1] + 2) for each in grouped(columns, depth + 1)]
        for depth in range(len(columns[0]))
    ]


def side_by_side(
    columns: Sequence[Headings], widths: Sequence[int], room: int, slack: int = 0
) -> list[list[int]]:
    """Split columns, by index, into parts no wider than `room`, or than a single column.

    Columns under one heading stay together if they fit, even into a part that is wider by `slack`. Otherwise
    they are split at the next level of headings, and share no part with columns under another heading.
    """

    def width(places: list[int]) -> int:
        return sum(widths[place] for place in places)

    def split(places: list[int], depth: int) -> list[list[int]]:
        is_last = depth > len(columns[0])
        parts: list[list[int]] = []
        was_split = True
        for group in [[place] for place in places] if is_last else _grouped(columns, places, depth):
            if len(group) > 1 and width(group) > room + slack:
                parts += split(group, depth + 1)
                was_split = True
            elif was_split or width(parts[-1] + group) > room:
                parts.append(group)
                was_split = False
            else:
                parts[-1] += group
        return parts

    return split(list(range(len(columns))), 1)
