"""The colors of words that tell how something stands, in one place; a word never tells by its color alone.

Only colors: what is bold or dim would stay so where NO_COLOR asks for none.
"""

import re
from collections.abc import Iterable

from rich.text import Text

STATES = {
    "done": "green",
    "running": "cyan",
    "stale": "yellow",
    "damaged": "red",
    "failed": "red",
    "missing": "bright_black",
}
"""Of trials and their stages."""
LEVELS = {"ok": "green", "warning": "yellow", "stops": "red"}
"""Of what doctor finds."""
VERDICTS = {
    "bitwise": "green",
    "within tolerance": "green",
    "statistically consistent": "yellow",
    "different": "red",
    "inconclusive": "yellow",
}
_COLORS = STATES | LEVELS | VERDICTS


def colored(text: str, word: str) -> Text:
    """The text in the color of a word."""
    return Text(text, _COLORS[word])


def with_colored(text: str, words: Iterable[str], most: int | None = None) -> Text:
    """Return the text with these words in their colors, at most the first `most` of them."""
    shown = Text(text)
    either = "|".join(map(re.escape, words))
    for found in list(re.finditer(rf"(?<!\S)(?:{either})(?![^\s,:;])", text))[:most]:
        shown.stylize(_COLORS[found[0]], *found.span())
    return shown
