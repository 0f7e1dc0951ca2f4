"""What all figures have in common: sizes, colors, letters, and how they are written.

No clock, no locale, no user's settings of matplotlib. Lengths are in points (1/72 inch); no letter is smaller
than 6 points where the figure is as wide as the page.
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
SMALL, MEDIUM, LARGE = 6.0, 6.5, 7.5
"""Sizes of letters."""
LINE = 8.0
"""From one small line to the next."""
WIDTH = 7.16 * 72
"""Of the text on a page of an IEEE journal."""
DOTS_PER_INCH = 300
_SLACK = 0.96
"""Of a line's width is used: letters of the PNG are as wide as whole dots, those of the PDF are not."""

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Those of Okabe and Ito, which everybody can tell apart, but for yellow, which is faint on white."""
GRAY = "#505050"
BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.4}
"""Of letters that reach over something."""
CROSS: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 4, "markeredgewidth": 1.2}
"""For what is not finite."""
_UNDATED: dict[str, dict[str, Any]] = {
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
    "png": {"Software": None},
}


@contextmanager
def drawing_settings() -> Iterator[None]:
    """matplotlib's own settings and ours, whatever the user's are."""
    with matplotlib.style.context("default", after_reset=True):
        matplotlib.rcParams.update(_SETTINGS)
        yield


def save_figure(figure: Figure, paths: list[Path]) -> None:
    """Writes a figure as the kinds of file that the paths name (pdf, png): the same bytes each time."""
    for path in paths:
        content, kind = io.BytesIO(), path.suffix[1:]
        figure.savefig(content, format=kind, metadata=_UNDATED[kind])
        write_bytes(path, content.getvalue())


def as_svg(figure: Figure, salt: str) -> str:
    """Return the figure as a part of a page, with text as text: the same bytes each time."""
    settings: dict[Any, Any] = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    written = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def new_figure(height: float) -> Figure:
    """A figure as wide as a page."""
    return Figure(figsize=(WIDTH / 72, height / 72), dpi=DOTS_PER_INCH)


def panel(figure: Figure, left: float, top: float, width: float, height: float, heading: str) -> Axes:
    """Axes in a place of the figure, told from its upper left corner, with a heading above."""
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


def write(figure: Figure, top: float, lines: list[str], x: float = 2 / WIDTH, **looks: Any) -> None:
    """Lines of text, so far below the figure's upper edge."""
    figure.text(x, 1 - top / (72 * figure.get_figheight()), "\n".join(lines), va="top", **looks)


def wrapped(text: str, width: float, size: float, face: str = "DejaVuSans") -> list[str]:
    """The text in lines of at most this width, at least one."""
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
    """A font that matplotlib brings, and its characters."""
    font = get_font(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    return font, frozenset(map(chr, font.get_charmap()))
