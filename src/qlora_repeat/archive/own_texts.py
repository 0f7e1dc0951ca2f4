"""The texts in an archive that are not evidence: `pack` writes them, and readers may do what they say."""

import re
from pathlib import Path

from qlora_repeat.system.files import read_file
from qlora_repeat.system.printable import printable

_README = Path(__file__).with_name("readme.md.template")
_VERSION = re.compile(r"# Study \S+, packed by qlora-repeat ([\w.+-]{1,40})\n")
_REQUIREMENT = re.compile(
    r" *#.*|[A-Za-z0-9._-]+(\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.+!_-]+( ; [\w.<>=!'\" ()-]+)?( \\)?"
    r"|    --hash=sha256:[0-9a-f]{64}( \\)?|",
    re.ASCII,
)
"""A line of a lock file; others could name another index, a file or a program."""
_LARGEST = 5_000_000
"""Bytes."""


def readme_text(label: str, version: str) -> str:
    """Return the README of an archive of the study with this label, packed by this version of the kit."""
    name, at, variant = label.partition("@")
    template = _README.read_text("utf-8")
    return template.format(label=label, study=f"{name}.toml{at}{variant}", version=version)


def check_texts(folder: Path, label: str) -> None:
    """Check that README, license, citation and lock files in a folder are like those that `pack` writes.

    Raises:
        ValueError: one is not; names it.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("lockfiles/*")]):
        if path.is_dir() or path.suffix == ".json":
            continue
        name, text = path.relative_to(folder).as_posix(), read_file(path, _LARGEST).decode("utf-8")
        packed_by = _VERSION.match(text)
        if name == "README.md" and not (packed_by and text == readme_text(label, packed_by[1])):
            raise ValueError(f"{name} is not the text that `pack` writes")
        if path.suffix == ".txt" and not all(map(_REQUIREMENT.fullmatch, text.split("\n"))):
            raise ValueError(f"{name} has other lines than versions and hashes of packages")
        if printable(text) != text:
            raise ValueError(f"{name} has control or invisible characters")
