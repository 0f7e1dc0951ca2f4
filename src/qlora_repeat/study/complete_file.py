"""The complete file of a study: every value, also those that its file leaves out, and where it comes from."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.study.study import Study
from qlora_repeat.study.study_content import Content
from qlora_repeat.study.toml_file import quoted

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INLINE = ("hub", "file", "test_file", "gguf", "tokenizer", "folder", "columns")
"""Tables that are written in one line."""


def complete_text(
    study: Study, content: Content, locked: Mapping[tuple[str, ...], Any] | None = None, lock: str = ""
) -> str:
    """Return the complete TOML file of a study, in which the comment of each value says where it comes from.

    Args:
        study: with the paths of its file, as from `read_study`.
        content: what its file says.
        locked: the values that the lock file adds, by their keys.
        lock: the name of the lock file.
    """
    values: dict[str, Any] = TypeAdapter(Study).dump_python(
        replace(study, variant=""), mode="json", exclude_none=True
    )
    del values["variant"]
    for name in ("cluster", "averaging"):
        if getattr(study, name) == type(getattr(study, name))():
            del values[name]
    for key, value in (locked or {}).items():
        table = values
        for part in key[:-1]:
            table = table[part]
        table[key[-1]] = value

    def comment(key: tuple[str, ...]) -> str:
        found = content.origin(key)[0]
        from_lock = [lock] if any(each[: len(key)] == key for each in locked or {}) else []
        if found is None or key in content.defaults or not _is_written(content, key):
            return "".join(from_lock) or "default"
        line = f", line {found.line}" if found.line is not None else ""
        return "; ".join([f"{found.file.name}{line}", *from_lock])

    return "\n".join(_table(values, (), comment)) + "\n"


def _is_written(content: Content, key: tuple[str, ...]) -> bool:
    """Return whether the value of a key is in the content, such as a key of a text in place of a table."""
    values: Any = content.values
    for part in key:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _table(values: Mapping[str, Any], key: tuple[str, ...], comment: Any) -> Iterator[str]:
    """Yield the lines of a table: first its values, then the tables in it."""
    inner = {name: each for name, each in values.items() if isinstance(each, dict) and name not in _INLINE}
    plain = {name: each for name, each in values.items() if name not in inner}
    if key and plain:
        yield ""
        yield f"[{'.'.join(map(_key, key))}]"
    for name, each in plain.items():
        yield f"{_key(name)} = {_value(each)} # {comment((*key, name))}"
    for name, each in inner.items():
        yield from _table(each, (*key, name), comment)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else quoted(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
