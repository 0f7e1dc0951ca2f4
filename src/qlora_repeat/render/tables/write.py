"""Write the tables of a study, and of its comparison with another, as LaTeX and Markdown.

The files depend on the results alone, not on clock or locale. `paper_tables` and `comparison` decide what the
tables contain, ``paper/templates`` how they look.
"""

import functools
import itertools
import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tabulate
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.render.escape import latex, markdown
from qlora_repeat.render.footnotes import study_names
from qlora_repeat.render.tables.comparison import comparison_tables
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import TABLE_FILE, Table
from qlora_repeat.results.arms import Arm
from qlora_repeat.system.files import write_text

Format = Literal["latex", "markdown"]
"""The format of a file with tables."""
ENDINGS: dict[Format, str] = {"latex": ".tex", "markdown": ".md"}
_PAGE = 100
"""The width of a page in digits of footnote size, approximately."""
_TOGETHER = 6
"""Additional width that is allowed to keep columns under one heading together."""
_MARKDOWN_COLUMNS = 16
"""Wider tables are split in Markdown, too: one part for each heading of the highest level."""
_PROSE_COLUMNS = 4
"""Columns of running text that are legible side by side."""


@dataclass(frozen=True)
class Heading:
    """A heading above columns `first` to `last` of a panel; column 1 contains the row names."""

    text: str
    first: int
    last: int
    width: int
    """Width of these columns, in characters."""


@dataclass(frozen=True)
class Panel:
    """Columns of a table that fit on a page side by side."""

    levels: list[list[Heading]]
    rows: list[list[str]]
    summary: list[list[str]]
    lines: int
    """Approximate number of lines on the page, including the notes below the last panel."""


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
        tables += comparison_tables(arms, others)
    return tables + [_experiment_table(measured) for measured in experiments]


def write_tables(
    tables: list[Table],
    out: Path,
    templates: Path,
    studies: str,
    formats: Collection[Format] = get_args(Format),
) -> list[Path]:
    """Write each table as ``table-NN.tex`` and ``.md``; all in ``tables.md``, ``tables.tex``, ``all.tex``.

    ``tables.tex`` is for ``\\input`` in a document; ``all.tex`` is a complete document, which names
    `studies`. Older tables in `out`, of the same `formats`, are removed. Returns the files written.
    """
    of_experiments = [table.part for table in tables if table.part]
    tex, md = _latex_environment(templates), _markdown_environment(templates)
    texts = {name: text for table in tables for name, text in table_texts(table, templates).items()}
    texts["tables.md"] = md.get_template("tables.md.j2").render(tables=tables, studies=studies)
    for name in ("tables.tex", "all.tex"):
        template = tex.get_template(f"{name}.j2")
        texts[name] = template.render(tables=tables, studies=studies, experiments=of_experiments)
    endings = tuple(ENDINGS[each] for each in formats)
    texts = {name: text for name, text in texts.items() if name.endswith(endings)}
    for name, text in texts.items():
        write_text(out / name, text)
    for path in out.iterdir():
        if TABLE_FILE.fullmatch(path.name) and path.name.endswith(endings) and path.name not in texts:
            path.unlink()
    return [out / name for name in texts]


def render_tables(
    arms: list[Arm],
    out: Path,
    templates: Path,
    others: list[Arm] | None = None,
    experiments: Sequence[Measurements] = (),
    formats: Collection[Format] = get_args(Format),
) -> list[Path]:
    """Write the tables of arms, as `collected_tables` makes them and `write_tables` writes them.

    Raises:
        UsageError: as `collected_tables`.
    """
    studies = study_names(arms)
    if others is not None:
        studies = f"{studies}, compared with {study_names(others)}"
    tables = collected_tables(arms, others, experiments)
    return write_tables(tables, out, templates, studies, formats)


def _experiment_table(measured: Measurements) -> Table:
    # Import scipy only here: it takes a second.
    from qlora_repeat.analysis.attribution.decompose import attribute
    from qlora_repeat.render.tables.attribution import attribution_table

    return attribution_table(measured, attribute(measured))


