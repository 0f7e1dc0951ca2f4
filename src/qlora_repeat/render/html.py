"""Render the templates of HTML pages: the report, a verdict, tables in a notebook."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qlora_repeat.render.tables.table import Table
from qlora_repeat.system.printable import printable, printable_values


def render_html(template: str, **content: Any) -> str:
    """Return a page of `templates`: content is escaped, and invisible characters are shown as their codes."""
    return _environment().get_template(template).render(content)


def tables_html(tables: Sequence[Table]) -> str:
    """Return tables below each other, as part of a page."""
    return render_html("tables.html.j2", tables=tables)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qlora_repeat.render"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _json
    return environment


def _shown(value: Any) -> Any:
    """Return a value for a page; markup is the kit's own, such as its style and its drawings."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _json(value: Any, **_: Any) -> str:
    return json.dumps(printable_values(value), separators=(",", ":"))
