"""Show text of any origin as text: invisible characters become their codes, such as ``\\u{202e}``.

Whatever the kit prints, and whatever it writes for people to read, goes through `printable`. So no key, name
or response can move a terminal's cursor, clear its screen, color it, or reverse the order of letters.
"""

import re
import sys
import unicodedata
from typing import Any

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"})
_HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufdd0-\ufdef\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
"""Invisible characters of other categories: fillers, variation selectors, internal code points."""
_MAYBE_HIDDEN = re.compile(r"[^\n -~]")
"""All others are visible; this makes long texts fast."""


def is_hidden(character: str) -> bool:
    """Return whether a character is invisible or moves others: control, format, private, lone surrogate."""
    if character in " \n":
        return False
    in_category = unicodedata.category(character) in _HIDDEN_CATEGORIES
    return in_category or _HIDDEN.match(character) is not None or ord(character) & 0xFFFE == 0xFFFE


def character_code(character: str) -> str:
    """Return a character's code point as text: ``\\u{202e}``."""
    return f"\\u{{{ord(character):x}}}"


def printable(text: str) -> str:
    """Return the text with codes in place of invisible characters; line breaks and spaces stay."""
    return _MAYBE_HIDDEN.sub(lambda found: _shown(found[0]), text)


def one_line(text: str) -> str:
    """Return the text as `printable` does, with arrows in place of line breaks, so that it is one line."""
    return printable(text).replace("\n", "⏎")


def printable_values(value: Any) -> Any:
    """Return a JSON value whose texts and keys are `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): printable_values(each) for key, each in value.items()}
    return [printable_values(each) for each in value] if isinstance(value, list | tuple) else value


def printable_json(text: str) -> str:
    """Return JSON with invisible characters as JSON's own escapes: the same value, safe to print."""
    return _MAYBE_HIDDEN.sub(lambda found: _json_escape(found[0]), text)


def say(text: object = "", *, error: bool = False) -> None:
    """Print one line, on standard error if `error`: every line of the kit that is not a rich console's."""
    say_block(one_line(str(text)), error=error)


def say_block(text: object, *, error: bool = False) -> None:
    """Print text of several lines. Its author made sure that values from strangers have no line breaks."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def say_json(text: str) -> None:
    """Print JSON."""
    say_block(printable_json(text.rstrip("\n")))


def _shown(character: str) -> str:
    return character_code(character) if is_hidden(character) else character


def _json_escape(character: str) -> str:
    if not is_hidden(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
