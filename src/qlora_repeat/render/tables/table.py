"""A table before any layout: rows of plain text under headings, and how one with a row per run is made."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from string import ascii_letters

from qlora_repeat.results.arms import Arm, Measure, source_of, stale
from qlora_repeat.results.number_format import DASH, number
from qlora_repeat.results.trial_result import TrialResult


@dataclass(frozen=True)
class Column:
    """A column with a cell for each run of an arm: its headings from the top, and what a done trial shows."""

    headings: tuple[str, ...]
    arm: Arm
    cell: Callable[[TrialResult], str | None]


@dataclass(frozen=True)
class Table:
    """What a table says, not yet escaped. Each row begins with its name."""

    number: str
    """The paper's (1, 5b), or that of a table the paper lacks: S0, S1b, C1."""
    caption: str
    source: str
    """The study, devices, days and software of what is shown."""
    stub: str
    """The heading of the rows' names."""
    columns: list[tuple[str, ...]]
    """The headings of each column, from the top; equally many for all columns."""
    rows: list[list[str]]
    summary: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prose: bool = False
    """Cells are running text to be wrapped, not numbers."""
    part: str = ""
    """What tells it from others of its number: the arm of an attribution (S2)."""

    @property
    def name(self) -> str:
        """That of its files: ``table-01``, ``table-05b``, ``table-C01``, ``table-S1b``, ``table-S2-ARM``."""
        digits = self.number.strip(ascii_letters)
        padded = digits if self.number.startswith("S") else f"{digits:0>2}"
        return f"table-{self.number.replace(digits, padded)}" + (f"-{self.part}" if self.part else "")


TABLE_FILE = re.compile(r"table-(?:\d\d[a-z]?|C\d\d|S\d[a-z]?(?:-.+)?)\.(?:tex|md)")
"""The names of files that hold a table."""


def by_run(
    number: str,
    caption: str,
    columns: list[Column],
    summary: list[list[str]] | None = None,
    notes: list[str] | None = None,
    prose: bool = False,
) -> Table:
    """A table with a row for each run that any of its columns has."""
    cells = [{trial.trial: column.cell(trial) for trial in column.arm.done} for column in columns]
    found = {run: [own.get(run) for own in cells] for run in _runs(columns)}
    used = {
        (trial.model, trial.optimizer, trial.trial)
        for column, own in zip(columns, cells, strict=True)
        for trial in column.arm.done
        if own[trial.trial] is not None
    }
    remarks = stale(
        (column.arm for column in columns),
        lambda trial: (trial.model, trial.optimizer, trial.trial) in used,
    )
    return Table(
        number=number,
        caption=caption,
        source=source_of([column.arm for column in columns]),
        stub="Run",
        columns=[column.headings for column in columns],
        rows=[[str(run), *(DASH if cell is None else cell for cell in row)] for run, row in found.items()],
        summary=summary or [],
        notes=[*(notes or []), *remarks, *missing(columns)],
        prose=prose,
    )


def measured(headings: tuple[str, ...], arm: Arm, measure: Measure) -> Column:
    """A column of numbers."""
    return Column(headings, arm, lambda trial: number(measure(trial)))


def missing(columns: list[Column]) -> list[str]:
    """A note of how many of the columns' trials lack a value, and why."""
    lacking = count_lacking(columns)
    return [f"No value ({DASH}) from {lacking}."] if lacking else []


def count_lacking(columns: list[Column]) -> str:
    """How many of the columns' trials lack a value, and why, as text; empty if none does."""
    runs = _runs(columns)
    reasons = {}
    for column in columns:
        own = {trial.trial: trial for trial in column.arm.trials}
        for run in runs:
            trial, key = own.get(run), (column.arm.model, column.arm.optimizer, run)
            if trial is None or not trial.measured:
                reasons[key] = trial.status if trial else "missing"
            elif column.cell(trial) is None:
                reasons[key] = f"{trial.status}, but without this value"
    if not reasons:
        return ""
    trials = len({(column.arm.model, column.arm.optimizer) for column in columns}) * len(runs)
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(reasons.values()).items()))
    return f"{len(reasons)} of {trials} trials: {counted}"


def _runs(columns: list[Column]) -> list[int]:
    return sorted({trial.trial for column in columns for trial in column.arm.trials})
