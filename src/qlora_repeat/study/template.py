"""The text of a row: a template with the names of columns in braces, or the tokenizer's chat template."""

import re
import string
from collections.abc import Mapping, Sequence

CHAT = "chat"
"""The template that stands for the chat template of the base's tokenizer."""
COLUMN = r"^[A-Za-z_][A-Za-z0-9_ -]*$"
"""A name that a template can have in braces."""


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names, in its order.

    Raises:
        ValueError: it is not a template.
    """
    if template == CHAT:
        return []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ or }}}} for a brace") from None
    found = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not re.fullmatch(COLUMN, name):
            shown = "{" + name[:50] + "}"
            raise ValueError(f"expected a column's name in braces, found {shown}; write {{{{ for a brace")
        found.append(name)
    return found


def check_template(template: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Check a template.

    Args:
        wanted: the columns that it must have, once each and in this order.
        known: all columns of a row.

    Raises:
        ValueError: it lacks one, has one twice or in another order, or names one that rows do not have.
    """
    found = template_columns(template)
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"rows have no column {unknown[0]!r}; they have {', '.join(known)}")
    if template != CHAT and [name for name in found if name in wanted] != list(wanted):
        listed = ", then ".join(f"{{{name}}}" for name in wanted)
        raise ValueError(f"expected exactly {listed}; other columns may stand anywhere")


def filled(template: str, row: Mapping[str, str], until: str | None = None) -> str:
    """Return a template with the values of a row; only the text before column `until`, if given."""
    text = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None and name == until:
            break
        text += row[name] if name is not None else ""
    return text
