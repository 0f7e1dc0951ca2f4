"""One line for a user from pydantic's report on an invalid file."""

import difflib
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from qlora_repeat.study.allowed_values import Location, allowed_values, keys_of_table
from qlora_repeat.system.typed_json import what_is_expected

_UNSUPPORTED = {"modules_to_save": "only adapters are trained, not whole layers; leave it out"}
"""Why keys that users know from PEFT do not exist."""
_MISSING = {
    "source": 'give file = "rows.jsonl" or hub = "OWNER/NAME"',
    "base": "give the name of one of the tables in bases",
    "data": "give the name of one of the tables in data",
}
"""What to write for keys that are missing, where the type of the key does not say it."""
_WRONG_TYPES = (
    "int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "bool_type", "bool_parsing",
    "string_type", "list_type", "dict_type", "dataclass_type", "dataclass_exact_type", "literal_error",
)  # fmt: skip
"""Findings of pydantic for which the schema says what a key can have."""
_LONGEST = 500
"""Characters of what was expected."""
_FEW = 12
"""Keys of a table that are all listed beside a guess."""
_LONGEST_PART = 80
"""Characters of a part of a key, and of a value."""

Written = Callable[[Location], tuple[str, Location]]
"""Returns where a user wrote a key, such as ``line 3: ``, and the key as it was written."""


def validation_message(
    error: ValidationError, schema: Mapping[str, Any] | None = None, written: Written | None = None
) -> str:
    """Return one line on the most helpful problem: the key, what was expected, what was found.

    `schema` is the JSON schema of the file, to suggest keys of the table that has an unknown one.
    """
    problems = error.errors(include_url=False)
    # A misspelled key is reported as unknown and, under its right name, as missing.
    problem = next((each for each in problems if each["type"] == "unexpected_keyword_argument"), problems[0])
    kinds = (schema or {}).get("$defs", {})
    location = _location(problem["loc"], kinds)
    where, shown = written(location) if written else ("", location)
    key = shown_key(shown)
    if problem["type"] == "unexpected_keyword_argument":
        if reason := _UNSUPPORTED.get(str(location[-1])):
            return f"{where}unknown key {key}: {reason}"
        known = keys_of_table(schema or {}, location[:-1])
        return f"{where}unknown key {key}{_suggestion(str(location[-1]), known, shown_key(shown[:-1]))}"
    allowed = allowed_values(schema or {}, location)[:_LONGEST]
    if problem["type"] == "missing":
        advice = f"expected {allowed}" if allowed else ""
        advice = _MISSING.get(str(location[-1]), advice) if len(location) > 1 else advice
        return f"{where}key {key} is missing" + (f"; {advice}" if advice else "")
    if not location:  # its text names the key
        text = what_is_expected(problem)
        parts = (re.match(r"[\w.-]*", text) or [""])[0].split(".")
        return (written(tuple(parts))[0] if written else "") + text
    same = [each for each in problems if _location(each["loc"], kinds) == location]
    if allowed and problem["type"] in _WRONG_TYPES and problem["loc"][-1] != "[key]":
        return f"{where}key {key}: expected {allowed}{_found(problem['input'], tables=True)}"
    wanted = list(dict.fromkeys(what_is_expected(each, "a table") for each in same))
    expected = " or ".join([wanted[0], *(each.removeprefix("expected ") for each in wanted[1:])])[:_LONGEST]
    return f"{where}key {key}: {expected}{_found(problem['input'])}"


def _suggestion(found: str, known: Sequence[str], table: str) -> str:
    """Return which key of the same table may be meant, and the keys that it can have, if they are few."""
    close = difflib.get_close_matches(found[:_LONGEST_PART], known, 1)
    guess = f"; did you mean {close[0]}?" if close else ""
    listed = f"{table} can have {', '.join(known)}"[:_LONGEST]
    if not close:
        return f"; {listed}" if known else ""
    return f"{guess} ({listed})" if len(known) <= _FEW else guess


def _found(value: object, *, tables: bool = False) -> str:
    """Return what was found, for the end of a message; `tables`: also that it was a list or a table."""
    if not isinstance(value, str | int | float):
        kind = "a list" if isinstance(value, list) else "a table"
        return f" (found {kind})" if tables and value is not None else ""
    try:
        return f" (found {_shortened(repr(value))})"
    except ValueError:
        return " (found a number of thousands of digits)"


def shown_key(location: Location) -> str:
    """Return a key as text of one line."""
    parts = [_shortened(str(part)) for part in location]
    return ".".join(part if part.isprintable() else ascii(part) for part in parts) or "the study"


def _location(location: Location, kinds: Container[str]) -> Location:
    """Return a location without the names of the members of unions, some of which are the types `kinds`."""
    parts = [part for part in location[:-1] if not _is_type_tag(part) and part not in kinds]
    return (*parts, *(part for part in location[-1:] if not _is_type_tag(part)))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PART else f"{text[:_LONGEST_PART]}…"


def _is_type_tag(part: int | str) -> bool:
    """Return whether pydantic added this part of a location to name a member of a union."""
    return isinstance(part, str) and re.search(r"[\[(]|^(constrained-)?(int|float|str)$", part) is not None
