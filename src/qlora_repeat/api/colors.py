"""The colors of words for states, levels and verdicts. The words alone say the same.

Only colors are used: bold or dim text would stay so if NO_COLOR is set.
"""

import re
from collections.abc import Iterable

from rich.text import Text

from qlora_repeat.system.printable import printable

STATES = {
    "done": "green",
    "running": "cyan",
    "stale": "yellow",
    "damaged": "red",
    "failed": "red",
    "stopped": "yellow",
    "missing": "bright_black",
}
"""States of trials and their stages."""
LEVELS = {"ok": "green", "warning": "yellow", "stops": "red"}
"""Levels of the findings of `doctor`."""
VERDICTS = {
    "bitwise": "green",
    "within tolerance": "green",
    "statistically consistent": "yellow",
    "different": "red",
    "inconclusive": "yellow",
}
OUTCOMES = {"passed": "green", "failed": "red", "cannot tell": "yellow"}
"""Outcomes of the checks of `selftest`."""
_COLORS = STATES | LEVELS | VERDICTS | OUTCOMES


def colored(text: str, word: str) -> Text:
    """Return the text in the color of a word."""
    return Text(printable(text), _COLORS[word])


def with_colored(text: str, words: Iterable[str], most: int | None = None) -> Text:
    """Return the text with these words in their colors, at most the first `most` of them."""
    shown = Text(printable(text))
    either = "|".join(map(re.escape, words))
    for found in list(re.finditer(rf"(?<!\S)(?:{either})(?![^\s,:;])", text))[:most]:
        shown.stylize(_COLORS[found[0]], *found.span())
    return shown
