"""Code without comments and docstrings; the expected text is the same on every Python."""

import ast
from pathlib import Path

import pytest

import qlora_repeat
from qlora_repeat.records.code_digest import bare_code

CODE = '''#!/usr/bin/env python
"""What this is."""

from x import y  # why

LINE = "no # comment"   \t
SAYS = "„ő”"; """A text below a field."""  # said of „ő”
WORDS = """a  \x20

# no comment either  \x20
"""


class Kept:
    """What it is,
    in lines."""

    size: int = 1
    \'\'\'From "1".\'\'\'


@decorated(  # why
    f"{LINE!r:>{width}} # no comment {a if a else 'b'}",

    "joined" "text",
)
def told(
    one,  # said of one

    two="default",
):
    ("in "
     # between
     "parts")
    return f"""{one}  \x20

{two}"""  # last


def only_told():
    "nothing"
'''
BARE = '''from x import y
LINE = "no # comment"
SAYS = "„ő”";
WORDS = """a  \x20

# no comment either  \x20
"""
class Kept:
    size: int = 1
@decorated(
    f"{LINE!r:>{width}} # no comment {a if a else 'b'}",
    "joined" "text",
)
def told(
    one,
    two="default",
):
    ()
    return f"""{one}  \x20

{two}"""
def only_told():
'''


def test_comments_docstrings_blank_lines_and_spaces_at_line_ends_are_left_out() -> None:
    assert bare_code(CODE) == BARE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("no # comment", "no # commenT"),
        ("a   \n", "a  \n"),  # spaces at line ends within a string value
        ("# no comment either", "# no comment at all"),
        ("{one}   \n\n", "{one}   \n"),
        ('"default"', "'default'"),
        ("!r", "!s"),
        ("size: int = 1", "size: int = 2"),
    ],
)
def test_a_changed_value_changes_the_digest(old: str, new: str) -> None:
    assert old in CODE
    assert bare_code(CODE.replace(old, new)) != BARE


class _WithoutIdleTexts(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        idle = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if idle else node


def test_removing_comments_and_docstrings_does_not_change_the_kits_modules() -> None:
    for path in Path(qlora_repeat.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.parts[-2:] != ("cli", "main.py"):  # it has a function that is only a docstring
            bare = ast.parse(bare_code(text))
            assert ast.dump(bare) == ast.dump(_WithoutIdleTexts().visit(ast.parse(text))), path
