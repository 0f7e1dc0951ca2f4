"""`qlora-repeat unpack`."""

import shlex
from pathlib import Path

import click

from qlora_repeat.cli.options import byte_progress, quiet_option
from qlora_repeat.system.printable import say


@click.command("unpack")
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="New or empty folder.  [default: the name of the archive without .zip]",
)
@quiet_option
def command(archive: Path, folder: Path | None, quiet: bool) -> None:
    """Check an archive that somebody has packed, and unpack it to a new folder.

    Every name, size and checksum is checked first; if one is wrong, nothing is left. To read the results,
    give other commands --runs FOLDER/runs and the study FOLDER/studies/STUDY.toml.

    \b
    Example:
      qlora-repeat unpack pocket.zip
    """
    from qlora_repeat.archive.unpack import unpack

    with byte_progress("unpack", quiet) as report:
        found = unpack(archive, folder or archive.with_suffix(""), report)
    if found.ignored:
        say(f"ignored: {', '.join(found.ignored)}", error=True)
    if not quiet:
        rows = found.results()
        done = [row for row in rows if row.measured]
        say(f"{found.folder}: {found.files} files have the checksums that the archive states")
        say(f"study {found.label}: {len(done)} of {len(rows)} trials have results")
        if (found.folder / "data").is_dir():
            say("its data have no stated license: ask whoever packed them before you use or publish them")
        given = [found.study_file, "--runs", str(found.runs)]
        say(f"to read it: qlora-repeat status {shlex.join(given)}")
        if done:
            first = done[0]
            trial = found.runs / found.label / first.model / first.optimizer / f"trial-{first.trial}"
            say(f"to verify a trial: qlora-repeat verify {shlex.quote(str(trial))}")
