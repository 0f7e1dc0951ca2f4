"""A verdict as one self-contained HTML file with both loss curves."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from qlora_repeat.analysis.verify.verdict import Verdict
from qlora_repeat.render.figures.drawing import COLORS, GRAY, as_svg, drawing_settings
from qlora_repeat.render.html import render_html
from qlora_repeat.render.text.diff import shown
from qlora_repeat.render.text.verdict import divergence_sentence, measured_rows

_LARGEST = 1e30
"""The largest value that is drawn; a record may contain any number."""
_AGAIN, _RECORDED = COLORS[1:3]


def verdict_page(
    name: str,
    verdict: Verdict,
    recorded: Sequence[float | None],
    rerun: Sequence[float | None],
    command: str,
) -> str:
    """Return the page; `recorded` and `rerun` are the losses by step, from step 1."""
    return render_html(
        "verdict.html.j2",
        name=name,
        verdict=verdict,
        measured=measured_rows(verdict),
        first_difference=divergence_sentence(verdict),
        explanations=[(each.key, shown(each.first), shown(each.second)) for each in verdict.explanations],
        curves=Markup(as_svg(_draw_curves(recorded, rerun, verdict), "verdict")),
        command=command,
    )


@drawing_settings()
def _draw_curves(recorded: Sequence[float | None], rerun: Sequence[float | None], verdict: Verdict) -> Figure:
    """Draw the losses, and below them their relative difference."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    ours, theirs = _by_step(recorded), _by_step(rerun)
    above.plot(list(ours), list(ours.values()), color=_RECORDED, label="recorded")
    above.plot(list(theirs), list(theirs.values()), color=_AGAIN, linestyle=(0, (3, 2)), label="re-run")
    both = {step: (loss, theirs[step]) for step, loss in ours.items() if loss and step in theirs}
    differences = {step: abs(other - one) / abs(one) for step, (one, other) in both.items()}
    below.plot(list(differences), list(differences.values()), color=GRAY, marker=".", linewidth=0.8)
    if positive := [value for value in differences.values() if value > 0]:
        below.set_yscale("symlog", linthresh=min(positive))
        below.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value else "0")
    below.axhline(verdict.tolerance.loss, color=_AGAIN, linewidth=0.8, linestyle=":")
    if verdict.divergence is not None and verdict.divergence.step:
        above.axvline(verdict.divergence.step, color=GRAY, linewidth=0.8, linestyle=":")
    above.set_ylabel("loss")
    below.set_ylabel("relative difference")
    below.set_xlabel("step")
    above.legend(frameon=False)
    return figure


def _by_step(losses: Sequence[float | None]) -> dict[int, float]:
    """Return the losses that can be drawn, by step."""
    return {step: loss for step, loss in enumerate(losses, 1) if loss is not None and abs(loss) < _LARGEST}
