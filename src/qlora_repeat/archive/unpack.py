"""Unpack and check an archive of any origin: completely, or not at all."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_repeat.archive.own_texts import check_texts
from qlora_repeat.archive.ro_crate import check_crate
from qlora_repeat.archive.zip_file import CRATE, FORMAT_FILE, ByteReport, extract
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.trial_result import TrialResult, read_results
from qlora_repeat.system.files import SET_TMPDIR, disk_errors, new_folder, read_file, temporary_folder

_RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Unpacked:
    """The folder of an unpacked archive."""

    folder: Path
    label: str
    """The study, with what follows @."""
    files: int
    """Number of files."""
    ignored: Sequence[str] = ()
    """Tables, figures and reports of an archive of an earlier format, which were not unpacked."""

    @property
    def runs(self) -> Path:
        """Return the folder of results."""
        return self.folder / "runs"

    @property
    def study_file(self) -> str:
        """Return the study as commands take it."""
        name, at, variant = self.label.partition("@")
        return f"{self.folder / 'studies' / name}.toml{at}{variant}"

    def results(self) -> list[TrialResult]:
        """Return the collected results.

        Raises:
            UsageError: a line is not a row of results; names the line.
        """
        return read_results(self.runs / self.label / _RESULTS)


def unpack(path: Path, folder: Path, report: ByteReport) -> Unpacked:
    """Unpack an archive to a new or empty folder, after all checks.

    Raises:
        UsageError: the folder has files, or somebody makes it during unpacking; it stays as it is.
        MissingError: the file is not an archive of `pack`, or the disk is full; then no folder is left.
    """
    other = "give another folder with --to"
    is_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if os.path.lexists(folder) and not is_empty:
        raise UsageError(f"{folder}: already exists; {other}")
    try:
        with disk_errors(folder, other), new_folder(folder, replace=False) as made:
            found = _unpacked(path, made, report)
    except FileExistsError as error:
        if error.filename != str(folder):
            raise
        raise UsageError(
            f"{folder}: somebody made it during unpacking; it stays as it is, nothing was unpacked; {other}"
        ) from None
    return replace(found, folder=folder)


@contextlib.contextmanager
def opened(path: Path, report: ByteReport = lambda done, total: None) -> Iterator[Unpacked]:
    """Yield an archive that is unpacked to a temporary folder for the block.

    Raises:
        MissingError: as `unpack`.
    """
    with temporary_folder() as folder:
        with disk_errors(folder, SET_TMPDIR):
            found = _unpacked(path, folder, report)
        yield found


def _unpacked(path: Path, folder: Path, report: ByteReport) -> Unpacked:
    extracted = extract(path, folder, report)
    files = extracted.files
    try:
        check_crate(read_file(folder / CRATE), files)
        labels = [found.parent.name for found in (folder / "runs").glob(f"*/{_RESULTS}")]
        if len(labels) != 1:
            raise ValueError(f"it has collected results of {len(labels)} studies, expected one")
        if not (folder / "studies" / f"{labels[0].partition('@')[0]}.toml").is_file():
            raise ValueError(f"it has no study file of {labels[0]}")
        if FORMAT_FILE in files:
            check_texts(folder, labels[0])
    except ValueError as error:
        raise MissingError(
            f"{path}: not an archive of `qlora-repeat pack` ({error}); ask whoever packed it"
        ) from None
    return Unpacked(folder, labels[0], len(files), extracted.ignored)


def study_of(folder: Path) -> str | None:
    """Return the study, as commands take it, of the unpacked archive that has a trial's folder, or None."""
    folder = folder.resolve()
    for runs in folder.parents:
        if runs.name == "runs" and (runs.parent / CRATE).is_file():
            return Unpacked(runs.parent, folder.relative_to(runs).parts[0], 0).study_file
    return None
