"""The paper's Figure 4 from collected results: the loss of every run over the epochs, and where it ended.

A pure function of the results: no clock, no locale, no user's settings of matplotlib, no torch. Figures S2
and S3 are written with it, where a study has what they show.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.errors import MissingError
from qlora_repeat.render.figures.collapse import draw_collapse
from qlora_repeat.render.figures.drawing import (
    BACKGROUND,
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
    save_figure,
    set_axis,
    set_epochs,
    set_ticks,
    wrapped,
    write,
)
from qlora_repeat.render.figures.loss_curves import (
    ArmCurves,
    Curve,
    in_rows,
    label_every,
    make_curves,
    make_notes,
)
from qlora_repeat.render.figures.scales import Scale, common_scales
from qlora_repeat.render.footnotes import study_names
from qlora_repeat.render.tables.collapse import tested_models
from qlora_repeat.results.arms import Arm

_NAME, _COLLAPSE = "figure-04", "figure-S3"
_LEFT, _BETWEEN, _RIGHT = 36.0, 30.0, 5.0
"""Beside the panels of a pair: for the labels of the curves, for those of the bars, and at the end."""
_ABOVE, _BELOW = 10.0, 28.0
"""Above and below panels, for headings and labels."""
_LEAST_HEIGHT = 80.0
_BAR_SHARE = 0.64
"""Of the axis, for the longest bar; the rest is for its value."""
_LEGEND_COLUMNS = 10
# As these cycles and that of colors have different lengths, 280 runs differ in color, line or marker, and
# neighbors in all three.
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (5, 1, 1.2, 1)), (0, (2.2, 0.8)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X")


def render_figures(arms: list[Arm], out: Path, experiments: Sequence[Measurements] = ()) -> list[Path]:
    """Writes Figure 4 as ``figure-04.pdf`` and ``.png``; returns the paths of all that was written.

    With an optimizer of another state map than today's, also ``figure-S3``; with attribution `experiments`,
    ``figure-S2-ARM`` of each. Figures of an earlier render that these results do not have are removed.

    Raises:
        MissingError: no finished trial has a loss curve.
    """
    drawn = {_NAME: draw_figure, _COLLAPSE: draw_collapse}
    paths = {name: [out / f"{name}.{kind}" for kind in ("pdf", "png")] for name in drawn}
    of_experiments = [path for measured in experiments for path in _draw_experiment(measured, out)]
    for path in set(out.glob("figure-S2-*")) - set(of_experiments):
        path.unlink()
    has_curves = any(trial.loss_curve for arm in arms for trial in arm.done)
    wanted = {_NAME: has_curves, _COLLAPSE: has_curves and bool(tested_models(arms))}
    for path in (path for name in drawn if not wanted[name] for path in paths[name]):
        path.unlink(missing_ok=True)
    if not has_curves:
        raise MissingError(
            f"collected results of study {study_names(arms) or '(none)'}: no finished trial has a loss curve "
            "to draw; do the trials with `qlora-repeat run`, then `qlora-repeat collect`"
        )
    for name in (name for name in drawn if wanted[name]):
        with drawing_settings():
            save_figure(drawn[name](arms), paths[name])
    return [path for name in drawn if wanted[name] for path in paths[name]] + of_experiments


def _draw_experiment(measured: Measurements, out: Path) -> list[Path]:
    # What it needs of scipy takes a second to import.
    from qlora_repeat.analysis.attribution.decompose import attribute
    from qlora_repeat.render.figures.attribution import render_attribution_figure

    return render_attribution_figure(measured, attribute(measured), out)


@drawing_settings()
def draw_figure(arms: list[Arm]) -> Figure:
    """Figure 4, from the top: legend, a row of panels for each model, notes."""
    runs = sorted({trial.trial for arm in arms for trial in arm.trials})
    pairs = [ArmCurves(arm, make_curves(arm, runs)) for arm in arms]
    rows = in_rows(pairs)
    columns = max(len(row) for row in rows)
    panel_height = max(_LEAST_HEIGHT, LINE * math.ceil(len(runs) / label_every(len(runs))))
    titles = [wrapped(row[0].arm.title, 0.6 * WIDTH, LARGE, "DejaVuSans-Bold") for row in rows]
    notes = [line for note in make_notes(pairs) for line in wrapped(note, WIDTH - 4, SMALL)]
    legend = 4 + 1.4 * LINE * math.ceil(len(runs) / _LEGEND_COLUMNS)
    heights = [1.2 * LARGE * len(title) + _ABOVE + panel_height + _BELOW for title in titles]
    figure = new_figure(legend + sum(heights) + LINE * len(notes) + 4)
    _draw_legend(figure, runs)
    top = legend
    for row, title, height in zip(rows, titles, heights, strict=True):
        write(figure, top, title, size=LARGE, weight="bold")
        _draw_row(figure, row, columns, top, top + height - _BELOW - panel_height, panel_height)
        top += height
    write(figure, top, notes, size=SMALL, linespacing=1.2)
    return figure


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
    draw_legend(figure, by_column, columns, fontsize=SMALL, **looks)


def _draw_row(
    figure: Figure, row: list[ArmCurves], columns: int, title_top: float, top: float, height: float
) -> None:
    """The panels of a model."""
    curve_scales = common_scales([[loss for curve in pair.curves for loss in curve.finite] for pair in row])
    bar_scales = common_scales(
        [[loss for curve in pair.curves for loss in curve.last] for pair in row], bar_share=_BAR_SHARE
    )
    apart = [
        kind
        for kind, scales in (("curves", curve_scales), ("bars", bar_scales))
        if any(scale != scales[0] for scale in scales)
    ]
    if apart:
        remark = f"{' and '.join(apart)}: scales differ between the optimizers"
        write(figure, title_top, [remark], size=SMALL, style="italic", x=1 - _RIGHT / WIDTH, ha="right")
    done = [epoch for pair in row for curve in pair.curves for epoch, _ in curve.points]
    epochs = max(done, default=0) or 1
    pair_width = WIDTH / columns
    width = (pair_width - _LEFT - _BETWEEN - _RIGHT) / 2
    for place, pair in enumerate(row):
        left = place * pair_width + _LEFT
        first, *more = wrapped(pair.arm.heading, width - 60, MEDIUM)
        heading = f"{first}…" if more else first
        axes = panel(figure, left, top, width, height, f"{heading}: loss by epoch")
        _draw_curves(axes, pair.curves, curve_scales[place], epochs, height)
        axes = panel(figure, left + width + _BETWEEN, top, width, height, f"{heading}: final loss by run")
        _draw_bars(axes, pair.curves, bar_scales[place])


def _draw_curves(axes: Axes, curves: list[Curve], scale: Scale, epochs: float, height: float) -> None:
    set_axis(axes, "y", scale, "loss")
    set_epochs(axes, epochs)
    for place, curve in enumerate(curves):
        if not curve.points:
            continue
        axes.plot(
            [epoch for epoch, _ in curve.points],
            [scale.clip(loss) for loss in curve.losses],
            linewidth=0.8,
            markersize=2.4,
            markeredgewidth=0.4,
            markevery=curve.marked,
            **_style(place),
        )
    if not any(curve.points for curve in curves):
        axes.text(0.5, 0.5, "no curves", transform=axes.transAxes, ha="center", fontsize=SMALL, color=GRAY)
    broken = [(place, curve) for place, curve in enumerate(curves) if curve.breaks]
    for line, (place, curve) in enumerate(broken):
        level = 1 - min(LINE, height / len(broken)) * (line + 0.5) / height
        _draw_breaks(axes, curve, _style(place)["color"], level, epochs)


def _draw_breaks(axes: Axes, curve: Curve, color: str, level: float, epochs: float) -> None:
    """A cross wherever the loss ceases to be finite, on a line of the run's own."""
    axes.plot(
        curve.breaks, [level] * len(curve.breaks), transform=axes.get_xaxis_transform(), zorder=4,
        color=color, **CROSS,
    )  # fmt: skip
    early = curve.breaks[0] < epochs / 2
    axes.annotate(
        f"run {curve.run} diverged",
        (curve.breaks[0], level),
        (4 if early else -4, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="left" if early else "right",
        va="center",
        fontsize=SMALL,
        bbox=BACKGROUND,
        zorder=3,
    )


def _draw_bars(axes: Axes, curves: list[Curve], scale: Scale) -> None:
    set_axis(axes, "x", scale, "final loss")
    axes.set_ylim(len(curves) - 0.4, -0.6)
    every = label_every(len(curves))
    places = [(place, str(curve.run)) for place, curve in enumerate(curves)]
    set_ticks(axes, "y", places[::every], "run")
    start = scale.low if scale.log else 0
    for place, curve in enumerate(curves):
        color = _style(place)["color"]
        if curve.last:
            end = scale.clip(curve.last[0])
            axes.barh(place, end - start, left=start, height=0.72, color=color, edgecolor="k", linewidth=0.4)
            if place % every == 0:
                _note_bar(axes, place, end, _value(curve.last[0]))
        elif curve.points:
            at_edge = axes.get_yaxis_transform()
            axes.plot(0.03, place, transform=at_edge, color=color, **CROSS)
            _note_bar(axes, place, scale.low, f"diverged ({_value(curve.points[-1][1])})", offset=8)
        else:
            _note_bar(axes, place, scale.low, curve.lack or "", color=GRAY, style="italic")


def _note_bar(axes: Axes, place: int, end: float, text: str, offset: float = 2, **looks: Any) -> None:
    axes.annotate(
        text,
        (end, place),
        (offset, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL,
        bbox=BACKGROUND,  # where bars are thin, letters reach over the next
        **looks,
    )


def _value(loss: float) -> str:
    """At most seven characters."""
    size = abs(loss)
    if not math.isfinite(loss) or 0 < size < 0.001 or size >= 1e5:
        return f"{loss:.2g}"
    return f"{loss:.3f}" if size < 100 else f"{loss:,.1f}" if size < 10_000 else f"{loss:,.0f}"
