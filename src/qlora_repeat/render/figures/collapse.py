"""Figure S3: the same trials with an old map of 8-bit state, with today's, and with 32-bit state.

Losses over the epochs above, perplexities afterwards below; a column for each model, which is to say learning
rate in the collapse study. A pure function of the results, like all figures.
"""

import math
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlora_repeat.render.figures.drawing import (
    COLORS,
    CROSS,
    GRAY,
    LARGE,
    LINE,
    MEDIUM,
    SMALL,
    WIDTH,
    draw_legend,
    drawing_settings,
    new_figure,
    panel,
    set_axis,
    set_epochs,
    set_ticks,
    wrapped,
    write,
)
from qlora_repeat.render.figures.loss_curves import Curve, make_curves
from qlora_repeat.render.figures.scales import Scale, common_scales
from qlora_repeat.render.footnotes import missing, source_of, stale
from qlora_repeat.render.tables.collapse import COLLAPSED, collapse_share, tested_models
from qlora_repeat.results.arms import Arm, base_perplexities, distinct
from qlora_repeat.results.number_format import share_text
from qlora_repeat.results.statistical_methods import rank

_COLUMNS = 3
"""So many models are side by side."""
_LEFT, _RIGHT = 34.0, 6.0
"""Beside a panel."""
_ABOVE, _BELOW = 10.0, 28.0
"""Above and below panels, for headings and labels."""
_CURVES, _DOTS = 110.0, 70.0
"""Heights of panels."""
_SPREAD = 0.5
"""Of the room between two arms, for the dots of one beside each other."""
_DASHES: tuple[Any, ...] = ((0, (5, 1, 1.2, 1)), (0, (4, 1.2)), "-", (0, (1.2, 1)))
_MARKERS = ("o", "s", "^", "D")
_BASE: dict[str, Any] = {"color": GRAY, "linestyle": (0, (1, 1.5)), "linewidth": 0.9, "zorder": 1}