def table_texts(table: Table, templates: Path) -> dict[str, str]:
    """Return a table as LaTeX and as Markdown, by file name."""
    tex, md = _latex_environment(templates), _markdown_environment(templates)
    return {
        f"{table.name}.tex": tex.get_template("table.tex.j2").render(table=table, panels=panels(table)),
        f"{table.name}.md": md.get_template("table.md.j2").render(table=table),
    }


@functools.cache
def _markdown_environment(templates: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown, "grid": _markdown_grid}
    return environment


@functools.cache
def _latex_environment(templates: Path) -> Environment:
    """Like the Markdown one, but ``((* … *))``, ``((( … )))`` and ``((= … =))``: LaTeX needs the braces."""
    environment = _markdown_environment(templates).overlay(
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        comment_start_string="((=",
        comment_end_string="=))",
    )
    environment.filters = {**environment.filters, "latex": latex, "stacked": _stacked}
    return environment


def _markdown_grid(table: Table) -> str:
    """Return the rows as one or more pipe tables, which have one row of headings: levels are joined."""
    places = list(range(len(table.columns)))
    parts = [places]
    if len(places) > _MARKDOWN_COLUMNS:
        parts = [list(part) for _, part in itertools.groupby(places, lambda place: table.columns[place][0])]
    return "\n\n".join(_markdown_part(table, part) for part in parts)


def _markdown_part(table: Table, part: list[int]) -> str:
    tabulate.WIDE_CHARS_MODE = False  # otherwise the padding depends on whether wcwidth is installed
    return tabulate.tabulate(
        [
            [markdown(row[0]), *(markdown(row[place + 1]) for place in part)]
            for row in table.rows + table.summary
        ],
        headers=[markdown(table.stub), *(markdown(", ".join(table.columns[place])) for place in part)],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left", *("left" if table.prose else "right" for _ in part)],
    )


def _stacked(text: str, width: int) -> str:
    """Return a heading for LaTeX, on several lines if it is wider than its columns."""
    lines = [latex(line) for line in textwrap.wrap(text, max(width, 1))] or [""]
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[b]{@{}c@{}}" + r"\\".join(lines) + r"\end{tabular}"


def panels(table: Table) -> list[Panel]:
    """Split a table into panels of the width of a LaTeX page."""
    body = table.rows + table.summary
    room = _PAGE - 2 - max(len(row[0]) for row in body)
    widths = [
        room // _PROSE_COLUMNS
        if table.prose
        else 2 + max(len(headings[-1]), *(len(row[place]) for row in body))
        for place, headings in enumerate(table.columns, 1)
    ]
    groups = _groups(table.columns, widths, room)
    parts: list[list[int]] = [[]]
    for group in groups:
        if parts[-1] and sum(widths[place] for place in parts[-1] + group) > room:
            parts.append([])
        parts[-1] += group
    notes = sum(math.ceil(len(note) / _PAGE) for note in table.notes)
    return [
        Panel(
            levels=heading_levels(
                table, part, [room // len(part) if table.prose else widths[place] for place in part]
            ),
            rows=[[row[0], *(row[place + 1] for place in part)] for row in table.rows],
            summary=[[row[0], *(row[place + 1] for place in part)] for row in table.summary],
            lines=len(body) + 12 + (notes if part is parts[-1] else 0),
        )
        for part in parts
    ]


def _groups(columns: list[tuple[str, ...]], widths: list[int], room: int) -> list[list[int]]:
    """Return groups of columns to keep together: under the highest headings that fit, or single columns."""
    places = range(len(columns))
    for depth in range(1, len(columns[0])):
        above = [headings[:depth] for headings in columns]
        groups = [list(group) for _, group in itertools.groupby(places, above.__getitem__)]
        if all(sum(widths[place] for place in group) <= room + _TOGETHER for group in groups):
            return groups
    return [[place] for place in places]


def heading_levels(table: Table, part: list[int], widths: list[int]) -> list[list[Heading]]:
    """Return the rows of headings above some columns; equal neighbors under one heading are merged."""
    levels = []
    for depth in range(1, len(table.columns[0]) + 1):
        above = [table.columns[place][:depth] for place in part]
        level, first = [], 0
        for headings, group in itertools.groupby(above):
            last = first + len(list(group))
            level.append(Heading(headings[-1], first + 2, last + 1, sum(widths[first:last])))
            first = last
        levels.append(level)
    return levels
