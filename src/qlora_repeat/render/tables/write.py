"""Write the tables of a study, and of its comparison with another, as LaTeX and Markdown.

The files depend on the results alone, not on clock or locale. `paper_tables` and `comparison` decide what the
tables contain, ``paper/templates`` how they look.
"""

import math
import textwrap
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import tabulate
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.render.escape import latex, markdown
from qlora_repeat.render.tables.columns import grouped, side_by_side
from qlora_repeat.render.tables.comparison import comparison_tables
from qlora_repeat.render.tables.paper_tables import in_sequence, make_tables
from qlora_repeat.render.tables.table import TABLE_FILE, Table
from qlora_repeat.results.arms import Arm, trained
from qlora_repeat.results.scope import of_paper
from qlora_repeat.system.files import remove, write_text

Format = Literal["latex", "markdown"]
"""The format of a file with tables."""
ENDINGS: dict[Format, str] = {"latex": ".tex", "markdown": ".md"}
_PAGE = 100
"""The width of a page in digits of footnote size, approximately."""
_TOGETHER = 8
"""Additional width that is allowed to keep columns under one heading together."""
_MARKDOWN_COLUMNS = 16
"""Wider tables are split in Markdown, too: one part for each heading of the highest level."""
_PROSE_COLUMNS = 4
"""Columns of running text that are legible side by side."""


def collected_tables(
    arms: list[Arm],
    others: list[Arm] | None = None,
    experiments: Sequence[Measurements] = (),
) -> list[Table]:
    """Make the tables of arms, their comparison with `others`, and S2 of each experiment.

    Raises:
        UsageError: there are no arms, or no arm to compare.
    """
    tables = make_tables(arms)
    if others is not None:
        compared = comparison_tables(trained(arms), trained(others))
        tables += compared if of_paper(arms) else in_sequence(compared, "C")
    if experiments:  # numpy is imported only for these
        from qlora_repeat.analysis.attribution.decompose import attribute
        from qlora_repeat.render.tables.attribution import attribution_table

        tables += [attribution_table(measured, attribute(measured)) for measured in experiments]
    return tables


def write_tables(
    tables: list[Table],
    out: Path,
    templates: Path,
    studies: str,
    formats: Collection[Format] = get_args(Format),
    banner: str = "",
) -> list[Path]:
    """Write each table as ``table-NN.tex`` and ``.md``; all in ``tables.md``, ``tables.tex``, ``all.tex``.

    ``tables.tex`` is for ``\\input`` in a document; ``all.tex`` is a complete document, which names
    `studies`. `banner` stands above all tables. Older tables in `out`, of the same `formats`, are removed.
    Returns the files written.
    """
    content = {
        "tables": tables,
        "studies": studies,
        "banner": banner,
        "experiments": [table.part for table in tables if table.part],
    }
    texts = {name: text for table in tables for name, text in table_texts(table, templates).items()}
    for name in ("tables.md", "tables.tex", "all.tex"):
        texts[name] = _template(templates, name).render(content)
    endings = tuple(ENDINGS[each] for each in formats)
    texts = {name: text for name, text in texts.items() if name.endswith(endings)}
    for name, text in texts.items():
        write_text(out / name, text)
    for path in out.iterdir():
        if TABLE_FILE.fullmatch(path.name) and path.name.endswith(endings) and path.name not in texts:
            remove(path)
    return [out / name for name in texts]


def table_texts(table: Table, templates: Path) -> dict[str, str]:
    """Return a table as LaTeX and as Markdown, by file name."""
    return {
        f"{table.name}{ending}": _template(templates, f"table{ending}").render(table=table)
        for ending in (".tex", ".md")
    }


def panels(table: Table) -> list[Table]:
    """Split a table into parts of the width of a LaTeX page, one below the other."""
    parts = side_by_side(table.columns, _widths(table), _room(table), _TOGETHER)
    return [table.with_columns(part) for part in parts]


def _room(table: Table) -> int:
    """Return the width of a page beside the names of rows, in characters."""
    return _PAGE - 2 - max(len(row[0]) for row in table.body)


def _widths(table: Table) -> list[int]:
    """Return the width of each column on a LaTeX page, in characters."""
    if table.prose:
        count = len(table.columns)
        return [_room(table) // min(count, _PROSE_COLUMNS)] * count
    return [
        2 + max(len(headings[-1]), *(len(row[place]) for row in table.body))
        for place, headings in enumerate(table.columns, 1)
    ]


def _lines(notes: Sequence[str]) -> int:
    """Return the approximate number of lines of notes on a LaTeX page."""
    return sum(math.ceil(len(note) / _PAGE) for note in notes)


def _stacked(text: str, widths: Sequence[int]) -> str:
    """Return a heading for LaTeX, on several lines if it is wider than its columns."""
    lines = [latex(line) for line in textwrap.wrap(text, max(sum(widths), 1))] or [""]
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[b]{@{}c@{}}" + r"\\".join(lines) + r"\end{tabular}"


def _markdown_grid(table: Table) -> str:
    """Return the rows as one or more pipe tables, which have one row of headings: levels are joined."""
    parts = grouped(table.columns) if len(table.columns) > _MARKDOWN_COLUMNS else [range(len(table.columns))]
    return "\n\n".join(_markdown_part(table.with_columns(part)) for part in parts)


def _markdown_part(table: Table) -> str:
    tabulate.WIDE_CHARS_MODE = False  # otherwise the padding depends on whether wcwidth is installed
    return tabulate.tabulate(
        [[markdown(cell) for cell in row] for row in table.body],
        headers=[markdown(heading) for heading in (table.stub, *map(", ".join, table.columns))],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left", *["left" if table.prose else "right"] * len(table.columns)],
    )


_LATEX_SYNTAX: dict[str, Any] = {
    "block_start_string": "((*",
    "block_end_string": "*))",
    "variable_start_string": "(((",
    "variable_end_string": ")))",
    "comment_start_string": "((=",
    "comment_end_string": "=))",
}
"""LaTeX itself needs the braces."""


@cache
def _template(templates: Path, name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_LATEX_SYNTAX if name.endswith(".tex") else {}),
    )
    environment.filters |= {
        "grid": _markdown_grid,
        "latex": latex,
        "lines": _lines,
        "markdown": markdown,
        "panels": panels,
        "stacked": _stacked,
        "widths": _widths,
    }
    return environment.get_template(f"{name}.j2")
