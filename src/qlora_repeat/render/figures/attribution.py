"""The figure of an attribution: what each replicate of each condition does, and whether effects add up."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlora_repeat.analysis.attribution.decompose import MAIN, Attribution, changes, known_replicates
from qlora_repeat.analysis.attribution.measurements import BASELINE, JOINT, NUDGE, OTHER, REPEAT, Measurements
from qlora_repeat.analysis.attribution.paired_statistics import Values, half_deviation
from qlora_repeat.render.figures.drawing import (
    COLORS,
    GRAY,
    LINE,
    MEDIUM,
    SMALL,
    WIDTH,
    drawing_settings,
    new_figure,
    panel,
    save_figure,
    wrapped,
    write,
)
from qlora_repeat.render.figures.scales import linear_ticks
from qlora_repeat.render.tables.attribution import source_of_experiment
from qlora_repeat.render.text.attribution import in_percent, title
from qlora_repeat.results.number_format import cell

_ABOVE, _BELOW = 14.0, 28.0
_ROW = 17.0
"""The height of a condition."""
_NAMES, _SPREADS, _BETWEEN, _RIGHT = 104.0, 36.0, 34.0, 6.0
"""For the names of conditions, for their spreads, between panels, and at the end."""
_SQUARE = 120.0
"""The least width of the panel of sums."""
_SPANNED = 100
"""Spreads that differ by more than this factor are shown on a scale that is logarithmic but around zero."""
_MOST_TICKS = 3
"""On each side of zero."""


def render_attribution_figure(measured: Measurements, found: Attribution, out: Path) -> list[Path]:
    """Writes the figure as ``figure-S2-ARM.pdf`` and ``.png``; returns their paths."""
    paths = [out / f"figure-S2-{measured.arm}.{kind}" for kind in ("pdf", "png")]
    with drawing_settings():
        save_figure(draw_attribution(measured, found), paths)
    return paths


@drawing_settings()
def draw_attribution(measured: Measurements, found: Attribution) -> Figure:
    """Conditions, the largest spread first; beside them joint outcomes over sums of single effects."""
    shown = _by_spread(measured)
    notes = [line for note in _notes(measured, found) for line in wrapped(note, WIDTH - 4, SMALL)]
    height = max(_ROW * len(shown), _SQUARE)
    figure = new_figure(_ABOVE + height + _BELOW + LINE * len(notes) + 4)
    square = min(height, 1.5 * _SQUARE) if JOINT in measured.conditions else 0
    width = WIDTH - _NAMES - _SPREADS - _RIGHT - (square + _BETWEEN if square else 0)
    axes = panel(figure, _NAMES, _ABOVE, width, height, "what is freed or changed, and what it does")
    _draw_conditions(axes, measured, shown)
    if square:
        axes = panel(figure, WIDTH - _RIGHT - square, _ABOVE, square, height, "do effects add up?")
        _draw_sums(axes, measured)
    write(figure, _ABOVE + height + _BELOW, notes, size=SMALL, linespacing=1.2)
    return figure


def _by_spread(measured: Measurements) -> list[tuple[str, Values]]:
    """Each condition but the baseline, which is where zero is; its repetition, too, unless it differs."""
    found = {name: changes(measured, name) for name in measured.conditions if name != BASELINE}
    if not np.any(found[REPEAT]):
        del found[REPEAT]
    return sorted(found.items(), key=lambda item: _size(item[1]), reverse=True)


def _size(values: Values) -> float:
    """The standard deviation that changes give; what is not finite is largest."""
    spread = half_deviation(values)
    return spread if spread is not None and math.isfinite(spread) else math.inf


def _draw_conditions(axes: Axes, measured: Measurements, shown: list[tuple[str, Values]]) -> None:
    finite = np.concatenate([values[np.isfinite(values)] for _, values in shown])
    sizes = [size for _, values in shown if 0 < (size := _size(values)) < math.inf]
    reach = float(np.abs(finite).max(initial=0)) or 1.0
    around = 0.0
    if sizes and reach > _SPANNED * min(sizes):
        around = 10.0 ** math.floor(math.log10(min(sizes)))
        axes.set_xscale("symlog", linthresh=around, linscale=0.6)
        ticks = _symlog_ticks(reach, around)
        axes.set_xlim(-2.5 * reach, 2.5 * reach)
    else:
        ticks = linear_ticks(-reach, reach)
        axes.set_xlim(-1.08 * reach, 1.08 * reach)
    axes.set_xticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.minorticks_off()
    remark = f" (linear within ±{around:g}, log beyond)" if around else ""
    axes.set_xlabel(
        f"change of log perplexity from the same replicate of the baseline{remark}", fontsize=MEDIUM
    )
    axes.axvline(0, color=GRAY, linewidth=0.5, zorder=0)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [title(name, measured) for name, _ in shown])
    axes.tick_params(axis="y", length=0)
    beside = axes.get_yaxis_transform()
    axes.text(1.02, -0.5, "SD", transform=beside, fontsize=SMALL, va="bottom", color=GRAY)
    for place, (name, values) in enumerate(shown):
        if place:
            axes.axhline(place - 0.5, color="#dddddd", linewidth=0.4, zorder=0)
        heights = place + _offsets(len(values))
        known = np.isfinite(values)
        looks: dict[str, Any] = {
            "linestyle": "none",
            "markersize": 3.2,
            "markeredgewidth": 0.5,
            "color": _color(name),
        }
        axes.plot(values[known], heights[known], marker="o", markerfacecolor="white", **looks)
        if not known.all():
            edge = np.full((~known).sum(), 0.99)
            axes.plot(edge, heights[~known], marker="x", transform=beside, clip_on=False, **looks)
        spread = cell(half_deviation(values))
        axes.text(1.02, place, spread, transform=beside, fontsize=SMALL, va="center_baseline")


def _offsets(count: int) -> Values:
    """Where the replicates of a condition lie in its row, the first at the top."""
    return (np.arange(count) - (count - 1) / 2) * 0.68 / max(count, 2)


def _color(condition: str) -> str:
    if condition == JOINT:
        return COLORS[0]
    if condition in (NUDGE, OTHER, REPEAT):
        return COLORS[1]
    return COLORS[4] if " × " in condition else COLORS[2]


def _symlog_ticks(reach: float, around: float) -> list[tuple[float, str]]:
    """Zero, and powers of ten on both of its sides, but for those too near to it for their labels."""
    low, high = round(math.log10(around)), math.floor(math.log10(reach))
    every = math.ceil((high - low) / _MOST_TICKS)
    powers = range(high, low + max((high - low) // 4, 1), -every)
    sides = [(sign * 10.0**power, f"{sign * 10.0**power:g}") for power in powers for sign in (-1, 1)]
    return sorted([(0.0, "0"), *sides])


def _draw_sums(axes: Axes, measured: Measurements) -> None:
    joint = changes(measured, JOINT)
    with np.errstate(invalid="ignore"):
        sums = np.sum([changes(measured, source) for source in measured.freed], axis=0)
    known = known_replicates(measured)
    both = np.concatenate([joint[known], sums[known], [0.0]])
    margin = 0.1 * float(np.ptp(both)) or 1.0
    low, high = float(both.min()) - margin, float(both.max()) + margin
    axes.plot([low, high], [low, high], color=GRAY, linewidth=0.5, zorder=0)
    for place in np.flatnonzero(known):
        axes.text(
            float(sums[place]),
            float(joint[place]),
            str(place + 1),
            fontsize=MEDIUM,
            ha="center",
            va="center",
            color=COLORS[0],
        )
    ticks = linear_ticks(low, high)
    for set_limits, set_ticks in ((axes.set_xlim, axes.set_xticks), (axes.set_ylim, axes.set_yticks)):
        set_limits(low, high)
        set_ticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.set_xlabel("sum of single changes", fontsize=MEDIUM)
    axes.set_ylabel("all together", fontsize=MEDIUM)


def _notes(measured: Measurements, found: Attribution) -> list[str]:
    notes = [f"Do not interpret these results: {problem}" for problem in found.problems]
    notes.append(
        f"A point is a fine-tuning of {measured.model_title} with {measured.optimizer}; from the top of a "
        f"row, replicates 1 to {measured.replicates}, each of which has levels of its own, the same in all "
        "rows. Blue: one source has its second level. Black: all. Orange: disturbances."
        + (" Pink: two sources." if measured.pairs else "")
    )
    if (shares := found.decompositions.get(MAIN)) is not None:
        told = ", ".join(
            f"{title(source, measured)} {in_percent(shares.shares[source])}" for source in measured.freed
        )
        notes.append(
            f"Shares of the variance of all together: {told}; interactions, taken as of two sources at a "
            f"time, {in_percent(shares.interactions)} (in parentheses 95 % intervals). Right: the numbers "
            "are those of replicates; on the line, changes add up."
        )
    values = (each for name in measured.conditions for each in measured.of(name))
    if lacking := sum(not math.isfinite(outcome.log_perplexity) for outcome in values):
        notes.append(f"×: perplexity is not finite ({lacking} trial{'s' if lacking > 1 else ''}).")
    return [*notes, source_of_experiment(measured)]
