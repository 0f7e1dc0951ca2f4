"""A console of rich that prints text of any origin."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from qlora_repeat.system.printable import printable


class PrintableConsole(Console):
    """Show invisible characters of texts as codes; the console's own colors and movements stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
