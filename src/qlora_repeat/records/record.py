"""Records: the JSON file that a stage writes last, when all files that it names are on disk.

A record contains its own digest, and the digest and size of each file that the stage leaves. So a flipped bit
in any of them is noticed.
"""

import datetime
import json
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_repeat.errors import MissingError
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.system.files import json_text, parse_json, read_file, write_text
from qlora_repeat.system.hashing import json_digest, known_digest, once
from qlora_repeat.system.parallel import in_parallel

FORMAT = 2


@dataclass(frozen=True)
class KeptFile:
    """The digest and size of a file when its stage ended."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Record:
    """The inputs, outputs and files of a stage; where and when it ran, and for how long."""

    stage: str
    trial: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    files: dict[str, KeptFile]
    """The files that the stage left, by path relative to the trial's folder."""
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
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_record(path: Path, record: Record) -> None:
    """Write a record; from then on, the stage is done."""
    write_text(path, _text(record))


def read_record(path: Path) -> Record | None:
    """Return a record, or None if there is none.

    Raises:
        MissingError: the file is not a record, or was changed after it was written.
    """
    try:
        return once(_read, path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: not a readable record ({reason})") from None


def keep(path: Path) -> KeptFile:
    """Return the digest and size of a file, for a record."""
    return KeptFile(known_digest(path), path.stat().st_size)


def damages(folder: Path, files: dict[str, KeptFile], *, rehash: bool = True) -> dict[Path, str | None]:
    """Return for each recorded file of a trial how it differs from the record, or None if it does not.

    Without `rehash`, only check that the files exist and have the recorded sizes.
    """
    paths = {folder / name: kept for name, kept in files.items()}
    size = sum(kept.bytes for kept in files.values()) if rehash else 0
    found = in_parallel(lambda path: damaged_file(path, paths[path], rehash=rehash), list(paths), size)
    return dict(zip(paths, found, strict=True))


def damaged_file(path: Path, kept: KeptFile, *, rehash: bool = True) -> str | None:
    """Return one line on how a file differs from what was recorded, or None; `rehash` as in `damages`."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path}: not a regular file"
        size = found.st_size
        if size != kept.bytes:
            return f"{path}: {size:,} bytes (recorded: {kept.bytes:,})"
        same = not rehash or known_digest(path) == kept.sha256
        return None if same else f"{path}: not the bytes that were recorded"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _text(record: Record) -> str:
    """Return the only valid text of a record."""
    files = {name: vars(file) for name, file in record.files.items()}
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **vars(record), "files": files}))
    return json_text({**plain, "digest": json_digest(plain)})


def _read(path: Path) -> Record:
    text = read_file(path)
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    found = content.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"format {found!r}; this version of the kit reads format {FORMAT}"[:100])
    digest = content.pop("digest", None)
    plain = {"format": FORMAT, **content}
    if digest != json_digest(plain):
        raise ValueError("changed after it was written: its digest does not match")
    for name in sorted(content.keys() ^ _KINDS.keys()):
        raise ValueError(f"{'no' if name in _KINDS else 'unknown'} key {name[:60]!r}")
    for name, kinds in _KINDS.items():
        if type(content[name]) not in kinds:
            raise ValueError(f"{name} is {str(content[name])[:60]!r}")
    files = {name: _kept(name, file) for name, file in content.pop("files").items()}
    if json_text({**plain, "digest": digest}).encode() != text:  # spaces, key order, number formats
        raise ValueError("changed after it was written")
    return Record(**respelled(content), files=files)


def _kept(name: str, file: Any) -> KeptFile:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name:
        raise ValueError(f"{name[:60]!r} points outside the trial's folder")
    plain = isinstance(file, dict) and file.keys() == {"sha256", "bytes"}
    if not plain or type(file["sha256"]) is not str or type(file["bytes"]) is not int:
        raise ValueError(f"file {name[:60]!r}: expected exactly the keys sha256 and bytes")
    return KeptFile(**file)
