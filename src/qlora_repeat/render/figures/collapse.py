"""Figure S3: the same trials with an old map of 8-bit state, with today's, and with 32-bit state.

A column for each model (in the collapse study, for each learning rate): losses over the epochs above,
perplexities afterwards below.
"""

import math
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlora_repeat.render.figures import drawing
from qlora_repeat.render.figures.drawing import COLORS, GRAY, LARGE, LINE, MEDIUM, WIDTH
from qlora_repeat.render.figures.loss_curves import Curve, draw_curve, make_curves
from qlora_repeat.render.figures.scales import Scale, common_scales
from qlora_repeat.render.footnotes import NOTES, missing, source_of, stale
from qlora_repeat.render.tables.collapse import tested_models
from qlora_repeat.results.arms import Arm, base_perplexities, distinct
from qlora_repeat.results.number_format import share_text
from qlora_repeat.results.statistical_methods import rank
from qlora_repeat.results.study_statistics import worse_than_base_share

_COLUMNS = 3
"""Models side by side."""
_LEFT, _RIGHT = 34.0, 6.0
"""Room beside a panel."""
_ABOVE, _BELOW = 10.0, 28.0
"""Room above and below panels, for headings and labels."""
_CURVES, _DOTS = 110.0, 70.0
"""Heights of panels."""
_SPREAD = 0.5
"""Share of the room between two arms for the dots of one, side by side."""
_AT_EDGE = 0.96
"""Height of the mark of what is not finite, as a share of the panel's."""
_STYLES: tuple[tuple[str, Any, str], ...] = (
    (COLORS[1], (0, (5, 1, 1.2, 1)), "o"),
    (COLORS[2], (0, (4, 1.2)), "s"),
    (COLORS[0], "-", "^"),
    (COLORS[3], (0, (1.2, 1)), "D"),
)
"""Color, line and marker of an old map, of today's map, of 32-bit state, and of others."""
_BASE: dict[str, Any] = {"color": GRAY, "linestyle": (0, (1, 1.5)), "linewidth": 0.9, "zorder": 1}


def has_collapse_figure(arms: list[Arm]) -> bool:
    """Return whether these results have what Figure S3 shows."""
    return bool(tested_models(arms)) and any(trial.loss_curve for arm in arms for trial in arm.done)


