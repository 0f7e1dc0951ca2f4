"""The paper's Figure 4: the loss of every run over the epochs, and its final loss.

Panels come in pairs, curves and bars, for each optimizer; a row has the optimizers of one model.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlora_repeat.render.figures import drawing
from qlora_repeat.render.figures.drawing import COLORS, GRAY, LARGE, LINE, MEDIUM, SMALL, WIDTH
from qlora_repeat.render.figures.scales import Scale, common_scales
from qlora_repeat.render.footnotes import NOTES, source_of, stale
from qlora_repeat.results.arms import Arm, by_model

_PAIRS = 2
"""Optimizers side by side, with two panels each."""
_LEFT, _BETWEEN, _RIGHT = 36.0, 30.0, 5.0
"""Room for the labels of the curves, for those of the bars, and at the end."""
_ABOVE, _BELOW = 10.0, 28.0
"""Room above and below panels, for headings and labels."""
_LEAST_HEIGHT = 80.0
_BAR_SHARE = 0.64
"""The share of the axis for the longest bar; the rest is for its value."""
_LEGEND_COLUMNS = 10
_MOST_LABELS = 30
"""With more runs, only some bars have their number and value."""
_MARKED = 6
"""On a long curve, every sixth point has a marker."""
_LARGEST = 3.5e38
"""Beyond the range of float32, in which losses are computed."""
# As these cycles and that of colors have different lengths, 280 runs differ in color, line or marker, and
# neighbors in all three.
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (5, 1, 1.2, 1)), (0, (2.2, 0.8)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X")


@dataclass(frozen=True)
class Curve:
    """The losses of a run, or why there are none."""

    run: int
    points: list[list[float]]
    """Epochs and loss, as collected; the loss may be infinite or not a number."""
    lack: str | None
    """Why there are no points, such as ``missing`` or ``failed``; ``no curve`` for a measured trial."""

    @property
    def losses(self) -> list[float]:
        """Return the losses; NaN where the loss is not finite."""
        return [loss if _is_finite(loss) else math.nan for _, loss in self.points]

    @property
    def finite(self) -> list[float]:
        return list(filter(_is_finite, self.losses))

    @property
    def last(self) -> float | None:
        """Return the final loss, if there is one and it is finite."""
        return self.points[-1][1] if self.points and _is_finite(self.points[-1][1]) else None

    @property
    def diverges(self) -> float | None:
        """Return the first epoch at which the loss is not finite."""
        return next((epoch for epoch, loss in self.points if not _is_finite(loss)), None)

    @property
    def marked(self) -> list[int]:
        """Return the points with a marker: some, and those without a neighbor, which no line would show."""
        shown = [False, *map(_is_finite, self.losses), False]
        every = _MARKED if len(self.points) > 2 * _MARKED else 1
        return [
            place
            for place in range(len(self.points))
            if place % every == self.run % every or not (shown[place] or shown[place + 2])
        ]


ArmCurves = tuple[Arm, list[Curve]]
"""The content of an arm's two panels."""


def make_curves(arm: Arm, runs: Sequence[int]) -> list[Curve]:
    """Return a curve for each of these runs."""
    trials = {trial.trial: trial for trial in arm.trials}
    curves = []
    for run in runs:
        trial = trials.get(run)
        measured = trial is not None and trial.measured
        points = trial.loss_curve if trial and measured else []
        lack = None if points else "no curve" if measured else trial.status if trial else "missing"
        curves.append(Curve(run, points, lack))
    return curves


