"""Draw the chance to find an effect by the number of trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from qlora_repeat.errors import UsageError
from qlora_repeat.render.figures import drawing
from qlora_repeat.render.figures.drawing import COLORS, GRAY, LINE, WIDTH
from qlora_repeat.results.power import MOST_TRIALS, PlannedEffect, power_of

_NAMES = {"mean": "means", "median": "medians", "spread": "spreads", "collapse": "collapse rates"}
_LINES = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (4, 1.2, 1.2, 1.2)))
_LEFT, _HEIGHT, _POINTS = 34.0, 150.0, 24


@drawing.drawing_settings()
def render_power_figure(planned: Sequence[PlannedEffect], wanted: float, path: Path) -> None:
    """Write the curves of the effects that have a size, as the kind of file that the path names (png or pdf).

    Raises:
        UsageError: there is no effect, or the path names another kind of file.
    """
    if path.suffix not in (".png", ".pdf"):
        raise UsageError(f"{path}: expected a file that ends in .png or .pdf")
    shown = [each for each in planned if each.effect.size]
    if not shown:
        raise UsageError("--plot needs --difference, --ratio or --rates")
    last = max(min(MOST_TRIALS, 2 * (each.needed or MOST_TRIALS)) for each in shown)
    last = max(last, 10)
    top = 1.5 * LINE * (1 + (len(shown) - 1) // 2) + 12
    note = f"The dotted line is at {100 * wanted:.0f} %. Curves of medians and spreads are simulated."
    figure = drawing.new_figure(top + _HEIGHT + 34, [note])
    axes = drawing.panel(figure, _LEFT, top + 8, WIDTH - _LEFT - 8, _HEIGHT, "chance to find the effect")
    steps = sorted({round(2 + (last - 2) * place / _POINTS) for place in range(_POINTS + 1)})
    handles = []
    for place, effect in enumerate(each.effect for each in shown):
        looks: dict[str, Any] = {
            "color": COLORS[place % len(COLORS)],
            "linestyle": _LINES[place % len(_LINES)],
        }
        axes.plot(steps, [100 * power_of(effect, n) for n in steps], linewidth=1.2, **looks)
        size = f"{effect.rate:g} and {effect.size:g}" if effect.of == "collapse" else f"{effect.size:.3g}"
        unit = " SD" if effect.of in ("mean", "median") else ""
        handles.append(Line2D([], [], label=f"{_NAMES[effect.of]}: {size}{unit}", **looks))
    axes.axhline(100 * wanted, color=GRAY, linestyle=(0, (1, 1.5)), linewidth=0.9)
    axes.set_xlim(0, last)
    axes.set_ylim(0, 102)
    axes.set_xlabel("trials in each arm", fontsize=drawing.MEDIUM)
    axes.set_ylabel("%", fontsize=drawing.MEDIUM)
    drawing.draw_legend(figure, handles, 2, fontsize=drawing.MEDIUM)
    drawing.save_figure(figure, [path])
