"""Tables for a terminal of a given width: in parts below each other, cells and headings wrapped."""

import itertools

import tabulate
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from qlora_repeat.render.escape import terminal
from qlora_repeat.render.tables.table import Table

_LEGIBLE = 24
"""The smallest width of a column of running text, in characters, if there is room."""
_NARROWEST = 4
_FRAME = 3
"""Width of the borders of a column."""
_SECOND_HALF = "\0"
"""Follows each character of two columns while tabulate measures lengths; no cell contains it."""
_BETWEEN = str.maketrans("╭┬╮", "├┼┤")


def terminal_table(table: Table, width: int) -> str:
    """Return caption, rows and notes with lines of at most `width`, if that has room for a column."""
    body = table.rows + table.summary
    stub = min(_longest([table.stub, *(row[0] for row in body)]), max(width // 2, _NARROWEST))
    room = width - 1 - stub - _FRAME
    widths = _prose_widths(table, room) if table.prose else _column_widths(table, room)
    grids = [_grid(table, part, stub, widths) for part in _parts(table.columns, widths, room)]
    title = f"Table {table.number}. {table.caption} {table.source}"
    lines = [_filled(title, width), *grids, *(_filled(note, width) for note in table.notes)]
    return "\n\n".join(lines)


def _column_widths(table: Table, room: int) -> list[int]:
    """Return the width of the longest cell or the longest word of the headings, for each column."""
    body = table.rows + table.summary
    return [
        _within(_longest([*" ".join(headings).split(), *(row[place] for row in body)]), room)
        for place, headings in enumerate(table.columns, 1)
    ]


def _prose_widths(table: Table, room: int) -> list[int]:
    """Return equal widths: as many columns side by side as are still legible."""
    count = len(table.columns)
    longest = _longest(
        [cell for row in table.rows for cell in row[1:]] + [each[-1] for each in table.columns]
    )
    side_by_side = min(max(room // (min(_LEGIBLE, longest) + _FRAME), 1), count)
    parts = -(-count // side_by_side)
    return [_within(longest, room // -(-count // parts))] * count


def _longest(texts: list[str]) -> int:
    return max((cell_len(terminal(text)) for text in texts), default=0)


def _within(wanted: int, room: int) -> int:
    return max(min(wanted, room - _FRAME), _NARROWEST)


def _parts(columns: list[tuple[str, ...]], widths: list[int], room: int) -> list[list[int]]:
    """Return which columns stand side by side, by index; those under one heading together, if they fit."""
    parts: list[list[int]] = []
    left = 0
    for _, group in itertools.groupby(range(len(columns)), lambda place: columns[place][0]):
        places = list(group)
        needed = [widths[place] + _FRAME for place in places]
        whole = sum(needed) <= room
        if sum(needed) > left:
            parts.append([])
            left = room
        for place, each in zip(places, needed, strict=True):
            if each > left and parts[-1]:
                parts.append([])
                left = room
            parts[-1].append(place)
            left -= each
        left = left if whole else 0
    return parts


def _grid(table: Table, part: list[int], stub: int, widths: list[int]) -> str:
    """Return some of the columns as a grid, below their common heading if they have one."""
    tabulate.WIDE_CHARS_MODE = False  # widths are computed here, whether wcwidth is installed or not
    headings, above = [table.columns[place] for place in part], ""
    if len(headings[0]) > 1 and len({each[0] for each in headings}) == 1:
        above, headings = f"{terminal(headings[0][0])}\n", [each[1:] for each in headings]
    rows, summary = (
        [
            [_wrapped(row[0], stub), *(_wrapped(row[place + 1], widths[place]) for place in part)]
            for row in each
        ]
        for each in (table.rows, table.summary)
    )
    heads = [_wrapped(table.stub, stub), *_stacked(headings, [widths[place] for place in part])]
    body = [["\n".join(cell) for cell in row] for row in [heads, *rows, *summary]]
    drawn = tabulate.tabulate(
        body,
        tablefmt="rounded_grid",
        disable_numparse=True,
        colalign=["left", *("left" if table.prose else "right" for _ in part)],
    ).split("\n")
    between = drawn[0].translate(_BETWEEN)
    has_long_rows = any(len(cell) > 1 for row in rows for cell in row)
    places = [place for place, line in enumerate(drawn) if line == between]
    kept = {places[0], places[len(rows)] if summary else places[0], *(places if has_long_rows else ())}
    lines = [line for place, line in enumerate(drawn) if line != between or place in kept]
    return above + "\n".join(lines).replace(_SECOND_HALF, "")


def _stacked(headings: list[tuple[str, ...]], widths: list[int]) -> list[list[str]]:
    """Return the lines of each column's headings, with the levels aligned."""
    levels = [
        _as_high([_wrapped(text, width) for text, width in zip(level, widths, strict=True)])
        for level in zip(*headings, strict=True)
    ]
    return [[line for lines in column for line in lines] for column in zip(*levels, strict=True)]


def _as_high(cells: list[list[str]]) -> list[list[str]]:
    """Fill cells with empty lines below, so that all have the same height."""
    height = max(map(len, cells))
    return [lines + [""] * (height - len(lines)) for lines in cells]


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, with `_SECOND_HALF` after each character of two columns."""
    lines = Text(terminal(text)).wrap(Console(), width)
    return [
        "".join(letter + _SECOND_HALF * (cell_len(letter) - 1) for letter in line.plain.rstrip())
        for line in lines
    ] or [""]


def _filled(text: str, width: int) -> str:
    return "\n".join(_wrapped(text, width)).replace(_SECOND_HALF, "")
