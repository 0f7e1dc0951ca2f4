"""The digest of the kit's code that a stage runs: without comments, docstrings, blank lines and layout."""

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
    """Return the digest of modules of the kit, and of all modules of the kit that they import.

    Not the commit: a change to a table must not make 230 GPU hours stale, nor may one to a comment.

    Raises:
        ModuleNotFoundError: the kit has no module of that name; a record without it would never go stale.
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
    """The digest of a module's code, and the modules of the kit that it imports."""
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
    """The modules of the kit that a `from` import names; of a package, its modules."""
    found = node.module or ""
    if not found.startswith(f"{KIT}."):
        return []
    is_package = _file(found.removeprefix(f"{KIT}.")).with_suffix("").is_dir()
    return [f"{found}.{each.name}" for each in node.names] if is_package else [found]


def _file(module: str) -> Path:
    return _FOLDER.joinpath(*module.split(".")).with_suffix(".py")


def bare_code(text: str) -> str:
    """The code without comments, texts that stand as statements, blank lines and spaces at line ends.

    Texts that are values stay as they are, whatever lines are in them. It is cut out of `text` by position,
    since syntax trees and tokens are not written alike by all versions of Python.

    Raises:
        SyntaxError: the text is not Python.
    """
    lines = io.StringIO(text).readlines()
    starts = [0, *accumulate(map(len, lines))]
    idle = set(_idle_texts(text, lines, starts))
    spans = sorted({*idle, *_comments_and_texts(text, starts)}, key=lambda span: (span[0], -span[1]))
    parts = [""]  # code and texts in turn
    done = 0
    for first, last in spans:
        if first < done:
            continue  # the parts of a docstring that is written in several
        parts[-1] += text[done:first]
        if text[first] != "#" and (first, last) not in idle:
            parts += [text[first:last], ""]
        done = last
    parts[-1] += text[done:]
    parts[::2] = [_BLANK_LINES.sub("\n", part) for part in parts[::2]]
    return "".join(parts).strip() + "\n"


def _comments_and_texts(text: str, starts: list[int]) -> Iterator[tuple[int, int]]:
    """From and to which character they are; an f-string is a text, whatever is in it."""
    opens, closes = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    begun: list[int] = []  # where f-strings begin that have not ended; before Python 3.12 they are one token
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


def _idle_texts(text: str, lines: list[str], starts: list[int]) -> Iterator[tuple[int, int]]:
    """From and to which character docstrings are, and the texts below a field that say what it is."""

    def place(row: int, column: int) -> int:
        return starts[row - 1] + len(lines[row - 1].encode()[:column].decode())  # columns count bytes

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value
            if isinstance(value.value, str) and value.end_lineno and value.end_col_offset:
                yield place(value.lineno, value.col_offset), place(value.end_lineno, value.end_col_offset)
