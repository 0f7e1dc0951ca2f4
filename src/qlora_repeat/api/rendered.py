"""Tables, claims, figures and the report of results: objects that show themselves, and can be written."""

import html
import re
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qlora_repeat.analysis.claims.claims import JudgedClaim, judge_claims
from qlora_repeat.api.listed import Listed
from qlora_repeat.api.places import BUILD, TEMPLATES
from qlora_repeat.api.results import Results, paper_results, results_of
from qlora_repeat.errors import UsageError
from qlora_repeat.render.footnotes import study_names
from qlora_repeat.render.html import tables_html
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.terminal import terminal_table
from qlora_repeat.render.tables.write import Format, collected_tables, write_tables
from qlora_repeat.results.arms import Arm
from qlora_repeat.results.scope import banner, of_paper
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import write_text
from qlora_repeat.system.printable import one_line

if TYPE_CHECKING:
    from qlora_repeat.analysis.attribution.measurements import Measurements

Given = Results | Workspace | str | Path
"""Results, or what names them: see `results_of`."""
_Read = tuple[Results, list[Arm], "list[Measurements]"]
"""Results, their arms, and the attribution experiments of their study."""
_WIDTH = 100
"""Columns of a table as text."""
_FRAME_HEIGHT = 700
"""Pixels of the report in a notebook."""


@dataclass(frozen=True, repr=False)
class Tables(Listed[Table]):
    """The tables of results, in the order of the paper."""

    label: str
    """The name of the study, after which the folder is named."""
    studies: str
    """The studies whose results are shown, as the documents with all tables say."""
    banner: str = ""
    """What to say above them if the results are cut short."""

    def numbered(self, *numbers: str) -> "Tables":
        """Return the tables with these numbers, such as ``1`` or ``S1b``.

        Raises:
            UsageError: there is no such table; names those that there are.
        """
        known = {table.number.lower(): table.number for table in self}
        if unknown := [number for number in numbers if number.lower() not in known]:
            raise UsageError(f"there is no table {unknown[0]}; there are {', '.join(known.values())}")
        wanted = {number.lower() for number in numbers}
        return replace(self, items=[table for table in self if table.number.lower() in wanted])

    def write(
        self, folder: str | Path | None = None, *, formats: Collection[Format] = get_args(Format)
    ) -> list[Path]:
        """Write the tables as LaTeX and as Markdown, and remove others from the folder; return the paths."""
        out = _folder(folder, self.label)
        return write_tables(self.items, out, TEMPLATES, self.studies, formats, self.banner)

    def to_text(self, width: int = _WIDTH) -> str:
        """Return the tables as text, with lines of at most `width` characters."""
        above = ["\n".join(textwrap.wrap(self.banner, width))] if self.banner else []
        return "\n\n\n".join([*above, *(terminal_table(table, width) for table in self)])

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Tables of {self.studies}: {', '.join(table.number for table in self)}>"

    def _repr_html_(self) -> str:
        above = f"<p><b>{html.escape(self.banner)}</b></p>" if self.banner else ""
        return above + tables_html(self.items)


def tables(results: Given, *, compare: Given | None = None) -> Tables:
    """Make the paper's tables from results, with those that the paper lacks: statistics, claims, and more.

    Args:
        compare: other results; tables that compare with them are added. ``published`` are the paper's.

    Raises:
        UsageError: there are no results, two rows are of the same trial, or no arm can be compared.
        MissingError, UsageError: as `results_of`.
    """
    return _tables(_read(results), compare)


def _read(given: Given) -> _Read:
    results = results_of(given)
    return results, results.arms(), results.experiments()


def _tables(read: _Read, compare: Given | None) -> Tables:
    results, arms, experiments = read
    others = None if compare is None else results_of(compare).arms()
    made = collected_tables(arms, others, experiments)
    studies = study_names(arms) + (f", compared with {study_names(others)}" if others else "")
    return Tables(made, results.label, studies, banner(arms))


