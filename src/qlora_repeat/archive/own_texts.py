"""The texts in an archive that are not evidence: `pack` writes them, and readers may do what they say."""

import re
from collections.abc import Iterator
from pathlib import Path

from qlora_repeat.system.files import read_file
from qlora_repeat.system.printable import printable

_README = Path(__file__).with_name("readme.md.template")
_VERSION = re.compile(r"# Study \S+, packed by qlora-repeat ([\w.+-]{1,40})\n")
_LICENSE = re.compile(r"^Records and results have the license ([A-Za-z0-9.+-]{1,100})\. ", re.MULTILINE)
_DATA_INSIDE = (
    "The files in `data/` belong to\nwhoever packed them, and their license is not known: ask before you use "
    "or publish them. Base\nmodels are not included.\n"
)
_REQUIREMENT = re.compile(
    r" *#.*|[A-Za-z0-9._-]+(\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.+!_-]+( ; [\w.<>=!'\" ()-]+)?( \\)?"
    r"|    --hash=sha256:[0-9a-f]{64}( \\)?|",
    re.ASCII,
)
"""A line of a lock file; others could name another index, a file or a program."""
_LARGEST = 5_000_000
"""Bytes."""


def readme_text(label: str, version: str, license: str | None = None, *, has_data: bool = False) -> str:
    """Return the README of an archive of the study with this label, packed by this version of the kit.

    Earlier versions did not state the license.
    """
    name, at, variant = label.partition("@")
    template = _README.read_text("utf-8")
    text = template.format(label=label, study=f"{name}.toml{at}{variant}", version=version)
    if license is None:
        return text
    data = _DATA_INSIDE if has_data else "Data and base models are not included.\n"
    return f"{text}\nRecords and results have the license {license}. {data}"


def _readmes(text: str, label: str) -> Iterator[str]:
    """Yield the READMEs that `pack` may have written, with the version and license of this one."""
    if (packed_by := _VERSION.match(text)) is None:
        return
    yield readme_text(label, packed_by[1])
    if (found := _LICENSE.search(text)) is not None:
        for has_data in (False, True):
            yield readme_text(label, packed_by[1], found[1], has_data=has_data)


def check_texts(folder: Path, label: str) -> None:
    """Check that README, license, citation and lock files in a folder are like those that `pack` writes.

    Raises:
        ValueError: one is not; names it.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("lockfiles/*")]):
        if path.is_dir() or path.suffix == ".json":
            continue
        name, text = path.relative_to(folder).as_posix(), read_file(path, _LARGEST).decode("utf-8")
        if name == "README.md" and text not in _readmes(text, label):
            raise ValueError(f"{name} is not the text that `pack` writes")
        if path.suffix == ".txt" and not all(map(_REQUIREMENT.fullmatch, text.split("\n"))):
            raise ValueError(f"{name} has other lines than versions and hashes of packages")
        if printable(text) != text:
            raise ValueError(f"{name} has control or invisible characters")
