"""The reference of the command line, docs/commands.md, from the help of the commands themselves.

``python -m qlora_repeat.cli.reference``, run in the checkout, writes it, the same on any terminal.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from qlora_repeat.cli.main import COMMANDS, GROUPS, cli
from qlora_repeat.system.files import write_text
from qlora_repeat.system.printable import say

PAGE = Path("docs/commands.md")
_WIDTH = 120
_BLOCK = "\b\n"
"""Before a paragraph whose lines click leaves as they are."""


def reference() -> str:
    """Return all commands: what each does, how it is called, its arguments and options, and an example."""
    with click.Context(cli, info_name="qlora-repeat", **cli.context_settings) as context:
        parts = list(_introduction())
        for name in COMMANDS:
            command = cli.resolve_command(context, [name])[1]
            assert command is not None, f"{name} is a command: COMMANDS names it"
            with click.Context(command, info_name=name, parent=context) as own:
                parts += _chapter(name, command, own)
    return "\n\n".join(parts) + "\n"


def _introduction() -> Iterator[str]:
    yield "# The command line"
    yield _filled(
        "Written by `python -m qlora_repeat.cli.reference` from what the commands themselves say with "
        "`--help`. What STUDY and TRIAL may be is in the [README](../README.md#the-command-line)."
    )
    for title, commands in GROUPS.items():
        rows = [f"| [`{name}`](#{name}) | {short} |" for name, short in commands.items()]
        yield "\n".join([f"| {title} | |", "|:--|:--|", *rows])
    yield from _paragraphs(cli.help)
    yield _filled(str(cli.epilog))


def _chapter(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {name}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"    {context.command_path} {usage}"
    yield from _paragraphs(command.help)
    # Those of arguments and of --help say nothing new.
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    told = [(option, help) for option, help in filter(None, records) if help and option != "--help"]
    yield "\n".join(f"- `{option}`: {' '.join(help.split())}" for option, help in told)


def _paragraphs(help: str | None) -> Iterator[str]:
    """Yield the paragraphs of a command's help; what follows a line with a colon is code."""
    for paragraph in inspect.cleandoc(help or "").split("\n\n"):
        if paragraph.startswith(_BLOCK):
            title, *lines = paragraph.removeprefix(_BLOCK).split("\n")
            yield title
            yield "\n".join(f"    {line.strip()}" for line in lines)
        else:
            yield _filled(re.sub(r"\s+", " ", paragraph))


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    write_text(PAGE, reference())
    say(PAGE)
