"""Reading an archive, which may be anybody's: whole and checked, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.archive.ro_crate import check_crate
from qlora_repeat.archive.zip_file import CRATE, ByteReport, extract
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.trial_result import TrialResult, read_results
from qlora_repeat.system.files import LARGEST_JSON, new_folder

_RUNS, _STUDIES, _RESULTS = "runs", "studies", "results.jsonl"


@dataclass(frozen=True)
class Unpacked:
    """A folder that an archive was unpacked to."""

    folder: Path
    label: str
    """The study, with what follows @."""
    files: int

    @property
    def runs(self) -> Path:
        """The folder of results."""
        return self.folder / _RUNS

    @property
    def study_file(self) -> str:
        """The study, as commands take it."""
        return _study_file(self.folder, self.label)

    def results(self) -> list[TrialResult]:
        """The collected results.

        Raises:
            UsageError: they are none; names the line.
        """
        return read_results(self.runs / self.label / _RESULTS)


def unpack(path: Path, folder: Path, report: ByteReport) -> Unpacked:
    """Makes a folder of what is in an archive, once all of it is checked.

    Raises:
        UsageError: there is something of that name already.
        MissingError: the archive is not as `pack` writes it; nothing is left behind.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder}: is there already; unpack to another folder, by --to")
    with new_folder(folder) as made:
        found = _unpacked(path, made, report)
    return Unpacked(folder, found.label, found.files)


@contextlib.contextmanager
def opened(path: Path, report: ByteReport = lambda done, total: None) -> Iterator[Unpacked]:
    """An archive unpacked for the block, to a temporary folder.

    Raises:
        MissingError: as `unpack`.
    """
    with tempfile.TemporaryDirectory(prefix="qlora-repeat-") as folder:
        yield _unpacked(path, Path(folder), report)


def _unpacked(path: Path, folder: Path, report: ByteReport) -> Unpacked:
    files = extract(path, folder, report)
    try:
        if files[CRATE].bytes > LARGEST_JSON:
            raise ValueError(f"{CRATE} is too large to be one")
        check_crate((folder / CRATE).read_bytes(), files)
        labels = [found.parent.name for found in (folder / _RUNS).glob(f"*/{_RESULTS}")]
        if len(labels) != 1:
            raise ValueError(f"it has collected results of {len(labels)} studies")
        if not (folder / _STUDIES / f"{labels[0].partition('@')[0]}.toml").is_file():
            raise ValueError(f"it has no study file of {labels[0]}")
    except ValueError as error:
        raise MissingError(
            f"{path}: not an archive as `qlora-repeat pack` writes it ({error}); ask who packed it"
        ) from None
    return Unpacked(folder, labels[0], len(files))


def study_of(folder: Path) -> str | None:
    """The study, as commands take it, of the archive that a trial's folder was unpacked from; or None."""
    folder = folder.resolve()
    for runs in folder.parents:
        if runs.name == _RUNS and (runs.parent / CRATE).is_file():
            return _study_file(runs.parent, folder.relative_to(runs).parts[0])
    return None


def _study_file(folder: Path, label: str) -> str:
    name, at, variant = label.partition("@")
    return f"{folder / _STUDIES / name}.toml{at}{variant}"
