"""One line for a user from pydantic's report on an invalid file."""

import difflib
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from qlora_repeat.system.typed_json import what_is_expected

_UNSUPPORTED = {"modules_to_save": "only adapters are trained, not whole layers; leave it out"}
"""Why keys that users know from PEFT do not exist."""
_LONGEST = 500
"""Characters of what was expected."""
_FEW = 6
"""Keys of a table that are all listed beside a guess."""
_LONGEST_PART = 80
"""Characters of a part of a key, and of a value."""

Location = tuple[str | int, ...]
"""The parts of a key, and places in lists."""
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
    if problem["type"] == "missing":
        return f"{where}key {key} is missing"
    if not location:  # its text names the key
        text = what_is_expected(problem)
        parts = (re.match(r"[\w.-]*", text) or [""])[0].split(".")
        return (written(tuple(parts))[0] if written else "") + text
    same = [each for each in problems if _location(each["loc"], kinds) == location]
    wanted = list(dict.fromkeys(what_is_expected(each, "a table") for each in same))
    expected = " or ".join([wanted[0], *(each.removeprefix("expected ") for each in wanted[1:])])[:_LONGEST]
    if isinstance(problem["input"], (str, int, float, bool)):
        return f"{where}key {key}: {expected} (found {_shown(problem['input'])})"
    return f"{where}key {key}: {expected}"


def _suggestion(found: str, known: Sequence[str], table: str) -> str:
    """Return which key of the same table may be meant, and the keys that it can have, if they are few."""
    close = difflib.get_close_matches(found[:_LONGEST_PART], known, 1)
    guess = f"; did you mean {close[0]}?" if close else ""
    listed = f"{table} can have {', '.join(known)}"[:_LONGEST]
    if not close:
        return f"; {listed}" if known else ""
    return f"{guess} ({listed})" if len(known) <= _FEW else guess


def keys_of_table(schema: Mapping[str, Any], location: Location) -> list[str]:
    """Return the keys that a table can have, by the JSON schema of the whole."""
    nodes = _resolved(schema, schema)
    for part in location:
        inner: list[Mapping[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                found = node.get("items")
            else:
                others = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
                found = node.get("properties", {}).get(part, others[0])
            inner += _resolved(schema, found) if isinstance(found, dict) else []
        nodes = inner
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _resolved(schema: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the alternatives of a node of a JSON schema, without references."""
    if reference := node.get("$ref"):
        return _resolved(schema, schema["$defs"][reference.rpartition("/")[2]])
    if "anyOf" in node:
        return [each for one in node["anyOf"] for each in _resolved(schema, one)]
    return [node]


def _shown(value: object) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:
        return "a number of thousands of digits"


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
