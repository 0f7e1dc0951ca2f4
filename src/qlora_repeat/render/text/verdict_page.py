"""A verdict as one self-contained HTML file with both loss curves."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from qlora_repeat.analysis.verify.verdict import Verdict
from qlora_repeat.render.text.diff import shown
from qlora_repeat.render.text.verdict import divergence_sentence, measured_rows

_LARGEST = 1e30
"""The largest value that is drawn; a record may contain any number."""
_RECORDED, _AGAIN, _PARTED = "#0072B2", "#D55E00", "#777777"


def verdict_page(
    name: str,
    verdict: Verdict,
    recorded: Sequence[float | None],
    rerun: Sequence[float | None],
    command: str,
) -> str:
    """Return the page; `recorded` and `rerun` are the losses by step, from step 1."""
    environment = Environment(
        loader=PackageLoader("qlora_repeat.render"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("verdict.html.j2").render(
        name=name,
        verdict=verdict,
        measured=measured_rows(verdict),
        parted=divergence_sentence(verdict) if verdict.divergence and verdict.kind != "bitwise" else None,
        explanations=[(each.key, shown(each.first), shown(each.second)) for each in verdict.explanations],
        curves=_curves(recorded, rerun, verdict),
        command=command,
    )


def _curves(recorded: Sequence[float | None], rerun: Sequence[float | None], verdict: Verdict) -> str:
    """Return an SVG of the losses, and below them their relative difference."""
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "svg.hashsalt": "verdict",  # the same bytes for the same verdict
        "text.parse_math": False,
        "font.size": 8,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7, 4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        for losses, color, style, label in (
            (recorded, _RECORDED, "-", "recorded"),
            (rerun, _AGAIN, (0, (3, 2)), "re-run"),
        ):
            points = [(step, loss) for step, loss in enumerate(losses, 1) if _finite(loss)]
            if points:
                above.plot(*zip(*points, strict=True), color=color, linestyle=style, label=label)
        apart = [
            (step, abs(other - one) / abs(one))
            for step, (one, other) in enumerate(zip(recorded, rerun, strict=False), 1)
            if one is not None and other is not None and _finite(one) and _finite(other) and one
        ]
        if apart:
            below.plot(*zip(*apart, strict=True), color=_PARTED, marker=".", linewidth=0.8)
        if any(value > 0 for _, value in apart):
            below.set_yscale("symlog", linthresh=min(value for _, value in apart if value > 0))
            below.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value else "0")
        below.axhline(verdict.tolerance.loss, color=_AGAIN, linewidth=0.8, linestyle=":")
        if verdict.divergence is not None and verdict.divergence.step:
            above.axvline(verdict.divergence.step, color=_PARTED, linewidth=0.8, linestyle=":")
        above.set_ylabel("loss")
        below.set_ylabel("relative difference")
        below.set_xlabel("step")
        above.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _finite(value: float | None) -> bool:
    return value is not None and abs(value) < _LARGEST
