"""Find the file of a study, and say what its name means."""

import contextlib
import re
from pathlib import Path

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import PackageFile
from qlora_repeat.study.toml_file import read_toml
from qlora_repeat.study.workspace import ARCHIVE_MARK
from qlora_repeat.system.package_data import kit_path

_STUDIES = Path("studies")
CUT = re.compile("([1-9][0-9]{0,8})-steps(?:-([1-9][0-9]{0,8})-rows)?|([1-9][0-9]{0,8})-rows")
"""The part after @ that limits steps, rows or both."""


def study_folders() -> list[Path]:
    """Return the folders to search for a study: the current one, ``studies``, the kit's ``studies``."""
    here, kit = [Path(), _STUDIES], kit_path("studies")
    return here if _STUDIES.resolve() == kit.resolve() else [*here, kit]


def known_studies() -> dict[str, Path]:
    """Return the file of each study that can be given by name."""
    found: dict[str, Path] = {}
    for folder in study_folders():
        for path in sorted(folder.glob("*.toml")):
            if folder != Path() or _has_models(path):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def _has_models(path: Path) -> bool:
    """Return whether a TOML file may be a study; the current folder can contain other TOML files."""
    try:
        return bool({"models", "extends"} & read_toml(path).keys())
    except (OSError, UsageError):
        return False


def study_path(study: str) -> Path:
    """Return the file of a study given by name (``pocket``); a path (``elsewhere/mine.toml``) stays as it is.

    Raises:
        MissingError: no folder has it; the message lists the folders and the known studies.
    """
    name = split_name(study)[0]
    if name.endswith(".toml"):
        return Path(name)
    candidates = [folder / f"{name}.toml" for folder in study_folders()]
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.exists():
                return path
    raise no_such_study(f"{name}: no such study file; looked for {', '.join(map(str, candidates))}")


def no_such_study(message: str) -> MissingError:
    """Return the error that there is no such study, with those that there are."""
    return MissingError(f"{message}; there are {', '.join(known_studies()) or 'none'}")


def split_name(study: str) -> tuple[str, list[str]]:
    """Return the name or path of a study's file, and the parts after each @."""
    folder, slash, last = study.rpartition("/")
    name, *parts = last.split("@")
    return folder + slash + name, parts


def portable_name(study: str) -> str:
    """Return the study's name for others: without .toml if it is in ``studies``, and no absolute path."""
    path, parts = study_path(study), split_name(study)[1]
    inside = path.resolve().parent in (_STUDIES.resolve(), kit_path("studies").resolve())
    name = path.stem if inside else path.name if path.is_absolute() else str(path)
    return "@".join([name, *parts])


def archived_file(data: str, key: str, file: PackageFile) -> str:
    """Return the name in an archive of a user's file that a data set is made of; `key` is its key there."""
    return f"data/{data}/{key}{Path(file.file).suffix}"


def came_in_archive(study_file: Path) -> bool:
    """Return whether a study file is in an unpacked archive, so that whoever packed it wrote it."""
    folder = study_file.resolve().parent
    return folder.name == "studies" and (folder.parent / ARCHIVE_MARK).is_file()
