"""Escape any text for LaTeX, Markdown, figures and terminals, so that no response changes a layout.

An invisible character (control, zero-width, bidirectional, lone surrogate, tab) becomes its code,
``\\u{202e}``; a line break becomes an arrow, and a space that a renderer would drop or merge becomes ``␣``.
"""

import functools
import re

from rich.cells import cell_len

from qlora_repeat.system.printable import character_code, is_hidden

_DROPPED_SPACE = re.compile(r"\A | \Z|(?<=\n) | (?=[ \n])")

_MARKDOWN = {character: f"\\{character}" for character in "\\`*_[]~$"} | {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",  # readers disagree on what backslashes before a pipe mean
    "\n": "⏎",
}

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}%$#&_"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "`": r"\textasciigrave{}",
        "'": r"\textquotesingle{}",
        '"': r"\textquotedbl{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # right after the \\ that ends a row, a bracket or a star would be its argument
        "]": "{]}",
        "*": "{*}",
        "␣": r"\textvisiblespace{}",
        "\n": r"\ensuremath{\hookleftarrow}\penalty0 ",
    }
)
_ASCII = frozenset(map(chr, range(0x20, 0x7F)))
_LATIN_1 = frozenset(map(chr, range(0xA1, 0x100))) - {"\xad"}
_LATIN_EXTENDED_A = frozenset("ĂăĄąĆćČčĎďĐđĘęĚěĞğĹĺĽľŁłŃńŇňŊŋŐőŒœŔŕŘřŚśŞşŠšŢţŤťŮůŰűŸŹźŻżŽžĲĳİı")
_IN_T1 = _ASCII | _LATIN_1 | _LATIN_EXTENDED_A | frozenset("–—‘’‚“”„†‡•…‰‹›€™␣\n")

_LIGATURE = re.compile("(?<=[-–,‘’!?])(?=[-,‘’])")
"""The middle of pairs that T1 fonts draw as one character, such as ``--``, ``,,`` and ``?‘``."""
_WIDE = frozenset("%@mwæœ—†…‰™")
_LONG_WORD = 20
"""Width in narrow letters; capitals and wide characters count twice."""
_PIECE = re.compile(r"(?:(?!<U\+|\\u\{).){1,5}|<U\+[0-9A-F]+>|\\u\{[0-9a-f]+\}|.")
"""Parts that are not broken: five letters, or the code of a character."""
_BREAK = r"\penalty500 "
"""Lets TeX break a word here without a hyphen, if nothing else helps."""


def markdown(text: str) -> str:
    """Return the text for a cell or line of GitHub's Markdown, without markup, HTML, line breaks or pipes."""
    return "".join(map(_in_markdown, _mark_spaces(text)))


def latex(text: str) -> str:
    """Return the text for LaTeX with T1 fonts and UTF-8 input, without commands, ligatures or curly quotes.

    Characters that these fonts lack become ``<U+4E2D>``. Long words can be broken.
    """
    shown = "".join(_in_font(character, _IN_T1) for character in _mark_spaces(text))
    return "".join(_latex_word(word) for word in re.split(r"([ \n])", shown))


def plain(text: str, drawn: frozenset[str]) -> str:
    """Return the text for a figure, on one line. Characters that its font lacks become ``<U+4E2D>``."""
    return "".join(_in_font(character, drawn) for character in _mark_spaces(text).replace("\n", "⏎"))


def terminal(text: str) -> str:
    """Return the text for a terminal, on one line, without control or zero-width characters."""
    shown = _mark_spaces(text).replace("\n", "⏎")
    return "".join(
        character_code(character) if is_hidden(character) or cell_len(character) == 0 else character
        for character in shown
    )


def _mark_spaces(text: str) -> str:
    return _DROPPED_SPACE.sub("␣", text)


@functools.cache
def _in_markdown(character: str) -> str:
    shown = character_code(character) if is_hidden(character) else character
    return "".join(_MARKDOWN.get(each, each) for each in shown)


@functools.cache
def _in_font(character: str, drawn: frozenset[str]) -> str:
    if character in drawn and not is_hidden(character):
        return character
    return character_code(character) if is_hidden(character) else f"<U+{ord(character):04X}>"


def _latex_word(word: str) -> str:
    width = sum(2 if character.isupper() or character in _WIDE else 1 for character in word)
    pieces = [word] if width <= _LONG_WORD else _PIECE.findall(word)
    return _BREAK.join(map(_latex_piece, pieces))


def _latex_piece(piece: str) -> str:
    return "{}".join(part.translate(_LATEX) for part in _LIGATURE.split(piece))
