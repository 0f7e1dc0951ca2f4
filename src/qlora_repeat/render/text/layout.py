"""Paragraphs and tables for a terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def prose(text: str) -> str:
    """Break a text into lines of at most 100 characters."""
    return textwrap.fill(text, 100)


def table(headings: list[str], rows: Sequence[Sequence[Any]]) -> str:
    """Make a table with names in the first column and numbers in the others."""
    alignment = ("left", *["right"] * (len(headings) - 1))
    return tabulate(rows, headings, disable_numparse=True, colalign=alignment)
