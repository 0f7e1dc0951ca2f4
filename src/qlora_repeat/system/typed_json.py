"""Read JSON of any origin that must have a type."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import read_json

_T = TypeVar("_T")
_WORDS: dict[str, str] = {}
"""What each pattern allows, in words, with an example (`worded`)."""
_EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "literal_error": "{expected}",
}
"""What pydantic expected, by the type of its finding."""


def read_as(kind: TypeAdapter[_T], path: Path, advice: str, *, follow: bool = False) -> _T:
    """Read JSON of any origin that must have a type, as `read_json`.

    Raises:
        MissingError: also if the value does not have that type; names the key.
    """
    value = read_json(path, advice, follow=follow)
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise MissingError(f"{path}: {first_problem(error)}; {advice}") from None


def worded(pattern: str, words: str) -> str:
    """Return a pattern, after noting what it allows in words and an example, for errors."""
    _WORDS[pattern] = words
    return pattern


def in_words(pattern: str) -> str:
    """Return what a pattern allows, in words with an example; nothing if it has no words."""
    return _WORDS.get(pattern, "")


def first_problem(error: ValidationError) -> str:
    """Return the key of pydantic's first finding, and what is wrong with it, in one line."""
    first = error.errors(include_url=False)[0]
    key, found = ".".join(map(str, first["loc"]))[:100], ""
    if isinstance(first["input"], str | int | float | None):
        found = f" (found {first['input']!r:.60})"
    return ": ".join(filter(None, (key, what_is_expected(first) + found)))


def what_is_expected(problem: ErrorDetails, table: str = "an object") -> str:
    """Return what pydantic expected, in the kit's words; `table` is how the format names keys with values."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"expected {_WORDS.get(context['pattern'], 'another form')}"
    if kind in ("dict_type", "dataclass_type", "dataclass_exact_type", "model_type", "mapping_type"):
        return f"expected {table}"
    if kind == "missing":
        return "is missing"
    if kind in ("too_short", "string_too_short") and context["min_length"] == 1:
        return (
            "expected text that is not empty"
            if isinstance(problem["input"], str)
            else "expected at least one entry"
        )
    if kind in _EXPECTED:
        bounds = {key: int(each) if _is_whole(each) else each for key, each in context.items()}
        return "expected " + _EXPECTED[kind].format(**bounds)
    return problem["msg"].removeprefix("Value error, ")


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()
