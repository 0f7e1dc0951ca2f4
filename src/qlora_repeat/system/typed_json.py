"""Read JSON of any origin that must have a type."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import read_json

_T = TypeVar("_T")


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


def first_problem(error: ValidationError) -> str:
    """Return the key of pydantic's first finding, and what is wrong with it, in one line."""
    first = error.errors(include_url=False)[0]
    key, found = ".".join(map(str, first["loc"]))[:100], ""
    if isinstance(first["input"], str | int | float | None):
        found = f" (found {first['input']!r:.60})"
    return ": ".join(filter(None, (key, first["msg"].removeprefix("Value error, ") + found)))
