"""Files that installed Python packages carry, found without importing these, or the user's own; verified."""

import importlib.util
import shlex
from pathlib import Path

from qlora_repeat.errors import MissingError
from qlora_repeat.study.data_sources import PackageFile
from qlora_repeat.system.hashing import file_digest
from qlora_repeat.system.package_data import kit_path


def package_folder(package: str, import_name: str) -> Path:
    """The folder of an installed package.

    Raises:
        MissingError: it is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(import_name) if import_name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            f"package {package} is not installed; install it with `python -m pip install --no-deps "
            f"--require-hashes -r {shlex.quote(str(kit_path('lockfiles/pocket.txt')))}`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def locate(wanted: PackageFile) -> Path:
    """The path of a file that a package carries, or of the user's own; not yet verified.

    Raises:
        MissingError: the package or the file is not there.
    """
    if wanted.package is None:
        if not Path(wanted.file).is_file():
            raise MissingError(f"{wanted.file}: no such file; the study file names it")
        return Path(wanted.file)
    import_name, _, inside = wanted.file.partition("/")
    path = package_folder(wanted.package, import_name) / inside
    if not path.is_file():
        raise MissingError(
            f"package {wanted.package} is installed without {wanted.file}: {path} is not there"
        )
    return path


def verified(wanted: PackageFile) -> Path:
    """The path of such a file, once its bytes are known to be the expected ones.

    Raises:
        MissingError: the package or file is not there, or its SHA-256 is another than the study says.
    """
    path = locate(wanted)
    found = file_digest(path)
    if found != wanted.sha256:
        mend = f"reinstall {wanted.package}" if wanted.package else "correct sha256, if this file is meant"
        raise MissingError(f"{path}: SHA-256 is {found}, the study expects {wanted.sha256}; {mend}")
    return path