@drawing_settings()
def draw_collapse(arms: list[Arm]) -> Figure:
    """Figure S3 of those models that were trained with another state map than today's."""
    models = list(tested_models(arms).values())
    optimizers = distinct(arm.heading for own in models for arm in own)
    rows = [models[start : start + _COLUMNS] for start in range(0, len(models), _COLUMNS)]
    width = WIDTH / len(rows[0]) - _LEFT - _RIGHT
    titles = [[wrapped(own[0].title, width, LARGE, "DejaVuSans-Bold") for own in row] for row in rows]
    every = [arm for own in models for arm in own]
    notes = [line for note in _notes(every) for line in wrapped(note, WIDTH - 4, SMALL)]
    legend = 6 + 1.5 * LINE * (len(optimizers) // 2 + 1)
    headings = [1.2 * LARGE * max(map(len, title)) for title in titles]
    panels = _ABOVE + _CURVES + _BELOW + _ABOVE + _DOTS + _BELOW
    figure = new_figure(legend + sum(headings) + panels * len(rows) + LINE * len(notes) + 4)
    _draw_legend(figure, optimizers)
    losses = iter(common_scales([_levels(own) + _losses(own) for own in models]))
    perplexities = iter(common_scales([_base(own) + _perplexities(own) for own in models]))
    top = legend
    for row, title, heading in zip(rows, titles, headings, strict=True):
        for place, own in enumerate(row):
            left = place * WIDTH / len(rows[0]) + _LEFT
            write(figure, top, title[place], x=left / WIDTH, size=LARGE, weight="bold")
            below = top + heading + _ABOVE
            axes = panel(figure, left, below, width, _CURVES, "loss by epoch")
            _draw_losses(axes, own, optimizers, next(losses))
            below += _CURVES + _BELOW + _ABOVE
            axes = panel(figure, left, below, width, _DOTS, "perplexity after fine-tuning")
            _draw_perplexities(axes, own, optimizers, next(perplexities))
        top += heading + panels
    write(figure, top, notes, size=SMALL, linespacing=1.2)
    return figure


def _style(place: int) -> dict[str, Any]:
    """Of an old map, today's, and 32-bit state, in this order: vermilion, blue and black."""
    colors = (*COLORS[1:3], COLORS[0], *COLORS[3:])
    return {"color": colors[place % len(colors)], "linestyle": _DASHES[place % len(_DASHES)]}


def _marker(place: int) -> str:
    return _MARKERS[place % len(_MARKERS)]


def _draw_legend(figure: Figure, optimizers: list[str]) -> None:
    handles = [
        Line2D([], [], label=optimizer, linewidth=1.6, marker=_marker(place), markersize=3, **_style(place))
        for place, optimizer in enumerate(optimizers)
    ]
    handles.append(Line2D([], [], label="base, on the test examples", **_BASE))
    looks = {"handlelength": 5, "handletextpad": 0.6, "columnspacing": 2}
    draw_legend(figure, handles, 2 if len(handles) > 2 else 1, fontsize=MEDIUM, **looks)


def _draw_losses(axes: Axes, own: list[Arm], optimizers: list[str], scale: Scale) -> None:
    set_axis(axes, "y", scale, "loss")
    for level in _levels(own):
        axes.axhline(scale.clip(level), **_BASE)
    last = 0.0
    for arm in reversed(own):  # the first in the legend is in front
        style = _style(optimizers.index(arm.heading))
        curves = [curve for curve in _curves(arm) if curve.points]
        for curve in curves:
            last = max(last, curve.points[-1][0])
            _draw_line(axes, curve, scale, linewidth=0.45, alpha=0.6, zorder=2, **style)
            if curve.breaks:
                looks = {"color": style["color"], "zorder": 4, "clip_on": False}
                axes.plot(curve.breaks[:1], [0.96], transform=axes.get_xaxis_transform(), **looks, **CROSS)
        _draw_line(axes, _median_curve(curves), scale, linewidth=1.4, zorder=3, **style)
    set_epochs(axes, last or 1)


def _draw_line(axes: Axes, curve: Curve, scale: Scale, **looks: Any) -> None:
    axes.plot(
        [epoch for epoch, _ in curve.points],
        [scale.clip(loss) for loss in curve.losses],
        marker="o" if len(curve.points) == 1 else None,
        markersize=2,
        **looks,
    )


def _draw_perplexities(axes: Axes, own: list[Arm], optimizers: list[str], scale: Scale) -> None:
    """A dot for each trial, in their order; a bar at the median; crosses for what is not finite."""
    set_axis(axes, "y", scale, "perplexity")
    for level in _base(own):
        axes.axhline(scale.clip(level), **_BASE)
    labels: list[tuple[float, str]] = []
    for place, arm in enumerate(own):
        look = optimizers.index(arm.heading)
        color = _style(look)["color"]
        found = arm.perplexities
        across = [place + _SPREAD * ((at + 0.5) / len(found) - 0.5) for at in range(len(found))]
        dots = [(x, scale.clip(y)) for x, y in zip(across, found, strict=True) if math.isfinite(y)]
        axes.plot(
            [x for x, _ in dots], [y for _, y in dots], _marker(look), markersize=3, color=color,
            markeredgewidth=0, alpha=0.85, clip_on=False,
        )  # fmt: skip
        middle = statistics.median(map(rank, found)) if found else math.inf
        if math.isfinite(middle):
            axes.plot([place - 0.36, place + 0.36], [scale.clip(middle)] * 2, color=color, linewidth=1.2)
        crosses = [x for x, y in zip(across, found, strict=True) if not math.isfinite(y)]
        axes.plot(
            crosses, [0.96] * len(crosses), transform=axes.get_xaxis_transform(), color=color, clip_on=False,
            **CROSS,
        )  # fmt: skip
        labels.append((place, share_text(collapse_share(arm))))
    axes.set_xlim(-0.6, len(own) - 0.4)
    set_ticks(axes, "x", labels, "trials that collapsed")


def _notes(arms: list[Arm]) -> list[str]:
    notes = [
        "Loss: a thin line is a trial, a thick one the median of the arm's trials at each point; a point is "
        "the mean loss of the steps since the point before. Perplexity: a dot is a trial, a bar the arm's "
        f"median. {COLLAPSED} The base's level among the losses is the logarithm of its perplexity on the "
        "test examples, which are not those of the losses.",
    ]
    curves = [curve for arm in arms for curve in _curves(arm)]
    tested = [value for arm in arms for value in arm.perplexities]
    if any(curve.breaks for curve in curves) or not all(map(math.isfinite, tested)):
        notes.append("A cross at the upper edge: from there the loss, or the perplexity, is not finite.")
    shown = missing(arms, lambda trial: trial.loss_curve or None, begin="Not shown:")
    return [*notes, *stale(arms), *shown, source_of(arms)]


def _curves(arm: Arm) -> list[Curve]:
    return make_curves(arm, [trial.trial for trial in arm.trials])


def _median_curve(curves: list[Curve]) -> Curve:
    """At each point that all curves have; a loss that is not finite is above all others."""
    found = [{epoch: rank(loss) for epoch, loss in curve.points} for curve in curves]
    epochs = [epoch for epoch in found[0] if all(epoch in own for own in found)] if found else []
    return Curve(0, [[epoch, statistics.median(own[epoch] for own in found)] for epoch in epochs], None)


def _losses(own: list[Arm]) -> list[float]:
    return [loss for arm in own for curve in _curves(arm) for loss in curve.finite]


def _perplexities(own: list[Arm]) -> list[float]:
    return [value for arm in own for value in arm.perplexities if math.isfinite(value)]


def _base(own: list[Arm]) -> list[float]:
    """The base's perplexity, if it is known and can be shown."""
    return [value for value in base_perplexities(own)[:1] if math.isfinite(value)]


def _levels(own: list[Arm]) -> list[float]:
    """The same among the losses."""
    return [math.log(value) for value in _base(own) if value >= 1]
