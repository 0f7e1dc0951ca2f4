"""The report as HTML: one file with style, scripts and data, which a browser shows without a network."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from markupsafe import Markup

from qlora_repeat import __version__
from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.analysis.claims.claims import DEFINITIONS, judge_claims
from qlora_repeat.errors import UsageError
from qlora_repeat.render.figures.attribution import draw_attribution
from qlora_repeat.render.figures.averaging import draw_averaging, has_averaging_figure
from qlora_repeat.render.figures.collapse import draw_collapse, has_collapse_figure
from qlora_repeat.render.figures.drawing import as_svg
from qlora_repeat.render.footnotes import source_of
from qlora_repeat.render.html import render_html
from qlora_repeat.render.report.charts import (
    beside_the_paper,
    distance_charts,
    loss_charts,
    perplexity_charts,
)
from qlora_repeat.render.report.content import arm_rows, meanings, questions, verdict
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.render.tables.comparison import comparison_tables
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.text.attribution import sentences
from qlora_repeat.results.arms import Arm, trained
from qlora_repeat.results.scope import banner, of_paper
from qlora_repeat.system.fingerprint import device_name, software_names

_STATIC = resources.files("qlora_repeat.render.report") / "static"


def report_html(
    arms: list[Arm],
    *,
    study_name: str,
    files: TrialFiles,
    published: list[Arm],
    experiments: Sequence[Measurements] = (),
) -> str:
    """Return the report: the same bytes for the same results.

    Raises:
        UsageError: there are no results.
    """
    tables = make_tables(arms)  # raises what is wrong with the results
    averaging = Markup(as_svg(draw_averaging(arms), "averaging")) if has_averaging_figure(arms) else None
    arms = trained(arms)
    rows = arm_rows(arms, files, study_name)
    perplexities, losses = list(perplexity_charts(rows)), list(loss_charts(rows, files))
    comparisons = _comparisons(arms, published)
    return render_html(
        "report.html.j2",
        study=study_name,
        banner=banner(arms),
        sentences=verdict(rows),
        source=source_of(arms),
        rows=rows,
        trials=max(len(row.cells) for row in rows),
        meanings=meanings(rows),
        perplexities=perplexities,
        based=any(chart.data["base"] is not None for chart in perplexities),
        losses=losses,
        differing=any(chart.data["step"] is not None for chart in losses),
        distances=list(distance_charts(rows, files)),
        comparisons=comparisons,
        ratios=beside_the_paper(arms, published) if comparisons else None,
        questions=questions(rows),
        experiments=[_experiment(measured) for measured in experiments],
        collapse=Markup(as_svg(draw_collapse(arms), "report")) if has_collapse_figure(arms) else None,
        averaging=averaging,
        claims=judge_claims(papers) if (papers := of_paper(arms)) else [],
        rules=DEFINITIONS,
        tables=tables,
        inspections=files.rows,
        fingerprints=_fingerprints(files),
        version=__version__,
        style=Markup(_static("report.css")),
        libraries=Markup(_static("libraries.js")),
        script=Markup(_static("report.js")),
        licenses=_static("licenses.txt"),
        policy=_policy(),
    )


@cache
def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _policy() -> str:
    """Return the policy that lets a browser run the report's two scripts, and load nothing."""
    digests = (hashlib.sha256(_static(name).encode()).digest() for name in ("libraries.js", "report.js"))
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:"


def _comparisons(arms: list[Arm], published: list[Arm]) -> list[Table]:
    """Return the tables that compare with the paper's numbers, if an arm has a counterpart."""
    try:
        return comparison_tables(arms, published)
    except UsageError:
        return []


def _experiment(measured: Measurements) -> tuple[str, Markup, list[str]]:
    """Return the arm of an attribution, its figure, and its results in sentences."""
    found = attribute(measured)
    drawing = Markup(as_svg(draw_attribution(measured, found), "report"))
    return measured.arm, drawing, sentences(measured, found)


def _fingerprints(files: TrialFiles) -> dict[tuple[str, str, str], list[str]]:
    """Return the trials that ran with each device, software and self-test, which is "" without one."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, fingerprint in files.fingerprints.items():
        machine = device_name(fingerprint), software_names(fingerprint), files.self_tests.get(name, "")
        found.setdefault(machine, []).append(name)
    return found
