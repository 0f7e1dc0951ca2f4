"""Records: the JSON that a stage leaves last, once all that it names is on disk.

A record carries its own digest, and the digest and size of each file that the stage left and keeps: one bit
flipped in any of them is noticed.
"""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_repeat.errors import MissingError
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.system.files import LARGEST_JSON, json_text, megabytes, parse_json, write_text
from qlora_repeat.system.hashing import json_digest, known_digest, once

FORMAT = 2


@dataclass(frozen=True)
class KeptFile:
    """A file as a stage left it."""

    sha256: str
    bytes: int
    """Its size."""


@dataclass(frozen=True)
class Record:
    """What a stage used, gave and left; where, when and how long."""

    stage: str
    trial: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    files: dict[str, KeptFile]
    """The files that the stage left and keeps, by their paths in the trial's folder."""
    fingerprint: dict[str, Any]
    started: str
    finished: str
    seconds: float


_KINDS: dict[str, tuple[type, ...]] = {
    "stage": (str,),
    "trial": (str,),
    "inputs": (dict,),
    "outputs": (dict,),
    "files": (dict,),
    "fingerprint": (dict,),
    "started": (str,),
    "finished": (str,),
    "seconds": (float, int),
}


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_record(path: Path, record: Record) -> None:
    """Writes a record; the stage counts as done from then on."""
    write_text(path, _text(record))


def read_record(path: Path) -> Record | None:
    """Reads a record, or None if there is none.

    Raises:
        MissingError: the file is not a record, or not byte for byte as it was written; says why.
    """
    try:
        return once(_read, path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(
            f"{path}: not a readable record ({reason}); `qlora-repeat run` runs its stage again"
        ) from None


def keep(path: Path) -> KeptFile:
    """A file as it is now, for a record."""
    return KeptFile(known_digest(path), path.stat().st_size)


def damaged_file(path: Path, kept: KeptFile, *, rehash: bool = True) -> str | None:
    """How a file is not as it was recorded, in a line that names it; None if it is.

    Without `rehash` only its presence and size are looked at: quick, and blind to a flipped bit.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            return f"{path}: not a file"
        if size != kept.bytes:
            return f"{path}: {size:,} bytes, where {kept.bytes:,} were recorded"
        same = not rehash or known_digest(path) == kept.sha256
        return None if same else f"{path}: not the bytes that were recorded"
    except FileNotFoundError:
        return f"{path}: is gone"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _text(record: Record) -> str:
    """The one way in which a record is written."""
    files = {name: vars(file) for name, file in record.files.items()}
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **vars(record), "files": files}))
    return json_text({**plain, "digest": json_digest(plain)})


def _read(path: Path) -> Record:
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"larger than {megabytes(LARGEST_JSON)}")
    return _parse(path.read_bytes())


def _parse(text: bytes) -> Record:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    found = content.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"of format {found!r}, this version of the kit reads {FORMAT}"[:100])
    digest = content.pop("digest", None)
    plain = {"format": FORMAT, **content}
    if digest != json_digest(plain):
        raise ValueError("changed since it was written: its own digest does not fit")
    for name in sorted(content.keys() ^ _KINDS.keys()):
        raise ValueError(f"{'no' if name in _KINDS else 'unknown'} key {name[:60]!r}")
    for name, kinds in _KINDS.items():
        if type(content[name]) not in kinds:
            raise ValueError(f"{name} is {str(content[name])[:60]!r}")
    files = {name: _kept(name, file) for name, file in content.pop("files").items()}
    if json_text({**plain, "digest": digest}).encode() != text:  # blanks, the order of keys, how numbers are
        raise ValueError("changed since it was written")
    return Record(**respelled(content), files=files)


def _kept(name: str, file: Any) -> KeptFile:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name:
        raise ValueError(f"{name[:60]!r} leads out of the trial's folder")
    plain = isinstance(file, dict) and file.keys() == {"sha256", "bytes"}
    if not plain or type(file["sha256"]) is not str or type(file["bytes"]) is not int:
        raise ValueError(f"of file {name[:60]!r} not just sha256 and bytes are given")
    return KeptFile(**file)
