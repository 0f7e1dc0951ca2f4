"""Where responses differ: word by word, from that of the first run."""

import difflib
import re
from dataclasses import dataclass

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORDS = 2000
"""Of longer texts only what is in common at both ends is looked for: the time grows with the square."""


@dataclass(frozen=True)
class Span:
    """A part of a response."""

    text: str
    differs: bool
    """Whether it is not in the first run's response, there."""


def differences(first: str, other: str) -> list[Span]:
    """The other text in spans; together they are all of it."""
    words, reference = _WORDS.findall(other), _WORDS.findall(first)
    if max(len(words), len(reference)) > _MOST_WORDS:
        return _ends_in_common(first, other)
    matcher = difflib.SequenceMatcher(None, reference, words, autojunk=False)
    spans = [
        Span("".join(words[start:end]), operation != "equal")
        for operation, _, _, start, end in matcher.get_opcodes()
    ]
    return [span for span in spans if span.text]


def _ends_in_common(first: str, other: str) -> list[Span]:
    shortest = min(len(first), len(other))
    start = next((place for place in range(shortest) if first[place] != other[place]), shortest)
    end = next((n for n in range(shortest - start) if first[-1 - n] != other[-1 - n]), shortest - start)
    parts = (
        (other[:start], False),
        (other[start : len(other) - end], True),
        (other[len(other) - end :], False),
    )
    return [Span(text, differs) for text, differs in parts if text]
