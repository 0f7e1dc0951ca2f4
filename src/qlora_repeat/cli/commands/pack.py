"""`qlora-repeat pack`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import byte_progress, quiet_option, workspace_argument
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say


@click.command("pack")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Archive to write, which ends in .zip.  [default: STUDY.zip in the folder of results]",
)
@click.option("--include-stale", is_flag=True, help="Also pack stale trials, as `collect` does.")
@click.option(
    "--include-private",
    is_flag=True,
    help="Also pack files with what looks like a token, an absolute path or the UUID of a GPU.",
)
@click.option(
    "--include-data",
    is_flag=True,
    help="Also pack your own data files, if you may publish them: their license is stated as unknown.",
)
@click.option(
    "--license",
    metavar="SPDX",
    default="Apache-2.0",
    show_default=True,
    help="License that you give to records and results.",
)
@click.option("--author", "authors", metavar="NAME", multiple=True, help="Who is to be cited; repeatable.")
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Also sign the archive with this SSH key: a private key, or a public key that an agent holds.",
)
@workspace_argument
@quiet_option
def command(
    out: Path | None,
    include_stale: bool,
    include_private: bool,
    include_data: bool,
    license: str,
    authors: tuple[str, ...],
    key: Path | None,
    workspace: Workspace,
    quiet: bool,
) -> None:
    """Put a study into one archive that others can cite and check: STUDY.zip.

    The archive has records, traces, adapters, collected results, lock files and the study file, described as
    an RO-Crate, with SHA256SUMS. The same input gives the same bytes. It has no base models, merged models,
    tables or logs, and your own data only with --include-data. Trials that are damaged, running or incomplete
    are left out and named, and so is the study's [cluster].

    \b
    Example:
      qlora-repeat pack pocket
    """
    import re

    from qlora_repeat.archive.pack import pack
    from qlora_repeat.archive.signature import require_key, sign
    from qlora_repeat.errors import UsageError
    from qlora_repeat.system.files import megabytes

    study = workspace.study
    path = out or workspace.runs / f"{study.label}.zip"
    if path.suffix != ".zip" or path.is_dir():
        raise UsageError(f"--out {path}: give a file that ends in .zip")
    if not re.fullmatch(r"[A-Za-z0-9.+-]{1,100}", license):
        raise UsageError(f"--license {license}: give an SPDX identifier, such as CC-BY-4.0")
    if key is not None:
        require_key(key)  # fail now, not after packing
    with byte_progress("pack", quiet) as report:
        packed = pack(
            workspace,
            path,
            report,
            include_stale=include_stale,
            include_private=include_private,
            include_data=include_data,
            license=license,
            authors=authors,
        )
    for line in packed.left_out:
        say(f"left out: {line}", error=True)
    for line in packed.private:
        say(f"look at it before you publish: {line}", error=True)
    if not quiet:
        size = megabytes(path.stat().st_size)
        say(f"{path}: {packed.trials} trials in {packed.files} files, {size}")
        say(f"SHA-256 {packed.sha256}")
        say(f"records and results have the license {license}; --license gives another")
    if key is not None:
        say(f"{sign(path, key)}: the signature, to publish with the archive")
