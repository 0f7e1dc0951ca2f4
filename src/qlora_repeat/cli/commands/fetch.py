"""`qlora-repeat fetch`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, silence_libraries, study_argument, verbosity_options


@click.command("fetch")
@study_argument
@click.option(
    "--only", "models", multiple=True, metavar="MODEL", help="What this model needs; may be repeated."
)
@cache_option
@verbosity_options
def command(study_file: str, models: tuple[str, ...], cache: Path | None, quiet: bool, verbose: bool) -> None:
    """Bring a study's models and data to the cache, and verify their checksums.

    What is there already is verified again; an interrupted fetch goes on with the rest. What comes from a hub
    is locked in studies/STUDY.lock at the first fetch, and other bytes are refused from then on.

    \b
    Example:
      qlora-repeat fetch pocket
    """
    silence_libraries(verbose, downloads=not quiet)
    from qlora_repeat.api.studies import fetch, load_study

    fetch(load_study(study_file, cache=cache), models=models, quiet=quiet)
