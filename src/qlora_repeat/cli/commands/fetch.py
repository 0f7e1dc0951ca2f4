"""`qlora-repeat fetch`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, silence_libraries, study_argument, verbosity_options


@click.command("fetch")
@study_argument
@click.option(
    "--only", "models", multiple=True, metavar="MODEL", help="Only what this model needs; repeatable."
)
@cache_option
@verbosity_options
def command(study_file: str, models: tuple[str, ...], cache: Path | None, quiet: bool, verbose: bool) -> None:
    """Fetch a study's models and data into the cache, and verify their checksums.

    Files that are there already are verified again; an interrupted fetch resumes. The first fetch from a hub
    locks the checksums in studies/STUDY.lock; from then on, other bytes are refused.

    \b
    Example:
      qlora-repeat fetch pocket
    """
    silence_libraries(verbose, downloads=not quiet)
    from qlora_repeat.api.studies import fetch, load_study

    fetch(load_study(study_file, cache=cache), models=models, quiet=quiet)