@drawing.drawing_settings()
def draw_collapse(arms: list[Arm]) -> Figure:
    """Draw Figure S3 of the models that were also trained with an old map of 8-bit state."""
    models = list(tested_models(arms).values())
    optimizers = distinct(arm.heading for own in models for arm in own)
    styles = {name: _STYLES[place % len(_STYLES)] for place, name in enumerate(optimizers)}
    rows = [models[start : start + _COLUMNS] for start in range(0, len(models), _COLUMNS)]
    column = WIDTH / len(rows[0])
    width = column - _LEFT - _RIGHT
    titles = [[drawing.wrapped(own[0].title, width, LARGE, "DejaVuSans-Bold") for own in row] for row in rows]
    headings = [1.2 * LARGE * max(map(len, title)) for title in titles]
    panels = _ABOVE + _CURVES + _BELOW + _ABOVE + _DOTS + _BELOW
    top = 6 + 1.5 * LINE * (len(optimizers) // 2 + 1)
    height = top + sum(headings) + panels * len(rows)
    figure = drawing.new_figure(height, _notes([arm for own in models for arm in own]))
    _draw_legend(figure, styles)
    losses = iter(common_scales([_levels(own) + _losses(own) for own in models]))
    perplexities = iter(common_scales([_base(own) + _perplexities(own) for own in models]))
    for row, title, heading in zip(rows, titles, headings, strict=True):
        for place, own in enumerate(row):
            left = place * column + _LEFT
            drawing.write(figure, top, title[place], x=left / WIDTH, size=LARGE, weight="bold")
            below = top + heading + _ABOVE
            axes = drawing.panel(figure, left, below, width, _CURVES, "loss by epoch")
            _draw_losses(axes, own, styles, next(losses))
            below += _CURVES + _BELOW + _ABOVE
            axes = drawing.panel(figure, left, below, width, _DOTS, "perplexity after fine-tuning")
            _draw_perplexities(axes, own, styles, next(perplexities))
        top += heading + panels
    return figure


Styles = dict[str, tuple[str, Any, str]]
"""Color, line and marker of each optimizer."""


def _draw_legend(figure: Figure, styles: Styles) -> None:
    handles = [
        Line2D([], [], label=name, color=color, linestyle=line, marker=marker, linewidth=1.6, markersize=3)
        for name, (color, line, marker) in styles.items()
    ]
    handles.append(Line2D([], [], label="base, on the test examples", **_BASE))
    looks = {"handlelength": 5, "handletextpad": 0.6, "columnspacing": 2}
    drawing.draw_legend(figure, handles, 2, fontsize=MEDIUM, **looks)


def _draw_losses(axes: Axes, own: list[Arm], styles: Styles, scale: Scale) -> None:
    drawing.set_axis(axes, "y", scale, "loss")
    for level in _levels(own):
        axes.axhline(scale.clip(level), **_BASE)
    last = 0.0
    for arm in reversed(own):  # the first in the legend is in front
        color, line, _ = styles[arm.heading]
        curves = [curve for curve in _curves(arm) if curve.points]
        median = _median_curve(curves)
        looks = {"color": color, "linestyle": line, "markersize": 2}
        if len(median.points) == 1:
            looks["marker"] = "o"
        for curve in curves:
            last = max(last, curve.points[-1][0])
            draw_curve(axes, curve, scale, linewidth=0.45, alpha=0.6, zorder=2, **looks)
            if curve.diverges is not None:
                drawing.draw_crosses(axes, [curve.diverges], _AT_EDGE, color)
        draw_curve(axes, median, scale, linewidth=1.4, zorder=3, **looks)
    drawing.set_epochs(axes, last or 1)


def _draw_perplexities(axes: Axes, own: list[Arm], styles: Styles, scale: Scale) -> None:
    """Draw a dot for each trial, in their order; a bar at the median; crosses for what is not finite."""
    drawing.set_axis(axes, "y", scale, "perplexity")
    for level in _base(own):
        axes.axhline(scale.clip(level), **_BASE)
    for place, arm in enumerate(own):
        color, _, marker = styles[arm.heading]
        found = arm.perplexities
        across = [place + _SPREAD * ((at + 0.5) / len(found) - 0.5) for at in range(len(found))]
        levels = [scale.clip(value) if math.isfinite(value) else math.nan for value in found]
        looks: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0, "alpha": 0.85, "clip_on": False}
        axes.plot(across, levels, marker, color=color, **looks)
        infinite = [x for x, value in zip(across, found, strict=True) if not math.isfinite(value)]
        drawing.draw_crosses(axes, infinite, _AT_EDGE, color)
        middle = statistics.median(map(rank, found)) if found else math.inf
        if math.isfinite(middle):
            axes.plot([place - 0.36, place + 0.36], [scale.clip(middle)] * 2, color=color, linewidth=1.2)
    axes.set_xlim(-0.6, len(own) - 0.4)
    shares = [(float(place), share_text(worse_than_base_share(arm.done))) for place, arm in enumerate(own)]
    drawing.set_ticks(axes, "x", shares, "trials that collapsed")


def _notes(arms: list[Arm]) -> list[str]:
    words = NOTES["figure-S3"]
    notes = [f"{words['curves']} {NOTES['S3']['collapsed']} {words['base']}"]
    diverged = any(curve.diverges is not None for arm in arms for curve in _curves(arm))
    if diverged or not all(math.isfinite(value) for arm in arms for value in arm.perplexities):
        notes.append(words["not_finite"])
    shown = missing(arms, lambda trial: trial.loss_curve or None, begin="Not shown:")
    return [*notes, *stale(arms), *shown, source_of(arms)]


def _curves(arm: Arm) -> list[Curve]:
    return make_curves(arm, [trial.trial for trial in arm.trials])


def _median_curve(curves: list[Curve]) -> Curve:
    """Return the median at each point that all curves have; a loss that is not finite is above all others."""
    found = [{epoch: rank(loss) for epoch, loss in curve.points} for curve in curves]
    epochs = [epoch for epoch in found[0] if all(epoch in own for own in found)] if found else []
    return Curve(0, [[epoch, statistics.median(own[epoch] for own in found)] for epoch in epochs], None)


def _losses(own: list[Arm]) -> list[float]:
    return [loss for arm in own for curve in _curves(arm) for loss in curve.finite]


def _perplexities(own: list[Arm]) -> list[float]:
    return [value for arm in own for value in arm.perplexities if math.isfinite(value)]


def _base(own: list[Arm]) -> list[float]:
    """Return the base's perplexity, if it is known and can be shown."""
    return [value for value in base_perplexities(own)[:1] if math.isfinite(value)]


def _levels(own: list[Arm]) -> list[float]:
    """Return the level of the base among the losses."""
    return [math.log(value) for value in _base(own) if value >= 1]
