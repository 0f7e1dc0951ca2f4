"""The paper's Figure 4 from collected results: the loss of every run over the epochs, and where it ended.

A pure function of the results: no clock, no locale, no user's settings of matplotlib, no torch. Lengths are
in points (1/72 inch); no letter is smaller than 6 points where the figure is as wide as the page.
"""

import io
import math
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.lines import Line2D

from qlora_repeat.errors import MissingError
from qlora_repeat.files import write_bytes
from qlora_repeat.render.arms import Arm, group_arms
from qlora_repeat.render.escape import plain
from qlora_repeat.render.figure_content import Curve, Pair, in_rows, label_every, make_curves, make_notes
from qlora_repeat.render.scales import Scale, common_scales, linear_ticks
from qlora_repeat.results import TrialResult

_NAME = "figure-04"
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # of the same name, matplotlib's own comes before the system's
    "text.parse_math": False,  # a dollar is a dollar
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.labelpad": 1.5,
    "pdf.fonttype": 42,  # publishers refuse type 3
}
_SMALL, _MEDIUM, _LARGE = 6.0, 6.5, 7.5
"""Sizes of letters."""
_LINE = 8.0
"""From one small line to the next."""
_WIDTH = 7.16 * 72
"""Of the text on a page of an IEEE journal."""
_LEFT, _BETWEEN, _RIGHT = 36.0, 30.0, 5.0
"""Beside the panels of a pair: for the labels of the curves, for those of the bars, and at the end."""
_ABOVE, _BELOW = 10.0, 28.0
"""Above and below panels, for headings and labels."""
_LEAST_HEIGHT = 80.0
_BAR_SHARE = 0.64
"""Of the axis, for the longest bar; the rest is for its value."""
_LEGEND_COLUMNS = 10
_DOTS_PER_INCH = 300
_SLACK = 0.96
"""Of a line's width is used: letters of the PNG are as wide as whole dots, those of the PDF are not."""

# The colours of Okabe and Ito, which everybody can tell apart, but for yellow, which is faint on white. As
# the cycles have different lengths, 280 runs differ in colour, line or marker, and neighbours in all three.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (5, 1, 1.2, 1)), (0, (2.2, 0.8)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X")
_GREY = "#505050"
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.4}


def render_figures(results: list[TrialResult], out: Path) -> list[Path]:
    """Writes Figure 4 as ``figure-04.pdf`` and ``.png``; returns their paths.

    Raises:
        MissingError: no finished trial has a loss curve. Figures of an earlier render are removed then.
        UsageError: two rows are of the same trial.
    """
    arms = group_arms(results)
    paths = {kind: out / f"{_NAME}.{kind}" for kind in ("pdf", "png")}
    if not any(trial.loss_curve for arm in arms for trial in arm.done):
        for path in paths.values():
            path.unlink(missing_ok=True)
        studies = ", ".join(dict.fromkeys(result.study for result in results))
        raise MissingError(
            f"collected results of study {studies or '(none)'}: no finished trial has a loss curve to draw; "
            "do the trials with `qlora-repeat run`, then `qlora-repeat collect`"
        )
    with _settings():
        figure = draw_figure(arms)
        undated = {"pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")), "png": {"Software": None}}
        for kind, path in paths.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=undated[kind])
            write_bytes(path, content.getvalue())
    return list(paths.values())


@contextmanager
def _settings() -> Iterator[None]:
    """matplotlib's own settings and ours, whatever the user's are."""
    with matplotlib.style.context("default", after_reset=True):
        matplotlib.rcParams.update(_SETTINGS)
        yield