@drawing.drawing_settings()
def draw_loss_curves(arms: list[Arm]) -> Figure:
    """Draw Figure 4: a legend, a row of panels for each model, notes."""
    runs = sorted({trial.trial for arm in arms for trial in arm.trials})
    rows = []
    for own in by_model(arms).values():
        pairs = [(arm, make_curves(arm, runs)) for arm in own]
        rows += [pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS)]
    columns = max(map(len, rows))
    panel_height = max(_LEAST_HEIGHT, LINE * math.ceil(len(runs) / _label_every(runs)))
    titles = [drawing.wrapped(row[0][0].title, 0.6 * WIDTH, LARGE, "DejaVuSans-Bold") for row in rows]
    top = 4 + 1.4 * LINE * math.ceil(len(runs) / _LEGEND_COLUMNS)
    headings = [1.2 * LARGE * len(title) + _ABOVE for title in titles]
    height = top + sum(headings) + len(rows) * (panel_height + _BELOW)
    figure = drawing.new_figure(height, _notes([pair for row in rows for pair in row]))
    _draw_legend(figure, runs)
    for row, title, heading in zip(rows, titles, headings, strict=True):
        drawing.write(figure, top, title, size=LARGE, weight="bold")
        _draw_row(figure, row, columns, top, top + heading, panel_height)
        top += heading + panel_height + _BELOW
    return figure


def _label_every(runs: Sequence[object]) -> int:
    """Return the n for which every n-th bar has its number and value."""
    return math.ceil(len(runs) / _MOST_LABELS)


def _notes(pairs: list[ArmCurves]) -> list[str]:
    """Return what the panels mean, which curves are missing, and where the results come from."""
    words = NOTES["figure-04"]
    arms, curves = [arm for arm, _ in pairs], [curve for _, own in pairs for curve in own]
    notes = [words["curves"]]
    if any(loss <= 0 for curve in curves for loss in curve.finite):
        notes.append(words["zero"])
    if (every := _label_every(pairs[0][1])) > 1:
        notes.append(words["few_labels"].format(every=every))
    notes += stale(arms, lambda trial: bool(trial.loss_curve))
    if lacking := Counter(curve.lack for curve in curves if curve.lack):
        counted = ", ".join(f"{count} {lack}" for lack, count in sorted(lacking.items()))
        notes.append(f"No curve from {lacking.total()} of {len(curves)} trials: {counted}.")
    return [*notes, source_of(arms)]


def _style(place: int) -> dict[str, Any]:
    cycles = {"color": COLORS, "linestyle": _DASHES, "marker": _MARKERS}
    return {name: cycle[place % len(cycle)] for name, cycle in cycles.items()}


def _draw_legend(figure: Figure, runs: list[int]) -> None:
    handles = [
        Line2D([], [], label=f"run {run}", linewidth=0.9, markersize=3, **_style(place))
        for place, run in enumerate(runs)
    ]
    columns = min(len(runs), _LEGEND_COLUMNS)
    by_column = [handle for start in range(columns) for handle in handles[start::columns]]
    looks = {"handlelength": 3, "handletextpad": 0.5, "columnspacing": 1.2, "labelspacing": 0.6}
    drawing.draw_legend(figure, by_column, columns, fontsize=SMALL, **looks)


def _draw_row(
    figure: Figure, row: list[ArmCurves], columns: int, title_top: float, top: float, height: float
) -> None:
    """Draw the panels of a model."""
    scales = {
        "curves": common_scales([[loss for curve in own for loss in curve.finite] for _, own in row]),
        "bars": common_scales([_last(own) for _, own in row], bar_share=_BAR_SHARE),
    }
    if differing := [kind for kind, own in scales.items() if any(scale != own[0] for scale in own)]:
        remark = f"{' and '.join(differing)}: scales differ between the optimizers"
        x = 1 - _RIGHT / WIDTH
        drawing.write(figure, title_top, [remark], size=SMALL, style="italic", x=x, ha="right")
    epochs = max((epoch for _, own in row for curve in own for epoch, _ in curve.points), default=0)
    width = (WIDTH / columns - _LEFT - _BETWEEN - _RIGHT) / 2
    for place, (arm, curves) in enumerate(row):
        left = place * WIDTH / columns + _LEFT
        first, *more = drawing.wrapped(arm.heading, width - 60, MEDIUM)
        heading = f"{first}…" if more else first
        axes = drawing.panel(figure, left, top, width, height, f"{heading}: loss by epoch")
        _draw_curves(axes, curves, scales["curves"][place], epochs or 1, height)
        left += width + _BETWEEN
        axes = drawing.panel(figure, left, top, width, height, f"{heading}: final loss by run")
        _draw_bars(axes, curves, scales["bars"][place])


