"""The archive file of a study: a zip that is the same bytes for the same files, read as a stranger's.

Files are stored as they are, in the order of their names and with one date: a compressor would give other
bytes in another version. They are hardly larger for it, for weights do not compress. It also leaves a reader
no size to take on trust.
"""

import errno
import hashlib
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import KeptFile
from qlora_repeat.system.files import new_file

SUMS = "SHA256SUMS"
"""The file that `sha256sum -c` reads: a line for each of the others."""
CRATE = "ro-crate-metadata.json"
"""The file that describes the others (`qlora_repeat.archive.ro_crate`)."""
MOST_FILES = 100_000
"""A study of the paper's size has 800."""
LONGEST_NAME = 500

ByteReport = Callable[[int, int], None]
"""Called with the bytes done so far, and the bytes in all."""

_PART = r"\w[\w.+@-]*"
_KNOWN = re.compile(
    rf"{SUMS}|{re.escape(CRATE)}|README\.md|LICENSE|CITATION\.cff|fingerprints\.json"
    rf"|lockfiles/{_PART}\.txt"
    rf"|studies/{_PART}\.(toml|lock)"
    rf"|runs/({_PART}/)+{_PART}\.(json|jsonl|md|safetensors)"
    rf"|tables/({_PART}/)*{_PART}\.(csv|html|json|jsonl|md|pdf|png|svg|tex)",
    re.ASCII,
)
"""What an archive may hold: data, in places where nothing is run or read as settings of the kit."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first date that a zip can tell."""
_UNIX = 3
_BLOCK = 2**20


@dataclass(frozen=True)
class Entry:
    """A file for an archive."""

    name: str
    content: bytes | Path
    kept: KeptFile
    """What it must be when it is written."""


def text_entry(name: str, text: str) -> Entry:
    """A file for an archive, in UTF-8."""
    content = text.encode("utf-8")
    return Entry(name, content, KeptFile(hashlib.sha256(content).hexdigest(), len(content)))


def is_known(name: str) -> bool:
    """Whether an archive may have a file of this name."""
    return len(name) <= LONGEST_NAME and _KNOWN.fullmatch(name) is not None


def write_archive(path: Path, entries: Iterable[Entry], report: ByteReport) -> None:
    """Writes an archive of these files and of their checksums, at once: it is whole or not there.

    Raises:
        MissingError: a file is no longer what its entry says.
    """
    files = sorted(entries, key=lambda entry: entry.name)
    files.append(text_entry(SUMS, "".join(f"{each.kept.sha256}  {each.name}\n" for each in files)))
    files.sort(key=lambda entry: entry.name)
    done, total = 0, sum(entry.kept.bytes for entry in files)
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for entry in files:
            assert is_known(entry.name), entry.name
            info = zipfile.ZipInfo(entry.name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = entry.kept.bytes  # or one of over 2 GiB cannot be written
            with archive.open(info, "w") as target:
                if isinstance(entry.content, bytes):
                    target.write(entry.content)
                elif _copy(entry.content, target) != entry.kept:
                    raise MissingError(f"{entry.content}: changed while it was packed; pack again")
            report(done := done + entry.kept.bytes, total)


def _copy(source: Path, target: IO[bytes]) -> KeptFile:
    with source.open("rb") as file:
        return _stream(file, target)


def _stream(source: IO[bytes], target: IO[bytes]) -> KeptFile:
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        target.write(block)
        size += len(block)
    return KeptFile(digest.hexdigest(), size)


def extract(path: Path, folder: Path, report: ByteReport) -> dict[str, KeptFile]:
    """Writes the files of an archive, which may be anybody's, below an empty folder; returns what they are.

    Names, kinds and sizes of all files are checked before the first is written, digests while they are.
    Nothing that is written may be read by anyone before this returns.

    Raises:
        MissingError: there is no such file, or it is in anything not as `write_archive` writes it.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such archive; `qlora-repeat pack` writes one")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            infos = _checked(archive.infolist(), path.stat().st_size)
            sums = _sums(archive.read(SUMS), infos)
            found: dict[str, KeptFile] = {}
            done, total = 0, sum(info.file_size for info in infos.values())
            for name, info in infos.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("xb") as written:
                    found[name] = _stream(source, written)
                if name != SUMS and found[name].sha256 != sums[name]:
                    raise ValueError(f"{name} has other bytes than {SUMS} says")
                report(done := done + info.file_size, total)
            return found
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, struct.error) as error:
        raise _refusal(path, str(error) or "it ends too early") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _refusal(path, "its parts are said to lie outside of it") from None


def _refusal(path: Path, reason: str) -> MissingError:
    return MissingError(
        f"{path}: not an archive as `qlora-repeat pack` writes it ({reason}); get it again, and compare its "
        "SHA-256 with the one that was published"
    )


def _checked(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive of that size by their names, once all are plain, known, and can be in it.

    Raises:
        ValueError: one is not.
    """
    if len(infos) > MOST_FILES:
        raise ValueError(f"it has {len(infos):,} files; at most {MOST_FILES:,} are read")
    for info in infos:
        # The name as it stands there: zipfile cuts it at a NUL, for one.
        if not is_known(info.orig_filename) or info.filename != info.orig_filename:
            raise ValueError(f"{info.orig_filename!r:.100} is not the name of a file that it may hold")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"{info.filename} is a link, or something else that is no file")
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{info.filename} is encrypted or compressed, so that its size is only a claim")
    names = [info.filename for info in infos]
    twice, count = Counter(name.lower() for name in names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"{twice} is there {count} times")
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    if both := folders.intersection(names):
        raise ValueError(f"{min(both)} is a file and a folder")
    if (total := sum(info.file_size for info in infos)) > size:
        raise ValueError(f"its files claim {total:,} bytes, and it has {size:,}")
    for needed in (SUMS, CRATE):
        if needed not in names:
            raise ValueError(f"it has no {needed}")
    return {info.filename: info for info in infos}


def _sums(content: bytes, names: Mapping[str, object]) -> dict[str, str]:
    """The checksums, once they are of exactly the files that are there.

    Raises:
        ValueError: they are not.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(content.decode("ascii").splitlines(), 1):
        fits = re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)
        if fits is None or fits[2] in sums:
            raise ValueError(f"{SUMS}, line {number}: not the checksum of one more file")
        sums[fits[2]] = fits[1]
    if unlisted := names.keys() - sums.keys() - {SUMS}:
        raise ValueError(f"{min(unlisted)} is not listed in {SUMS}")
    if missing := sums.keys() - names.keys():
        raise ValueError(f"{min(missing)!r:.100} is listed in {SUMS}, and not there")
    if SUMS in sums:
        raise ValueError(f"{SUMS} lists itself")
    return sums
