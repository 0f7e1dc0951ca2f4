"""One line for a user from pydantic's report on an invalid file."""

import difflib
import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_UNSUPPORTED = {"modules_to_save": "only adapters are trained, not whole layers; leave it out"}
"""Why keys that users know from PEFT do not exist."""
_LONGEST = 500
"""Characters of what was expected."""
_LONGEST_PART = 80
"""Characters of a part of a key, and of a value."""


def validation_message(error: ValidationError, known_keys: list[str]) -> str:
    """Return one line on the most helpful problem: the key, what was expected, what was found."""
    problems = error.errors(include_url=False, include_context=False)
    # A misspelled key is reported as unknown and, under its right name, as missing.
    problem = next((each for each in problems if each["type"] == "unexpected_keyword_argument"), problems[0])
    key = _key(problem)
    if problem["type"] == "unexpected_keyword_argument":
        found = _shortened(str(problem["loc"][-1]))
        if reason := _UNSUPPORTED.get(found):
            return f"unknown key {key}: {reason}"
        close = difflib.get_close_matches(found, [known for known in known_keys if known != found], 1)
        return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")
    if problem["type"] == "missing":
        return f"key {key} is missing"
    expected = " or: ".join(
        each["msg"].removeprefix("Value error, ") for each in problems if _key(each) == key
    )
    if isinstance(problem["input"], (str, int, float, bool)):
        return f"key {key}: {expected[:_LONGEST]} (found {_shown(problem['input'])})"
    return f"key {key}: {expected[:_LONGEST]}"


def _shown(value: object) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:
        return "a number of thousands of digits"


def _key(problem: ErrorDetails) -> str:
    parts = [_shortened(str(part)) for part in problem["loc"] if not _is_type_tag(part)]
    return ".".join(part if part.isprintable() else ascii(part) for part in parts) or "the study"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PART else f"{text[:_LONGEST_PART]}…"


def _is_type_tag(part: int | str) -> bool:
    """Return whether pydantic added this part of a location to name a member of a union."""
    return isinstance(part, str) and re.search(r"[\[(]|^(constrained-)?(int|float|str)$", part) is not None
