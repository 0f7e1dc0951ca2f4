"""Any text is shown unchanged in LaTeX, Markdown and figures."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.made_results import ANY_TEXT

from qlora_repeat.render.escape import latex, markdown, plain

VISIBLE = st.text(string.ascii_letters + string.digits + string.punctuation + "éő中🙂", min_size=1)


def rendered(cell: str) -> str:
    """Return the text that a reader sees in a cell of a Markdown table."""
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    cells = [token for token in parser.parse(f"| heading |\n|---|\n| {cell} |\n") if token.type == "inline"]
    assert len(cells) == 2, "heading and cell"
    assert {child.type for child in cells[1].children} <= {"text", "text_special"}, "no markup"
    return "".join(child.content for child in cells[1].children)


@given(VISIBLE)
def test_markdown_renders_as_the_text_itself(text: str) -> None:
    assert rendered(markdown(text)) == text


@given(ANY_TEXT)
def test_markdown_stays_in_its_cell(text: str) -> None:
    escaped = markdown(text)
    assert "|" not in escaped
    assert escaped.splitlines() in ([escaped], [])
    assert escaped == escaped.strip()
    escaped.encode()


@given(ANY_TEXT)
def test_latex_contains_only_our_commands_and_balanced_braces(text: str) -> None:
    escaped = latex(text)
    escaped.encode()
    known = (
        r"textbackslash|textasciicircum|textasciitilde|textasciigrave|textquotesingle|textquotedbl|textless|"
        r"textgreater|textbar|textvisiblespace|ensuremath|hookleftarrow|penalty|[{}%$#&_]"
    )
    assert not re.search(rf"\\(?!{known})", escaped)
    bare = re.sub(r"\\[{}%$#&_]", "", escaped)
    assert not re.search(r"[%$#&_^~\"'`<>|\n]", bare)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"--|,,|‘‘|’’", bare)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", r"\u{202e}"),
        ("a\u200bb", r"\u{200b}"),
        ("a\x00b", r"\u{0}"),
        ("a\tb", r"\u{9}"),
        ("a\xa0b", r"\u{a0}"),
        ("a\xadb", r"\u{ad}"),
        ("a\ufe0fb", r"\u{fe0f}"),
        ("a\ud800b", r"\u{d800}"),
        ("a\u2028b", r"\u{2028}"),
        ("a\nb", "⏎"),
        (" a", "␣a"),
        ("a ", "a␣"),
        ("a   b", "a␣␣ b"),
        (" ", "␣"),
        ("a \n b", "a␣⏎␣b"),
    ],
)
def test_invisible_characters_are_shown_as_codes(text: str, shown: str) -> None:
    assert shown.replace("\\", "\\\\") in markdown(text)
    in_latex = latex(text).replace(r"\penalty0 ", "").replace(r"\ensuremath{\hookleftarrow}", "⏎")
    in_latex = in_latex.replace(r"\textvisiblespace{}", "␣").replace(r"\textbackslash{}", "\\")
    assert shown in in_latex.replace(r"\{", "{").replace(r"\}", "}")


@pytest.mark.parametrize(
    "text", ["", "Your silence will", "GPT-NeoX-20B", "é ß ő Ł œ € “q” ‘s’ – — … 233,812.79"]
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert latex(text) == text
    assert markdown(text) == text


def test_latex_shows_codes_of_characters_that_the_fonts_lack() -> None:
    assert latex("中🙂") == r"\textless{}U+4E2D\textgreater{}\penalty500 \textless{}U+1F642\textgreater{}"
    assert markdown("中🙂") == "中🙂"


def test_latex_can_break_long_words_and_not_short_ones() -> None:
    assert latex("x" * 60).count(r"\penalty") == 11
    assert r"\penalty" not in latex("counterrevolutionary understanding")


def test_a_latex_line_break_is_optional() -> None:
    assert latex("a\nb") == r"a\ensuremath{\hookleftarrow}\penalty0 b"


@given(ANY_TEXT)
def test_text_in_figures_is_one_line_of_drawable_characters(text: str) -> None:
    drawn = frozenset(string.printable) | frozenset("é␣⏎")
    shown = plain(text, drawn)
    assert frozenset(shown) <= drawn - frozenset("\n\r\t\x0b\x0c")


def test_text_in_figures_shows_codes_of_characters_that_the_font_lacks() -> None:
    assert plain("$é$ 中\u202e\n", frozenset("$é \u202e⏎")) == "$é$ <U+4E2D>\\u{202e}⏎"
