"""`qlora-repeat fetch`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import cache_option, silence_libraries, study_argument, verbosity_options


@click.command("fetch")
@study_argument
@cache_option
@verbosity_options
def command(study_file: str, cache: Path, quiet: bool, verbose: bool) -> None:
    """Bring a study's models and data to the cache, and verify their checksums.

    What is there already is verified again; an interrupted fetch goes on with the rest.

    \b
    Example:
      qlora-repeat fetch pocket
    """
    silence_libraries(verbose)
    from qlora_repeat.fetch import fetch
    from qlora_repeat.study import load_study

    fetch(load_study(study_file), cache, lambda line: None if quiet else click.echo(line))