@dataclass(frozen=True, repr=False)
class Claims(Listed[JudgedClaim]):
    """The claims of the paper, each with what results say of it."""

    table: Table
    """Table S4."""

    def __str__(self) -> str:
        return terminal_table(self.table, _WIDTH)

    def __repr__(self) -> str:
        return "\n".join(f"{each.verdict}: {each.claim.words}" for each in self)

    def _repr_html_(self) -> str:
        return tables_html([self.table])


def claims(results: Given) -> Claims:
    """Judge the claims of the paper by results.

    Raises:
        UsageError: two rows are of the same trial, or no model is, or stands in for, one of the paper's.
        MissingError, UsageError: as `results_of`.
    """
    from qlora_repeat.render.tables.claims import claims_table

    found = results_of(results)
    arms = of_paper(found.arms())
    if not arms:
        raise UsageError(
            f"{one_line(found.label)}: no model is, or has as counterpart, one of the paper's, so its claims "
            "do not apply"
        )
    judged = judge_claims(arms)
    return Claims(judged, claims_table(arms, judged))


@dataclass(frozen=True, repr=False)
class Report:
    """The report of results: one HTML page that needs no network."""

    html: str
    label: str

    def write(self, folder: str | Path | None = None) -> Path:
        """Write the page as ``report.html`` to a folder; return its path."""
        path = _folder(folder, self.label) / "report.html"
        write_text(path, self.html)
        return path

    def __repr__(self) -> str:
        return f"<Report of {self.label}: {len(self.html.encode()) / 1e6:.2f} MB of HTML>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="Report of {html.escape(self.label)}" '
            f'style="width: 100%; height: {_FRAME_HEIGHT}px; border: 0"></iframe>'
        )


def report(results: Given) -> Report:
    """Make the report of results: every trial, where trials differ, and the paper's numbers beside them.

    Raises:
        UsageError: there are no results, or two rows are of the same trial.
        MissingError, UsageError: as `results_of`.
    """
    return _report(_read(results))


def _report(read: _Read) -> Report:
    from qlora_repeat.render.report.page import report_html
    from qlora_repeat.render.report.trial_files import TrialFiles, read_trial_files

    results, arms, experiments = read
    page = report_html(
        arms,
        study_name=results.name,
        files=read_trial_files(results.study, arms) if results.study else TrialFiles(),
        published=[] if results.label == PUBLISHED else paper_results().arms(),
        experiments=experiments,
    )
    return Report(page, results.label)


def write_figures(results: Given, folder: str | Path | None = None) -> list[Path]:
    """Draw Figure 4 of the paper, and S2 and S3 where a study has them, as PDF and PNG; return the paths.

    Raises:
        MissingError: no finished trial has a loss curve.
        MissingError, UsageError: as `results_of`.
    """
    return _write_figures(_read(results), folder)


def _write_figures(read: _Read, folder: str | Path | None) -> list[Path]:
    from qlora_repeat.render.figures.write import render_figures

    results, arms, experiments = read
    return render_figures(arms, _folder(folder, results.label), experiments)


def write_all(
    results: Given, folder: str | Path | None = None, *, compare: Given | None = None
) -> list[Path]:
    """Write tables, figures and report to a folder, as the command ``run`` does; return the paths.

    Where no trial has a loss curve, there are no figures.
    """
    read = _read(results)
    paths = _tables(read, compare).write(folder)
    if any(row.loss_curve for row in read[0] if row.measured):
        paths += _write_figures(read, folder)
    return [*paths, _report(read).write(folder)]


def _folder(given: str | Path | None, label: str) -> Path:
    if given is None and not re.fullmatch(r"[^/\0.][^/\0]*", label):  # it may be a stranger's
        raise UsageError(f"{one_line(label)}: not a name of a study; give the folder to write to")
    return BUILD / label if given is None else Path(given)
