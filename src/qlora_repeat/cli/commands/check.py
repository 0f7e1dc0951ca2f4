"""`qlora-repeat check`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import byte_progress, cache_option, output, runs_option, study_argument
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.system.printable import one_line, say


@click.command("check")
@study_argument
@runs_option
@cache_option
@click.option(
    "--signer",
    type=click.Path(path_type=Path),
    metavar="PUBLIC_KEY",
    help="For an archive: a file with the SSH public key that must have signed it (STUDY.zip.sig).",
)
@click.option("-q", "--quiet", is_flag=True, help="Show problems only.")
def command(study_file: str, runs: Path | None, cache: Path | None, signer: Path | None, quiet: bool) -> None:
    """Hash again every file of a study's records, models and data, and name what is damaged.

    The exit code is 3 if anything is damaged; `qlora-repeat run` then rebuilds what it can. STUDY may be an
    archive made by `pack`, STUDY.zip: its checksums and records are checked, and whether its results follow
    from the records.

    \b
    Example:
      qlora-repeat check pocket
    """
    if study_file.endswith(".zip"):
        _archive(Path(study_file), cache, signer, quiet)
        return
    if signer is not None:
        raise UsageError("--signer is for an archive, STUDY.zip; a study has no signature")
    from rich.progress import Progress

    from qlora_repeat.analysis.integrity import check
    from qlora_repeat.api.colors import colored
    from qlora_repeat.api.progress import console
    from qlora_repeat.study.loading import open_workspace

    workspace, out = open_workspace(study_file, runs=runs, cache=cache), console(quiet)
    with Progress(console=out, transient=True, disable=not out.is_interactive) as bars:
        task = bars.add_task("check", total=None)
        checked = check(workspace, lambda done, total: bars.update(task, completed=done, total=total))
    shown = output()
    for line in checked.problems:
        shown.print(colored(one_line(line), "damaged"))
    if not quiet:
        for line in checked.notes:
            shown.print(one_line(f"note: {line}"))
    if checked.problems:
        looked = checked.files + checked.inputs
        damaged = len({file.path for file in looked if file.problem is not None})
        raise MissingError(
            f"study {workspace.study.label}: {damaged} of {len({f.path for f in looked})} files are damaged"
        )
    if not quiet:
        files, inputs = ({looked.path for looked in part} for part in (checked.files, checked.inputs))
        whole = (
            f"{len(files)} files of {checked.trials} trials are as their records say, "
            f"and so are {len(inputs)} files of models and data"
        )
        shown.print(colored(whole, "done"))


def _archive(path: Path, cache: Path | None, signer: Path | None, quiet: bool) -> None:
    """Check an archive, unpacked to a temporary folder that no message names."""
    from qlora_repeat.archive.check import check_archive
    from qlora_repeat.archive.unpack import opened

    signed = None
    if signer is not None:
        from qlora_repeat.archive.signature import check_signature

        signed = check_signature(path, signer)
    with byte_progress("check", quiet) as report, opened(path, report) as unpacked:
        checked = check_archive(unpacked, cache)
    if unpacked.ignored and not quiet:
        say(f"ignored: {', '.join(unpacked.ignored)}", error=True)
    for line in checked.problems:
        say(line.replace(f"{unpacked.folder}/", f"{path}: ").partition("; it came in an archive")[0])
    if checked.problems:
        raise MissingError(
            f"{path}: the checksums are right, but its contents contradict each other; ask who packed it"
        )
    if not quiet:
        say(
            f"{path}: {unpacked.files} files have the checksums that it states; the records of "
            f"{checked.trials} trials match their files, and the collected results match the records"
        )
        if signed is not None:
            say(f"signed with {signed}, which is in {signer}")