def _last(curves: list[Curve]) -> list[float]:
    return [curve.last for curve in curves if curve.last is not None]


def draw_curve(axes: Axes, curve: Curve, scale: Scale, **looks: Any) -> None:
    """Draw the losses of a run over the epochs."""
    epochs = [epoch for epoch, _ in curve.points]
    axes.plot(epochs, [scale.clip(loss) for loss in curve.losses], **looks)


def _draw_curves(axes: Axes, curves: list[Curve], scale: Scale, epochs: float, height: float) -> None:
    drawing.set_axis(axes, "y", scale, "loss")
    drawing.set_epochs(axes, epochs)
    diverging = [curve.run for curve in curves if curve.diverges is not None]
    line = min(LINE, height / max(len(diverging), 1)) / height
    for place, curve in enumerate(curves):
        style = _style(place)
        if curve.points:
            looks = {"linewidth": 0.8, "markersize": 2.4, "markeredgewidth": 0.4, "markevery": curve.marked}
            draw_curve(axes, curve, scale, **looks, **style)
        if curve.diverges is not None:
            level = 1 - line * (diverging.index(curve.run) + 0.5)
            drawing.draw_crosses(axes, [curve.diverges], level, style["color"])
            offset, side = (4, "left") if curve.diverges < epochs / 2 else (-4, "right")
            looks = {"xycoords": axes.get_xaxis_transform(), "ha": side, "va": "center", "zorder": 3}
            drawing.annotate(axes, f"run {curve.run} diverged", (curve.diverges, level), offset, **looks)
    if not any(curve.points for curve in curves):
        axes.text(0.5, 0.5, "no curves", transform=axes.transAxes, ha="center", fontsize=SMALL, color=GRAY)


def _draw_bars(axes: Axes, curves: list[Curve], scale: Scale) -> None:
    drawing.set_axis(axes, "x", scale, "final loss")
    axes.set_ylim(len(curves) - 0.4, -0.6)
    every = _label_every(curves)
    places = [(float(place), str(curve.run)) for place, curve in enumerate(curves)]
    drawing.set_ticks(axes, "y", places[::every], "run")
    start = scale.low if scale.log else 0
    for place, curve in enumerate(curves):
        color = _style(place)["color"]
        if curve.last is not None:
            end = scale.clip(curve.last)
            axes.barh(place, end - start, left=start, height=0.72, color=color, edgecolor="k", linewidth=0.4)
            if place % every == 0:
                _note_bar(axes, place, end, _value(curve.last))
        elif curve.points:
            axes.plot(0.03, place, transform=axes.get_yaxis_transform(), color=color, **drawing.CROSS)
            _note_bar(axes, place, scale.low, f"diverged ({_value(curve.points[-1][1])})", offset=8)
        else:
            _note_bar(axes, place, scale.low, curve.lack or "", color=GRAY, style="italic")


def _note_bar(axes: Axes, place: int, end: float, text: str, offset: float = 2, **looks: Any) -> None:
    drawing.annotate(axes, text, (end, place), offset, va="center_baseline", **looks)


def _value(loss: float) -> str:
    """Return a loss in at most seven characters."""
    size = abs(loss)
    if not math.isfinite(loss) or 0 < size < 0.001 or size >= 1e5:
        return f"{loss:.2g}"
    return f"{loss:.3f}" if size < 100 else f"{loss:,.1f}" if size < 10_000 else f"{loss:,.0f}"


def _is_finite(loss: float) -> bool:
    return abs(loss) < _LARGEST  # false also where it is not a number
