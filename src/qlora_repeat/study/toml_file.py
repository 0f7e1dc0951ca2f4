"""Read a TOML file of any origin: a study, or the user's settings for a cluster."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from qlora_repeat.errors import UsageError
from qlora_repeat.system.files import read_file
from qlora_repeat.system.printable import is_hidden

LARGEST = 250_000
"""Bytes; the paper's study has 10,000."""
_DEEPEST = 10
_MOST_PARTS = 32
_MOST_VALUES = 10_000
_MOST_KEYS = 100
"""Of one table; each model gets a copy of the shared training."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters; tabs and line breaks are text."""
_REORDERING = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that break lines, or change the order in which others are shown."""
_PART = r"""(?>[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?>[ \t]*\.[ \t]*{_PART}){{{_MOST_PARTS},}}")
"""A key of many parts, for which tomllib needs seconds: the square of their number."""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file; raises as `read_toml_text`."""
    return read_toml_text(path)[0]


def read_toml_text(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a TOML file, and its text.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UsageError: it is not TOML, or has control characters, or no study is as large or nested as deeply.
    """
    try:
        text = read_file(path, LARGEST, follow=True).decode("utf-8").replace("\r\n", "\n")
        if found := _CONTROL.search(text) or _REORDERING.search(text):
            raise ValueError(f"character U+{ord(found[0]):04X} is not allowed{_place(text, found)}")
        if found := _LONG_KEY.search(text):
            raise ValueError(f"a key has more than {_MOST_PARTS} parts{_place(text, found)}")
        content = tomllib.loads(text)
        _require_simple(content)
        return content, text
    except (FileNotFoundError, NotADirectoryError):
        raise
    except RecursionError:
        reason = "nested too deeply"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:  # also of int(), for thousands of digits
        too_long = "int_max_str_digits" in str(error)
        reason = "an integer has more than 64 bits" if too_long else str(error)[:200]
    raise UsageError(f"{path}: not a readable TOML file: {reason}")


_TOKEN = re.compile(
    "|".join([
        r'"""(?:\\.|[^\\])*?"{3,5}',
        r"'{3}.*?'{3,5}",
        r'"(?:\\.|[^"\\\n])*"',
        r"'[^'\n]*'",
        r"#[^\n]*",
        r"\n",
        r"[\[\]{}=.]",
        r"""[^\s"'#\[\]{}=.]+""",
    ]),
    re.DOTALL,
)  # fmt: skip
"""A string, a comment, a line break, a character with a meaning in TOML, or other text."""


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table, and of each key outside of inline tables, of a text that is TOML."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    parts: list[str] = []
    number, depth, place = 1, 0, "start"
    for token in _TOKEN.findall(text):
        if token == "\n" and depth == 0:
            parts, place = [], "start"
        elif token[0] in "#\n" or (place != "value" and token == "."):
            pass
        elif place == "value":
            depth = max(0, depth + (token in "[{") - (token in "]}"))
        elif place == "start" and token == "[" and not parts:
            place = "header"
        elif token in ("]", "="):
            whole = tuple(parts) if place == "header" else (*table, *parts)
            table = whole if place == "header" else table
            for length in range(len(whole) - len(parts) + 1, len(whole) + 1):
                lines.setdefault(whole[:length], number)
            place = "value"
        elif token != "[":
            parts.append(_unquoted(token))
        number += token.count("\n")
    return lines


def _unquoted(part: str) -> str:
    """Return the part of a key without its quotation marks."""
    if part[0] not in "\"'":
        return part
    try:
        (unquoted,) = tomllib.loads(f"{part} = 1")
    except ValueError:
        return part
    return str(unquoted)


def quoted(text: str) -> str:
    """Return a text as a string of a TOML file, with escapes in place of invisible characters."""
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


def _escaped(character: str) -> str:
    code = ord(character)
    if not is_hidden(character):
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain_text(text: str) -> str:
    """Return a text without control characters, but for tabs and line breaks.

    Raises:
        ValueError: it has others.
    """
    if found := _CONTROL.search(text):
        raise ValueError(f"character U+{ord(found[0]):04X} is not allowed")
    return text


def one_line(text: str) -> str:
    """Return a text of one line, without control characters.

    Raises:
        ValueError: it has some.
    """
    if found := re.search("[\t\n]", text) or _REORDERING.search(text):
        raise ValueError(f"character U+{ord(found[0]):04X} is not allowed")
    return plain_text(text)


def _place(text: str, found: re.Match[str]) -> str:
    return f" (at line {text.count(chr(10), 0, found.start()) + 1})"


def _require_simple(content: dict[str, Any]) -> None:
    """Raise ValueError for many values, deep nesting, huge integers and control characters."""
    level: list[Any] = [content]
    count = 0
    for _ in range(_DEEPEST):
        tables = [each for each in level if isinstance(each, dict)]
        if (most := max(map(len, tables), default=0)) > _MOST_KEYS:
            raise ValueError(f"a table has {most} keys; expected at most {_MOST_KEYS}")
        nested = [*(each.values() for each in tables), *(each for each in level if isinstance(each, list))]
        level = [value for values in nested for value in values]
        for value in (*level, *(key for table in tables for key in table)):
            if isinstance(value, str) and _CONTROL.search(value):
                raise ValueError(f"control characters are not allowed (found {value[:60]!r})")
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError("an integer has more than 64 bits")
        count += len(level)
    if any(isinstance(each, dict | list) for each in level):
        raise ValueError("nested too deeply")
    if count > _MOST_VALUES:
        raise ValueError(f"it has {count} values; expected at most {_MOST_VALUES}")
