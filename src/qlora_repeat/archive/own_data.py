"""The user's own files that a study needs: `pack` names them, and adds those of data on request."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.archive.zip_file import Entry, is_known
from qlora_repeat.assets.package_files import locate
from qlora_repeat.assets.pins import found_of
from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import keep
from qlora_repeat.study.data_sources import PackageFile, is_own_task
from qlora_repeat.study.finding import archived_file
from qlora_repeat.study.workspace import Workspace


@dataclass(frozen=True)
class OwnFile:
    """A file of the user that a data set is made of."""

    data: str
    key: str
    """Its key in the study file."""
    file: PackageFile

    @property
    def entry(self) -> str:
        """Its name in an archive."""
        return archived_file(self.data, self.key, self.file)


def own_files(workspace: Workspace) -> Iterator[OwnFile]:
    """Yield the files of the user that data sets of a study are made of."""
    for name in dict.fromkeys(model.data for model in workspace.study.models.values()):
        for key, file in vars(workspace.study.data[name]).items():
            if isinstance(file, PackageFile) and file.package is None:
                yield OwnFile(name, key, file)


def known_digest_of(workspace: Workspace, own: OwnFile) -> str | None:
    """Return the SHA-256 of a file by the study or its lock file; None if neither has it."""
    locked = found_of(workspace, "data", own.data).files.get(own.key)
    return own.file.sha256 or (locked.digest if locked else None)


def own_data_entries(workspace: Workspace) -> Iterator[Entry]:
    """Yield an entry for each such file.

    Raises:
        MissingError: a file is missing, or is not the one that was fetched, which trials were made from.
    """
    for own in own_files(workspace):
        path, expected = locate(own.file), known_digest_of(workspace, own)
        kept = keep(path)
        if kept.sha256 != expected:
            used = expected or "a file that is not known"
            raise MissingError(
                f"{path}: SHA-256 is {kept.sha256}, but the study used {used}; put that file there, or pack "
                "without --include-data"
            )
        if not is_known(own.entry):
            raise MissingError(f"{path}: an archive cannot have data in a file of this kind; pack without it")
        yield Entry(own.entry, path.resolve(), kept)


def not_included(workspace: Workspace, *, data: bool) -> Iterator[str]:
    """Yield a line for each file or folder of the user that is not in an archive; `data` are in it or not."""
    study = workspace.study
    for own in () if data else own_files(workspace):
        name = Path(own.file.file).name
        yield f"data {own.data}: {name} is your own file; --include-data adds it"
    for name in dict.fromkeys(model.base for model in study.models.values()):
        base = study.bases[name]
        given = [file.file for file in (base.gguf, base.tokenizer) if file and file.package is None]
        if base.folder is not None or given:
            what = Path(base.folder.path if base.folder else given[0]).name
            yield f"base {name}: {what} is your own; whoever runs trials again needs it from you"
    for task in filter(is_own_task, study.evaluation.lm_eval):
        yield f"benchmark {Path(task).name}: it is your own; whoever measures it again needs it from you"
