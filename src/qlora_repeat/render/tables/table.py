"""A table before any layout: rows of plain text under headings."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_letters

from qlora_repeat.render.footnotes import missing, source_of, stale
from qlora_repeat.render.tables.columns import Heading, Headings, heading_levels
from qlora_repeat.results.arms import Arm, Measure
from qlora_repeat.results.number_format import DASH, number
from qlora_repeat.results.trial_result import TrialResult


@dataclass(frozen=True)
class Table:
    """The content of a table, not yet escaped. Each row begins with its name."""

    number: str
    """The paper's number (1, 5b), or S0, S1b, C1 for tables that the paper does not have."""
    caption: str
    source: str
    """The study, devices, days and software of what is shown."""
    stub: str
    """The heading of the rows' names."""
    columns: list[Headings]
    """The headings of each column, from the top; the same number for all columns."""
    rows: list[list[str]]
    summary: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prose: bool = False
    """Cells are running text to be wrapped, not numbers."""
    part: str = ""
    """Distinguishes tables with the same number: the arm of an attribution (S2)."""

    @property
    def name(self) -> str:
        """The file name: ``table-01``, ``table-05b``, ``table-C01``, ``table-S1b``, ``table-S2-ARM``."""
        digits = self.number.strip(ascii_letters)
        padded = digits if self.number.startswith("S") else f"{digits:0>2}"
        return f"table-{self.number.replace(digits, padded)}" + (f"-{self.part}" if self.part else "")

    @property
    def body(self) -> list[list[str]]:
        """The rows, then the summary."""
        return self.rows + self.summary

    @property
    def levels(self) -> list[list[Heading]]:
        """The rows of headings."""
        return heading_levels(self.columns)

    def with_columns(self, places: Sequence[int]) -> "Table":
        """Return the table with these columns alone, by index from 0."""
        rows, summary = (
            [[row[0], *(row[place + 1] for place in places)] for row in each]
            for each in (self.rows, self.summary)
        )
        columns = [self.columns[place] for place in places]
        return replace(self, columns=columns, rows=rows, summary=summary)

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        from qlora_repeat.render.html import tables_html

        return tables_html([self])


TABLE_FILE = re.compile(r"table-(?:\d\d[a-z]?|C\d\d|S\d[a-z]?(?:-.+)?)\.(?:tex|md)")
"""The names of files that hold a table."""


Column = tuple[Headings, Arm, Callable[[TrialResult], str | None]]
"""The headings of a column, and an arm with the cell of each run."""


def number_column(headings: Headings, arm: Arm, measure: Measure) -> Column:
    """Make a column of numbers with equal decimals."""
    decimals = arm.decimals(measure)
    return headings, arm, lambda trial: number(measure(trial), decimals)


def by_run(
    number: str,
    caption: str,
    columns: Sequence[Column],
    *,
    summary: Sequence[list[str]] = (),
    notes: Sequence[str] = (),
    prose: bool = False,
) -> Table:
    """Make a table with a row for each run that any of its columns has."""
    arms = list({arm.key: arm for _, arm, _ in columns}.values())
    found = [{trial.trial: cell(trial) for trial in arm.done} for _, arm, cell in columns]

    def cells(trial: TrialResult) -> list[str | None]:
        key = (trial.model, trial.optimizer)
        return [own[trial.trial] for (_, arm, _), own in zip(columns, found, strict=True) if arm.key == key]

    return Table(
        number=number,
        caption=caption,
        source=source_of(arms),
        stub="Run",
        columns=[headings for headings, _, _ in columns],
        rows=[
            [str(run), *(DASH if (cell := own.get(run)) is None else cell for own in found)]
            for run in sorted({trial.trial for arm in arms for trial in arm.trials})
        ],
        summary=list(summary),
        notes=[
            *notes,
            *stale(arms, lambda trial: any(cell is not None for cell in cells(trial))),
            *missing(arms, lambda trial: None if None in cells(trial) else True),
        ],
        prose=prose,
    )