@_settings()
def draw_figure(arms: list[Arm]) -> Figure:
    """Figure 4, from the top: legend, a row of panels for each model, notes."""
    runs = sorted({trial.trial for arm in arms for trial in arm.trials})
    pairs = [Pair(arm, make_curves(arm, runs)) for arm in arms]
    rows = in_rows(pairs)
    columns = max(len(row) for row in rows)
    panel_height = max(_LEAST_HEIGHT, _LINE * math.ceil(len(runs) / label_every(len(runs))))
    titles = [_wrapped(row[0].arm.title, 0.6 * _WIDTH, _LARGE, "DejaVuSans-Bold") for row in rows]
    notes = [line for note in make_notes(pairs) for line in _wrapped(note, _WIDTH - 4, _SMALL)]
    legend = 4 + 1.4 * _LINE * math.ceil(len(runs) / _LEGEND_COLUMNS)
    heights = [1.2 * _LARGE * len(title) + _ABOVE + panel_height + _BELOW for title in titles]
    size = (_WIDTH / 72, (legend + sum(heights) + _LINE * len(notes) + 4) / 72)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH)
    _draw_legend(figure, runs)
    top = legend
    for row, title, height in zip(rows, titles, heights, strict=True):
        _write(figure, top, title, size=_LARGE, weight="bold")
        _draw_row(figure, row, columns, top, top + height - _BELOW - panel_height, panel_height)
        top += height
    _write(figure, top, notes, size=_SMALL, linespacing=1.2)
    return figure


def _style(place: int) -> dict[str, Any]:
    cycles = {"color": _COLOURS, "linestyle": _DASHES, "marker": _MARKERS}
    return {name: cycle[place % len(cycle)] for name, cycle in cycles.items()}


def _draw_legend(figure: Figure, runs: list[int]) -> None:
    handles = [
        Line2D([], [], label=f"run {run}", linewidth=0.9, markersize=3, **_style(place))
        for place, run in enumerate(runs)
    ]
    columns = min(len(runs), _LEGEND_COLUMNS)
    figure.legend(
        handles=[handle for start in range(columns) for handle in handles[start::columns]],  # fills by column
        loc="upper left",
        ncols=columns,
        fontsize=_SMALL,
        frameon=False,
        handlelength=3,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.6,
        borderaxespad=0,
        borderpad=0.4,
    )


