"""What all figures share: sizes, colors, letters, axes, and how files are written.

Figures do not depend on the clock, the locale or a user's settings of matplotlib. Lengths are in points (1/72
inch); letters have at least 6 points where the figure is as wide as the page.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.lines import Line2D

from qlora_repeat.render.escape import plain
from qlora_repeat.render.figures.scales import Scale, linear_ticks
from qlora_repeat.system.files import write_bytes

SMALL, MEDIUM, LARGE = 6.0, 6.5, 7.5
"""Sizes of letters."""
LINE = 8.0
"""Distance of small lines."""
WIDTH = 7.16 * 72
"""Width of the text on a page of an IEEE journal."""
DOTS_PER_INCH = 300
_SLACK = 0.96
"""The used share of a line: letters of the PNG are as wide as whole dots, those of the PDF are not."""

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The colors of Okabe and Ito, without yellow, which is faint on white."""
GRAY = "#505050"
CROSS: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 4, "markeredgewidth": 1.2}
"""The mark of what is not finite."""
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.4}
_UNDATED: dict[str, dict[str, Any]] = {
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
    ".png": {"Software": None},
}


@contextmanager
def drawing_settings() -> Iterator[None]:
    """Use matplotlib's own settings and ours, whatever the user's are."""
    with matplotlib.style.context(["default", "qlora_repeat.render.figures.journal"], after_reset=True):
        yield


@drawing_settings()
def save_figure(figure: Figure, paths: list[Path]) -> None:
    """Write a figure as the kinds of file that the paths name (pdf, png): the same bytes each time."""
    for path in paths:
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], metadata=_UNDATED[path.suffix])
        write_bytes(path, content.getvalue())


@drawing_settings()
def as_svg(figure: Figure, salt: str) -> str:
    """Return the figure as a part of a page: the same bytes each time."""
    matplotlib.rcParams["svg.hashsalt"] = salt
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def new_figure(height: float, notes: Sequence[str]) -> Figure:
    """Return a figure as wide as a page, with notes below `height`."""
    lines = [line for note in notes for line in wrapped(note, WIDTH - 4, SMALL)]
    total = height + LINE * len(lines) + 4
    figure = Figure(figsize=(WIDTH / 72, total / 72), dpi=DOTS_PER_INCH)
    write(figure, height, lines, size=SMALL, linespacing=1.2)
    return figure


def panel(figure: Figure, left: float, top: float, width: float, height: float, heading: str) -> Axes:
    """Add axes, placed from the figure's upper left corner, with a heading above."""
    total = figure.get_figheight() * 72
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
    axes.set_title(heading, loc="left", fontsize=MEDIUM, pad=2)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_legend(figure: Figure, handles: list[Line2D], columns: int, **looks: Any) -> None:
    """Draw a legend at the figure's upper left corner."""
    common = {"frameon": False, "borderaxespad": 0, "borderpad": 0.4}
    figure.legend(handles=handles, loc="upper left", ncols=columns, **common, **looks)


def set_axis(axes: Axes, direction: Literal["x", "y"], scale: Scale, label: str) -> None:
    """Give an axis its scale, ticks and label."""
    kind = "log" if scale.log else "linear"
    axes.set(**{f"{direction}scale": kind, f"{direction}lim": (scale.low, scale.high)})
    set_ticks(axes, direction, scale.ticks, f"{label} (log scale)" if scale.log else label)


def set_epochs(axes: Axes, last: float) -> None:
    """Make the horizontal axis one of epochs, to a little beyond the last one."""
    axes.set_xlim(0, 1.03 * last)
    set_ticks(axes, "x", linear_ticks(0, last), "epochs")


def set_ticks(
    axes: Axes, direction: Literal["x", "y"], ticks: Sequence[tuple[float, str]], label: str
) -> None:
    """Give an axis its ticks, with nothing between them, and its label."""
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_ticks([tick for tick, _ in ticks], [text for _, text in ticks])
    axis.set_label_text(label, fontsize=MEDIUM)
    axes.minorticks_off()


def draw_crosses(axes: Axes, across: Sequence[float], level: float, color: str) -> None:
    """Mark what is not finite, at a share of the panel's height."""
    looks: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "zorder": 4, "clip_on": False} | CROSS
    axes.plot(across, [level] * len(across), color=color, **looks)


def annotate(axes: Axes, text: str, at: tuple[float, float], offset: float, **looks: Any) -> None:
    """Write beside a point, with a background since letters may reach over something."""
    beside: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "bbox": _BACKGROUND}
    axes.annotate(text, at, (offset, 0), **beside, **looks)


def write(figure: Figure, top: float, lines: list[str], x: float = 2 / WIDTH, **looks: Any) -> None:
    """Write lines of text, at this distance from the figure's upper edge."""
    figure.text(x, 1 - top / (72 * figure.get_figheight()), "\n".join(lines), va="top", **looks)


def wrapped(text: str, width: float, size: float, face: str = "DejaVuSans") -> list[str]:
    """Return the text in lines of at most this width, at least one."""
    font, drawn = _face(face)
    font.set_size(size, DOTS_PER_INCH)

    def width_of(length: int) -> float:
        font.set_text(rest[:length])
        width: int = font.get_width_height()[0]
        return width / 64 * 72 / DOTS_PER_INCH

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
    """Return one of matplotlib's fonts, and its characters."""
    font = get_font(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    return font, frozenset(map(chr, font.get_charmap()))
