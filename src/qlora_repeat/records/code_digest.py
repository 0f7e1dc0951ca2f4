"""The digest of the code that a stage runs, without comments, docstrings and blank lines."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from qlora_repeat.system.hashing import json_digest, text_digest

KIT = "qlora_repeat"
_FOLDER = Path(__file__).parents[1]
_BLANK_LINES = re.compile(r"[ \t\f]*\n(?:[ \t\f]*\n)*")


@functools.cache
def code_digest(*modules: str) -> str:
    """Return the digest of some modules and of all modules of the kit that they import.

    It replaces the commit, because a change to a table or a comment must not make 230 GPU hours stale.

    Raises:
        ModuleNotFoundError: the kit has no such module. Skipping it would hide changes to its code.
    """
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name], imported = _code_of(name)
            waiting += imported
    return json_digest(seen)


@functools.cache
def _code_of(module: str) -> tuple[str, list[str]]:
    """Return the digest of a module's code, and the modules of the kit that it imports."""
    path = _file(module)
    if not path.is_file():
        raise ModuleNotFoundError(f"{KIT}.{module}: the kit has no such module")
    text = path.read_text(encoding="utf-8")
    imported: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported += _imported_from(node)
        elif isinstance(node, ast.Import):
            imported += [each.name for each in node.names if each.name.startswith(f"{KIT}.")]
    return text_digest(bare_code(text)), [name.removeprefix(f"{KIT}.") for name in imported]


def _imported_from(node: ast.ImportFrom) -> list[str]:
    """Return the modules of the kit that a `from` import loads."""
    found = node.module or ""
    if not found.startswith(f"{KIT}."):
        return []
    is_package = _file(found.removeprefix(f"{KIT}.")).with_suffix("").is_dir()
    return [f"{found}.{each.name}" for each in node.names] if is_package else [found]


def _file(module: str) -> Path:
    return _FOLDER.joinpath(*module.split(".")).with_suffix(".py")


def bare_code(text: str) -> str:
    """Return code without comments, docstrings (all strings that are statements) and blank lines.

    Other strings stay as they are, with their blank lines. The result is cut out of `text` by position,
    because Python versions differ in how they print syntax trees and tokens.

    Raises:
        SyntaxError: `text` is not Python.
    """
    lines = io.StringIO(text).readlines()
    starts = [0, *accumulate(map(len, lines))]
    docstrings = set(_docstrings(text, lines, starts))
    spans = sorted({*docstrings, *_comments_and_strings(text, starts)}, key=lambda span: (span[0], -span[1]))
    parts = [""]  # code and strings alternate
    done = 0
    for first, last in spans:
        if first < done:
            continue  # inside a docstring of several string literals
        parts[-1] += text[done:first]
        if text[first] != "#" and (first, last) not in docstrings:
            parts += [text[first:last], ""]
        done = last
    parts[-1] += text[done:]
    parts[::2] = [_BLANK_LINES.sub("\n", part) for part in parts[::2]]
    return "".join(parts).strip() + "\n"


def _comments_and_strings(text: str, starts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each comment and string; an f-string is one string."""
    opens, closes = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    begun: list[int] = []  # starts of open f-strings; before Python 3.12 an f-string is one token
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.type == opens:
            begun.append(first)
        elif token.type == closes:
            begin = begun.pop()
            if not begun:
                yield begin, last
        elif token.type in (tokenize.COMMENT, tokenize.STRING) and not begun:
            yield first, last


def _docstrings(text: str, lines: list[str], starts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each string that is a statement, such as a docstring."""

    def place(row: int, column: int) -> int:
        return starts[row - 1] + len(lines[row - 1].encode()[:column].decode())  # columns count bytes

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value
            if isinstance(value.value, str) and value.end_lineno and value.end_col_offset:
                yield place(value.lineno, value.col_offset), place(value.end_lineno, value.end_col_offset)
