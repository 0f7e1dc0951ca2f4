"""Tables for a terminal of a given width: in parts below each other, cells and headings wrapped."""

import io
import math
from dataclasses import replace

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid

from qlora_repeat.render.escape import terminal
from qlora_repeat.render.tables.columns import side_by_side
from qlora_repeat.render.tables.table import Table

_LEGIBLE = 24
"""The smallest width of a column of running text, in characters, if there is room."""
_NARROWEST = 4
_FRAME = 3
"""Width of the borders of a column."""


def terminal_table(table: Table, width: int) -> str:
    """Return caption, rows and notes with lines of at most `width`, if that has room for a column."""
    table = _escaped(table)
    names = _longest([table.stub, *(row[0] for row in table.body)])
    stub = min(names, max(width // 2, _NARROWEST))
    room = width - 1 - stub - _FRAME
    widths = [max(min(needed, room - _FRAME), _NARROWEST) for needed in _needed_widths(table, room)]
    shown = Console(
        file=io.StringIO(),
        width=max(width, stub + max(widths) + 2 * _FRAME + 1),
        height=100,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with shown.capture() as capture:
        shown.print(terminal(f"Table {table.number}. {table.caption} {table.source}"), width=width)
        for part in side_by_side(table.columns, [each + _FRAME for each in widths], room):
            panel = table.with_columns(part)
            shown.print()
            if len(panel.levels) > 1 and len(panel.levels[0]) == 1:
                shown.print(panel.levels[0][0].text, width=width)
                panel = replace(panel, columns=[headings[1:] for headings in panel.columns])
            shown.print(_grid(panel, stub, [widths[place] for place in part], room))
        for note in table.notes:
            shown.print()
            shown.print(terminal(note), width=width)
    return "\n".join(line.rstrip() for line in capture.get().split("\n")).rstrip("\n")


def _escaped(table: Table) -> Table:
    rows, summary = ([list(map(terminal, row)) for row in each] for each in (table.rows, table.summary))
    columns = [tuple(map(terminal, headings)) for headings in table.columns]
    return replace(table, columns=columns, rows=rows, summary=summary)


def _grid(table: Table, stub: int, widths: list[int], room: int) -> Grid:
    """Return a table's rows; running text takes all the room that it needs, with lines between its rows."""
    longest = [_longest([row[place] for row in table.rows]) for place in range(1, len(widths) + 1)]
    is_wrapped = table.prose and sum(longest) + _FRAME * len(longest) > room
    grid = Grid(box=ROUNDED, header_style="", show_lines=is_wrapped)
    grid.add_column(table.stub, width=stub, overflow="fold")
    for headings, width in zip(table.columns, widths, strict=True):
        grid.add_column(
            "\n".join(headings),
            width=None if table.prose else width,
            justify="left" if table.prose else "right",
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*row)
    grid.add_section()
    for row in table.summary:
        grid.add_row(*row)
    return grid


def _needed_widths(table: Table, room: int) -> list[int]:
    """Return the width of each column's longest cell or word of a heading; for text, equal legible widths."""
    longest = [
        _longest([*" ".join(headings).split(), *(row[place] for row in table.body)])
        for place, headings in enumerate(table.columns, 1)
    ]
    if not table.prose:
        return longest
    most = max(room // (min(_LEGIBLE, max(longest)) + _FRAME), 1)
    parts = math.ceil(len(longest) / most)
    return [room // math.ceil(len(longest) / parts) - _FRAME] * len(longest)


def _longest(texts: list[str]) -> int:
    return max(map(cell_len, texts), default=0)
