"""The report as HTML: one file, with style, scripts and data inside, that asks no network for anything."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qlora_repeat import __version__
from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.analysis.claims.claims import DEFINITIONS, judge_claims
from qlora_repeat.errors import UsageError
from qlora_repeat.render.escape import writable
from qlora_repeat.render.figures.collapse import draw_collapse
from qlora_repeat.render.figures.drawing import as_svg, drawing_settings
from qlora_repeat.render.footnotes import source_of
from qlora_repeat.render.report.charts import (
    Chart,
    beside_the_paper,
    distance_charts,
    loss_charts,
    perplexity_charts,
)
from qlora_repeat.render.report.content import ArmRow, arm_rows, meanings, questions, verdict
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.render.tables.collapse import tested_models
from qlora_repeat.render.tables.comparison import comparison_tables
from qlora_repeat.render.tables.html import all_headings
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm
from qlora_repeat.system.fingerprint import device_name, software_names

_STATIC = resources.files("qlora_repeat.render.report") / "static"


@dataclass(frozen=True)
class Drawn:
    """A figure that stands still."""

    title: str
    svg: Markup
    says: list[str]


@dataclass(frozen=True)
class Compared:
    """The published numbers beside the study's."""

    chart: Chart | None
    tables: list[Table]


def report_html(
    arms: list[Arm],
    *,
    study_name: str,
    files: TrialFiles,
    published: list[Arm],
    experiments: Sequence[Measurements] = (),
) -> str:
    """Return the report. It is a pure function of what it is given: the same bytes for the same results.

    Raises:
        UsageError: there are no results.
    """
    tables = make_tables(arms)  # which says what is wrong with the results
    rows = arm_rows(arms, files, study_name)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study_name,
            sentences=verdict(rows),
            source=source_of(arms),
            rows=rows,
            trials=max(len(row.cells) for row in rows),
            meanings=meanings(rows),
            perplexities=perplexity_charts(rows),
            losses=loss_charts(rows, files),
            distances=distance_charts(rows, files),
            compared=_compared(arms, rows, published),
            questions=questions(rows),
            experiments=[_experiment(measured) for measured in experiments],
            collapse=_collapse(arms),
            claims=judge_claims(arms),
            rules=DEFINITIONS,
            tables=tables,
            fingerprints=_fingerprints(files),
            version=__version__,
            style=Markup(_static("report.css")),
            libraries=Markup(_static("libraries.js")),
            script=Markup(_static("report.js")),
            licenses=_static("licenses.txt"),
            policy=_policy(),
        )
    )
    return writable(page)


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("qlora_repeat.render.report"), PackageLoader("qlora_repeat.render")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data": _data, "headings": all_headings}
    return environment


@cache
def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _policy() -> str:
    """What a browser is to run and load: these two scripts, and nothing that a text may smuggle in."""
    scripts = " ".join(f"'sha256-{_digest(_static(name))}'" for name in ("libraries.js", "report.js"))
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(value: Any) -> Markup:
    """As JSON inside of a script element, where only ``<`` could end it."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _compared(arms: list[Arm], rows: list[ArmRow], published: list[Arm]) -> Compared | None:
    """None where no arm has a counterpart."""
    try:
        tables = comparison_tables(arms, published)
    except UsageError:
        return None
    return Compared(beside_the_paper(rows, arm_rows(published, TrialFiles(), "published")), tables)


def _experiment(measured: Measurements) -> Drawn:
    # What it needs of scipy takes a second to import.
    from qlora_repeat.analysis.attribution.decompose import attribute
    from qlora_repeat.render.figures.attribution import draw_attribution
    from qlora_repeat.render.text.attribution import sentences

    found = attribute(measured)
    return Drawn(
        measured.arm, Markup(as_svg(draw_attribution(measured, found), "report")), sentences(measured, found)
    )


def _collapse(arms: list[Arm]) -> Drawn | None:
    if not tested_models(arms) or not any(trial.loss_curve for arm in arms for trial in arm.done):
        return None
    with drawing_settings():
        return Drawn("The map of 8-bit state", Markup(as_svg(draw_collapse(arms), "report")), [])


def _fingerprints(files: TrialFiles) -> list[tuple[str, str, list[str]]]:
    """Device, software, and the trials that ran there, for each that differs."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, fingerprint in files.fingerprints.items():
        found.setdefault((device_name(fingerprint), software_names(fingerprint)), []).append(name)
    return [(device, software, trials) for (device, software), trials in found.items()]