def _draw_row(
    figure: Figure, row: list[Pair], columns: int, title_top: float, top: float, height: float
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
        _write(figure, title_top, [remark], size=_SMALL, style="italic", x=1 - _RIGHT / _WIDTH, ha="right")
    done = [epoch for pair in row for curve in pair.curves for epoch, _ in curve.points]
    epochs = max(done, default=0) or 1
    pair_width = _WIDTH / columns
    width = (pair_width - _LEFT - _BETWEEN - _RIGHT) / 2
    for place, pair in enumerate(row):
        left = place * pair_width + _LEFT
        first, *more = _wrapped(pair.arm.optimizer, width - 60, _MEDIUM)
        heading = f"{first}…" if more else first
        axes = _panel(figure, left, top, width, height, f"{heading}: loss by epoch")
        _draw_curves(axes, pair.curves, curve_scales[place], epochs, height)
        axes = _panel(figure, left + width + _BETWEEN, top, width, height, f"{heading}: final loss by run")
        _draw_bars(axes, pair.curves, bar_scales[place])


def _panel(figure: Figure, left: float, top: float, width: float, height: float, heading: str) -> Axes:
    total = figure.get_figheight() * 72
    axes = figure.add_axes((left / _WIDTH, 1 - (top + height) / total, width / _WIDTH, height / total))
    axes.set_title(heading, loc="left", fontsize=_MEDIUM, pad=2)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_curves(axes: Axes, curves: list[Curve], scale: Scale, epochs: float, height: float) -> None:
    axes.set_yscale("log" if scale.log else "linear")
    axes.set_ylim(scale.low, scale.high)
    axes.set_yticks([tick for tick, _ in scale.ticks], [label for _, label in scale.ticks])
    axes.set_ylabel("loss (log scale)" if scale.log else "loss", fontsize=_MEDIUM)
    axes.set_xlim(0, 1.03 * epochs)
    ticks = linear_ticks(0, epochs)
    axes.set_xticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.set_xlabel("epochs", fontsize=_MEDIUM)
    axes.minorticks_off()
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
        axes.text(0.5, 0.5, "no curves", transform=axes.transAxes, ha="center", fontsize=_SMALL, color=_GREY)
    broken = [(place, curve) for place, curve in enumerate(curves) if curve.breaks]
    for line, (place, curve) in enumerate(broken):
        level = 1 - min(_LINE, height / len(broken)) * (line + 0.5) / height
        _draw_breaks(axes, curve, _style(place)["color"], level, epochs)


def _draw_breaks(axes: Axes, curve: Curve, colour: str, level: float, epochs: float) -> None:
    """A cross wherever the loss ceases to be finite, on a line of the run's own."""
    axes.plot(
        curve.breaks,
        [level] * len(curve.breaks),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="x",
        markersize=4,
        markeredgewidth=1.2,
        color=colour,
        zorder=4,
    )
    early = curve.breaks[0] < epochs / 2
    axes.annotate(
        f"run {curve.run} diverged",
        (curve.breaks[0], level),
        (4 if early else -4, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="left" if early else "right",
        va="center",
        fontsize=_SMALL,
        bbox=_BACKGROUND,
        zorder=3,
    )


def _draw_bars(axes: Axes, curves: list[Curve], scale: Scale) -> None:
    axes.set_xscale("log" if scale.log else "linear")
    axes.set_xlim(scale.low, scale.high)
    axes.set_xticks([tick for tick, _ in scale.ticks], [label for _, label in scale.ticks])
    axes.set_xlabel("final loss (log scale)" if scale.log else "final loss", fontsize=_MEDIUM)
    axes.set_ylim(len(curves) - 0.4, -0.6)
    every = label_every(len(curves))
    axes.set_yticks(range(0, len(curves), every), [str(curve.run) for curve in curves[::every]])
    axes.set_ylabel("run", fontsize=_MEDIUM)
    axes.minorticks_off()
    start = scale.low if scale.log else 0
    for place, curve in enumerate(curves):
        colour = _style(place)["color"]
        if curve.last:
            end = scale.clip(curve.last[0])
            axes.barh(place, end - start, left=start, height=0.72, color=colour, edgecolor="k", linewidth=0.4)
            if place % every == 0:
                _note_bar(axes, place, end, _value(curve.last[0]))
        elif curve.points:
            at_edge = axes.get_yaxis_transform()
            axes.plot(0.03, place, "x", transform=at_edge, markersize=4, markeredgewidth=1.2, color=colour)
            _note_bar(axes, place, scale.low, f"diverged ({_value(curve.points[-1][1])})", offset=8)
        else:
            _note_bar(axes, place, scale.low, curve.lack or "", color=_GREY, style="italic")


def _note_bar(axes: Axes, place: int, end: float, text: str, offset: float = 2, **looks: Any) -> None:
    axes.annotate(
        text,
        (end, place),
        (offset, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=_SMALL,
        bbox=_BACKGROUND,  # where bars are thin, letters reach over the next
        **looks,
    )


def _value(loss: float) -> str:
    """At most seven characters."""
    size = abs(loss)
    if not math.isfinite(loss) or 0 < size < 0.001 or size >= 1e5:
        return f"{loss:.2g}"
    return f"{loss:.3f}" if size < 100 else f"{loss:,.1f}" if size < 10_000 else f"{loss:,.0f}"


def _write(figure: Figure, top: float, lines: list[str], x: float = 2 / _WIDTH, **looks: Any) -> None:
    """Lines of text, so far below the figure's upper edge."""
    figure.text(x, 1 - top / (72 * figure.get_figheight()), "\n".join(lines), va="top", **looks)


def _wrapped(text: str, width: float, size: float, face: str = "DejaVuSans") -> list[str]:
    """The text in lines of at most this width, at least one."""
    font, drawn = _face(face)
    font.set_size(size, _DOTS_PER_INCH)

    def width_of(length: int) -> float:
        font.set_text(rest[:length])
        width: int = font.get_width_height()[0]
        return width / 64 * 72 / _DOTS_PER_INCH

    rest, lines = plain(text, drawn), []
    while rest:
        length = max(bisect_right(range(1, len(rest) + 1), _SLACK * width, key=width_of), 1)
        if length < len(rest) and (space := rest.rfind(" ", 1, length + 1)) > 0:
            length = space
        lines.append(rest[:length])
        rest = rest[length:].removeprefix(" ")
    return lines or [""]


@cache
def _face(name: str) -> tuple[Any, frozenset[str]]:
    """A font that matplotlib brings, and its characters."""
    font = get_font(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    return font, frozenset(map(chr, font.get_charmap()))
