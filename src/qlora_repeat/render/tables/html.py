"""Tables as HTML, for a notebook."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from qlora_repeat.render.escape import writable
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.write import Heading, heading_levels


def tables_html(tables: Sequence[Table]) -> str:
    """Return tables below each other, as part of a page."""
    environment = Environment(
        loader=PackageLoader("qlora_repeat.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["headings"] = all_headings
    return writable(environment.get_template("tables.html.j2").render(tables=tables))


def all_headings(table: Table) -> list[list[Heading]]:
    """Return the rows of headings above a table's columns, without the column of row names."""
    count = len(table.columns)
    return heading_levels(table, list(range(count)), [0] * count)
