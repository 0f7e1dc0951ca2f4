"""The colours of words that tell how something stands, in one place; a word never tells by its colour alone.

Only colours: what is bold or dim would stay so where NO_COLOR asks for none.
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
_COLOURS = STATES | LEVELS | VERDICTS


def coloured(text: str, word: str) -> Text:
    """The text in the colour of a word."""
    return Text(text, _COLOURS[word])


def with_coloured(text: str, words: Iterable[str], most: int | None = None) -> Text:
    """The text with these words in their colours, or the first so many of them: names have no spaces."""
    shown = Text(text)
    either = "|".join(map(re.escape, words))
    for found in list(re.finditer(rf"(?<!\S)(?:{either})(?![^\s,:;])", text))[:most]:
        shown.stylize(_COLOURS[found[0]], *found.span())
    return shown
