"""Code without what does nothing. The same on every Python: what is expected here is written out."""

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
        ("a   \n", "a  \n"),  # spaces at a line end, but in a text that is a value
        ("# no comment either", "# no comment at all"),
        ("{one}   \n\n", "{one}   \n"),
        ('"default"', "'default'"),
        ("!r", "!s"),
        ("size: int = 1", "size: int = 2"),
    ],
)
def test_a_changed_value_changes_it(old: str, new: str) -> None:
    assert old in CODE
    assert bare_code(CODE.replace(old, new)) != BARE


class _WithoutIdleTexts(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        idle = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if idle else node


def test_the_kits_own_modules_do_the_same_without_it() -> None:
    for path in Path(qlora_repeat.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.parts[-2:] != ("cli", "main.py"):  # which has a function of nothing but its docstring
            bare = ast.parse(bare_code(text))
            assert ast.dump(bare) == ast.dump(_WithoutIdleTexts().visit(ast.parse(text))), path
