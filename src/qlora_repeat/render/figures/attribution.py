"""Figure S2 of an attribution: the effect of each condition in each replicate, and whether effects add up."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlora_repeat.analysis.attribution.decompose import MAIN, Attribution, changes, known_replicates
from qlora_repeat.analysis.attribution.measurements import BASELINE, JOINT, NUDGE, OTHER, REPEAT, Measurements
from qlora_repeat.analysis.attribution.paired_statistics import Values, half_deviation
from qlora_repeat.render.figures import drawing
from qlora_repeat.render.figures.drawing import COLORS, GRAY, MEDIUM, SMALL, WIDTH
from qlora_repeat.render.figures.scales import linear_ticks
from qlora_repeat.render.footnotes import NOTES
from qlora_repeat.render.tables.attribution import source_of_experiment
from qlora_repeat.render.text.attribution import in_percent, title
from qlora_repeat.results.number_format import cell

_ABOVE, _BELOW = 14.0, 28.0
_ROW = 17.0
"""The height of a condition."""
_NAMES, _SPREADS, _BETWEEN, _RIGHT = 104.0, 36.0, 34.0, 6.0
"""Room for the names of conditions, for their spreads, between panels, and at the end."""
_SQUARE = 120.0
"""The least width of the panel of sums."""
_SPANNED = 100
"""If spreads differ by more than this factor, the scale is logarithmic except around zero."""
_MOST_TICKS = 3
"""Ticks on each side of zero."""


def render_attribution_figure(measured: Measurements, found: Attribution, out: Path) -> list[Path]:
    """Write the figure as ``figure-S2-ARM.pdf`` and ``.png``; return their paths."""
    paths = [out / f"figure-S2-{measured.arm}.{kind}" for kind in ("pdf", "png")]
    drawing.save_figure(draw_attribution(measured, found), paths)
    return paths


@drawing.drawing_settings()
def draw_attribution(measured: Measurements, found: Attribution) -> Figure:
    """Draw the conditions, the largest spread first; beside them joint effects over sums of single ones."""
    shown = _by_spread(measured)
    height = max(_ROW * len(shown), _SQUARE)
    figure = drawing.new_figure(_ABOVE + height + _BELOW, _notes(measured, found))
    square = min(height, 1.5 * _SQUARE) if JOINT in measured.conditions else 0
    width = WIDTH - _NAMES - _SPREADS - _RIGHT - (square + _BETWEEN if square else 0)
    heading = "what is freed or changed, and its effect"
    _draw_conditions(drawing.panel(figure, _NAMES, _ABOVE, width, height, heading), measured, shown)
    if square:
        left = WIDTH - _RIGHT - square
        _draw_sums(drawing.panel(figure, left, _ABOVE, square, height, "do effects add up?"), measured)
    return figure


def _by_spread(measured: Measurements) -> list[tuple[str, Values]]:
    """Return the changes in each condition but the baseline, and but its repetition if nothing changes."""
    found = {name: changes(measured, name) for name in measured.conditions if name != BASELINE}
    if not np.any(found[REPEAT]):
        del found[REPEAT]
    return sorted(found.items(), key=lambda item: _size(item[1]), reverse=True)


def _size(values: Values) -> float:
    """Return the standard deviation that changes give; infinity if it is not finite."""
    spread = half_deviation(values)
    return spread if spread is not None and math.isfinite(spread) else math.inf


def _draw_conditions(axes: Axes, measured: Measurements, shown: list[tuple[str, Values]]) -> None:
    _set_changes(axes, [values for _, values in shown])
    axes.axvline(0, color=GRAY, linewidth=0.5, zorder=0)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [title(name, measured) for name, _ in shown])
    axes.tick_params(axis="y", length=0)
    beside = axes.get_yaxis_transform()
    axes.text(1.02, -0.5, "SD", transform=beside, fontsize=SMALL, va="bottom", color=GRAY)
    for place, (name, values) in enumerate(shown):
        if place:
            axes.axhline(place - 0.5, color="#dddddd", linewidth=0.4, zorder=0)
        # From the top of a row, the replicates in their order.
        count, known = len(values), np.isfinite(values)
        heights = place + (np.arange(count) - (count - 1) / 2) * 0.68 / max(count, 2)
        looks: dict[str, Any] = {"markersize": 3.2, "markeredgewidth": 0.5, "color": _color(name)}
        axes.plot(values[known], heights[known], "o", markerfacecolor="white", **looks)
        if not known.all():
            edge = np.full((~known).sum(), 0.99)
            axes.plot(edge, heights[~known], "x", transform=beside, clip_on=False, **looks)
        spread = cell(half_deviation(values))
        axes.text(1.02, place, spread, transform=beside, fontsize=SMALL, va="center_baseline")


def _set_changes(axes: Axes, shown: list[Values]) -> None:
    """Give the horizontal axis its scale: linear, or logarithmic except around zero."""
    finite = np.concatenate([values[np.isfinite(values)] for values in shown])
    reach = float(np.abs(finite).max(initial=0)) or 1.0
    sizes = [size for values in shown if 0 < (size := _size(values)) < math.inf]
    label = "change of log perplexity from the same replicate of the baseline"
    if sizes and reach > _SPANNED * min(sizes):
        around = 10.0 ** math.floor(math.log10(min(sizes)))
        axes.set_xscale("symlog", linthresh=around, linscale=0.6)
        axes.set_xlim(-2.5 * reach, 2.5 * reach)
        ticks, label = _symlog_ticks(reach, around), f"{label} (linear within ±{around:g}, log beyond)"
    else:
        axes.set_xlim(-1.08 * reach, 1.08 * reach)
        ticks = linear_ticks(-reach, reach)
    drawing.set_ticks(axes, "x", ticks, label)


def _color(condition: str) -> str:
    known = {JOINT: COLORS[0], NUDGE: COLORS[1], OTHER: COLORS[1], REPEAT: COLORS[1]}
    return known.get(condition, COLORS[4] if " × " in condition else COLORS[2])


def _symlog_ticks(reach: float, around: float) -> list[tuple[float, str]]:
    """Return zero and powers of ten on both sides, without those whose labels would be too near to zero."""
    low, high = round(math.log10(around)), math.floor(math.log10(reach))
    every = math.ceil((high - low) / _MOST_TICKS)
    powers = range(high, low + max((high - low) // 4, 1), -every)
    ticks = [0.0, *(sign * 10.0**power for power in powers for sign in (-1, 1))]
    return [(tick, f"{tick:g}") for tick in sorted(ticks)]


def _draw_sums(axes: Axes, measured: Measurements) -> None:
    joint = changes(measured, JOINT)
    with np.errstate(invalid="ignore"):
        sums = np.sum([changes(measured, source) for source in measured.freed], axis=0)
    known = known_replicates(measured)
    both = np.concatenate([joint[known], sums[known], [0.0]])
    margin = 0.1 * float(np.ptp(both)) or 1.0
    low, high = float(both.min()) - margin, float(both.max()) + margin
    axes.plot([low, high], [low, high], color=GRAY, linewidth=0.5, zorder=0)
    looks: dict[str, Any] = {"fontsize": MEDIUM, "ha": "center", "va": "center", "color": COLORS[0]}
    for place in np.flatnonzero(known):
        axes.text(float(sums[place]), float(joint[place]), str(place + 1), **looks)
    axes.set(xlim=(low, high), ylim=(low, high))
    drawing.set_ticks(axes, "x", linear_ticks(low, high), "sum of single changes")
    drawing.set_ticks(axes, "y", linear_ticks(low, high), "all together")


def _notes(measured: Measurements, found: Attribution) -> list[str]:
    notes = NOTES["figure-S2"]
    points = notes["points"].format(
        model=measured.model_title, optimizer=measured.optimizer, replicates=measured.replicates
    )
    shown = [f"Do not interpret these results: {problem}" for problem in found.problems]
    shown.append(f"{points} {notes['pairs']}" if measured.pairs else points)
    if (decomposition := found.decompositions.get(MAIN)) is not None:
        shares = {title(name, measured): in_percent(decomposition.shares[name]) for name in measured.freed}
        named = ", ".join(f"{name} {share}" for name, share in shares.items())
        interactions = in_percent(decomposition.interactions)
        shown.append(notes["shares"].format(shares=named, interactions=interactions))
    values = (each.log_perplexity for name in measured.conditions for each in measured.of(name))
    if lacking := sum(not math.isfinite(value) for value in values):
        shown.append(notes["not_finite"].format(trials=lacking))
    return [*shown, source_of_experiment(measured)]
