"""Render the templates of HTML pages: the report, a verdict, tables in a notebook."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qlora_repeat.render.escape import writable
from qlora_repeat.render.tables.table import Table


def render_html(template: str, **content: Any) -> str:
    """Return a page of `templates`: content is escaped, and lone surrogates are shown as their codes."""
    return writable(_environment().get_template(template).render(content))


def tables_html(tables: Sequence[Table]) -> str:
    """Return tables below each other, as part of a page."""
    return render_html("tables.html.j2", tables=tables)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qlora_repeat.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment
