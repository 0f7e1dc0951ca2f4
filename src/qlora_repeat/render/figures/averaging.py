"""Figure S9: perplexities of trials, and of averages of their adapters; a panel for each averaged arm."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlora_repeat.render.figures import drawing
from qlora_repeat.render.figures.drawing import COLORS, GRAY, LINE, MEDIUM, WIDTH
from qlora_repeat.render.figures.scales import Scale, common_scales
from qlora_repeat.render.footnotes import NOTES, source_of, stale
from qlora_repeat.render.tables.averaging import not_done, remaining_text
from qlora_repeat.results.arms import Arm, base_perplexities
from qlora_repeat.results.averages import averages, remaining
from qlora_repeat.results.statistical_methods import rank

_COLUMNS = 4
_LEFT, _RIGHT, _BELOW, _HEIGHT = 30.0, 5.0, 26.0, 84.0
"""Room around a panel, and its height."""
_SPREAD, _AT_EDGE = 0.5, 0.96
"""The share of the room of an arm that its dots have; the height of what is not finite."""
_BASE: dict[str, Any] = {"color": GRAY, "linestyle": (0, (1, 1.5)), "linewidth": 0.9, "zorder": 1}


def has_averaging_figure(arms: Sequence[Arm]) -> bool:
    """Return whether these results have averages."""
    return bool(averages(arms))


@drawing.drawing_settings()
def draw_averaging(arms: Sequence[Arm]) -> Figure:
    """Draw Figure S9: for each arm, its trials, and beside them each kind of averages of them."""
    found = averages(arms)
    sources = list({each.source.key: each.source for each in found}.values())
    groups = [[own, *(each.arm for each in found if each.source is own)] for own in sources]
    rows = math.ceil(len(groups) / _COLUMNS)
    columns = math.ceil(len(groups) / rows)
    width = WIDTH / columns
    titles = [drawing.wrapped(own.name, width - _LEFT - _RIGHT, MEDIUM) for own in sources]
    above = 4 + 1.2 * MEDIUM * max(map(len, titles))
    panel = above + _HEIGHT + _BELOW
    words, used = NOTES["figure-S9"], [arm for group in groups for arm in group]
    infinite = not all(math.isfinite(value) for arm in used for value in arm.perplexities)
    notes = [
        words["dots"] + (f" {words['not_finite']}" if infinite else ""),
        *map(remaining_text, remaining(found)),
        *stale(used),
        *not_done(used),
        source_of(used),
    ]
    figure = drawing.new_figure(rows * panel + LINE, notes)
    scales = common_scales([_finite(group) for group in groups])
    for place, (group, scale) in enumerate(zip(groups, scales, strict=True)):
        row, column = divmod(place, columns)
        left, top = column * width + _LEFT, row * panel + above
        title = "\n".join(titles[place])
        axes = drawing.panel(figure, left, top, width - _LEFT - _RIGHT, _HEIGHT, title)
        _draw(axes, group, scale)
    return figure


def _finite(group: Sequence[Arm]) -> list[float]:
    """Return what a panel shows on its axis: finite perplexities, and that of the base."""
    return [value for arm in group for value in arm.perplexities if math.isfinite(value)] + _base(group)


def _base(group: Sequence[Arm]) -> list[float]:
    """Return the base's perplexity if an outcome is above it; elsewhere, it would hide the spread."""
    worst = max(rank(value) for arm in group for value in arm.perplexities)
    return [value for value in base_perplexities(group)[:1] if math.isfinite(value) and value < worst]


def _draw(axes: Axes, group: Sequence[Arm], scale: Scale) -> None:
    drawing.set_axis(axes, "y", scale, "perplexity")
    for level in _base(group):
        axes.axhline(scale.clip(level), **_BASE)
    for place, arm in enumerate(group):
        values, color = arm.perplexities, COLORS[place % len(COLORS)]
        across = [place + _SPREAD * ((at + 0.5) / len(values) - 0.5) for at in range(len(values))]
        levels = [scale.clip(value) if math.isfinite(value) else math.nan for value in values]
        looks: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0, "alpha": 0.85, "clip_on": False}
        axes.plot(across, levels, "o", color=color, **looks)
        infinite = [x for x, value in zip(across, values, strict=True) if not math.isfinite(value)]
        drawing.draw_crosses(axes, infinite, _AT_EDGE, color)
        middle = statistics.median(map(rank, values))
        if math.isfinite(middle):
            axes.plot([place - 0.36, place + 0.36], [scale.clip(middle)] * 2, color=color, linewidth=1.2)
    axes.set_xlim(-0.6, len(group) - 0.4)
    labels = [_label(arm) for arm in group]
    drawing.set_ticks(axes, "x", list(zip(map(float, range(len(group))), labels, strict=True)), "")
    axes.tick_params(axis="x", labelsize=MEDIUM)


def _label(arm: Arm) -> str:
    kind = arm.optimizer.average or "trials"
    return kind.replace("mean-of-", "mean\nof ").replace("last-", "last ").replace("-steps", "\nsteps")
