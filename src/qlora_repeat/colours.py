"""The colours of words that tell how something stands, in one place; a word never tells by its colour alone.

Only colours: what is bold or dim would stay so where NO_COLOR asks for none.
"""

import re
from collections.abc import Iterable

from rich.text import Text

COLOURS = {
    # States of trials and stages
    "done": "green",
    "not done": "red",
    "running": "cyan",
    "stale": "yellow",
    "damaged": "red",
    "failed": "red",
    "missing": "bright_black",
    # Levels of doctor's findings
    "ok": "green",
    "warning": "yellow",
    "stops": "red",
    # Verdicts
    "bitwise": "green",
    "within tolerance": "green",
    "statistically consistent": "yellow",
    "different": "red",
    "inconclusive": "yellow",
}


def coloured(word: str) -> Text:
    """The word in its colour, if it has one."""
    return Text(word, COLOURS.get(word, ""))


def with_coloured(text: str, words: Iterable[str]) -> Text:
    """The text with these words in their colours, wherever they stand between spaces."""
    either = "|".join(re.escape(word) for word in words)
    shown = Text(text)
    shown.highlight_regex(rf"(?m)(?<![^\s])(?:{either})(?![^\s,])", lambda word: COLOURS.get(word, ""))
    return shown
