"""Write and read the file of an archive: a zip that has the same bytes for the same files.

Files are sorted by name and have one date. They are stored without compression: another version of a
compressor would give other bytes, and a reader need not trust any size. Readers trust nothing.
"""

import errno
import hashlib
import io
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import KeptFile
from qlora_repeat.study.workspace import ARCHIVE_MARK
from qlora_repeat.system.files import new_file

SUMS = "SHA256SUMS"
"""The file with a line for each other file, which `sha256sum -c` reads."""
CRATE = ARCHIVE_MARK
"""The file that describes the others (`qlora_repeat.archive.ro_crate`)."""
MOST_FILES = 100_000
"""A study of the paper's size has 800."""
LONGEST_NAME = 500

ByteReport = Callable[[int, int], None]
"""Called with the number of bytes done so far and in total."""

_PART = r"\w[\w.+@-]*"
_ARM = rf"runs/{_PART}/{_PART}/{_PART}"
_NUMBER = r"[1-9]\d{0,8}"
_KNOWN = re.compile(
    rf"{SUMS}|{re.escape(CRATE)}|README\.md|LICENSE|CITATION\.cff|fingerprints\.json"
    rf"|lockfiles/{_PART}\.txt"
    rf"|studies/{_PART}\.(toml|lock)"
    rf"|runs/{_PART}/(results\.jsonl|statistics\.json)"
    rf"|{_ARM}/trial-{_NUMBER}/(trace\.jsonl|(finetune|merge|evaluate|time)\.json)"
    rf"|{_ARM}/trial-{_NUMBER}/adapter/(adapter_config\.json|adapter_model\.safetensors)"
    rf"|runs/{_PART}/{_PART}/base/test-{_NUMBER}\.json"
    rf"|{_ARM}/attribution[\w.+@-]{{0,100}}\.json"
    rf"|tables/({_PART}/)*{_PART}\.(csv|html|json|jsonl|md|pdf|png|svg|tex)",
    re.ASCII,
)
"""The names that an archive may have: evidence. No code, settings, checkpoints, locks or cluster jobs.

(Older ones have fingerprints.json.)
"""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date of a zip."""
_UNIX = 3
_BLOCK = 2**20


@dataclass(frozen=True)
class Entry:
    """A file for an archive."""

    name: str
    content: bytes | Path
    kept: KeptFile
    """The digest and size that it must have when it is written."""


def text_entry(name: str, text: str) -> Entry:
    """Return an entry with this text, in UTF-8."""
    content = text.encode("utf-8")
    return Entry(name, content, KeptFile(hashlib.sha256(content).hexdigest(), len(content)))


def is_known(name: str) -> bool:
    """Return whether an archive may have a file of this name."""
    return len(name) <= LONGEST_NAME and _KNOWN.fullmatch(name) is not None


def write_archive(path: Path, entries: Iterable[Entry], report: ByteReport) -> None:
    """Write an archive of these files and their checksums atomically.

    Raises:
        MissingError: a file has changed since its entry was made.
    """
    files = sorted(entries, key=lambda entry: entry.name)
    sums = text_entry(SUMS, "".join(f"{each.kept.sha256}  {each.name}\n" for each in files))
    files = sorted([*files, sums], key=lambda entry: entry.name)
    done, total = 0, sum(entry.kept.bytes for entry in files)
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for entry in files:
            assert is_known(entry.name), entry.name
            info = zipfile.ZipInfo(entry.name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = entry.kept.bytes  # needed for files above 2 GiB
            content = entry.content
            with (
                io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
                archive.open(info, "w") as target,
            ):
                if _copy(source, target) != entry.kept:
                    raise MissingError(f"{content!s}: changed while it was packed; pack again")
            report(done := done + entry.kept.bytes, total)


def _copy(source: IO[bytes], target: IO[bytes]) -> KeptFile:
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        target.write(block)
        size += len(block)
    return KeptFile(digest.hexdigest(), size)


def extract(path: Path, folder: Path, report: ByteReport) -> dict[str, KeptFile]:
    """Write the files of an archive of any origin to an empty folder; return their digests and sizes.

    All names, kinds and sizes are checked before the first file is written, digests while files are written.
    Do not read any of these files before this function returns.

    Raises:
        MissingError: there is no such file, or `write_archive` would not write it like that.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such archive; `qlora-repeat pack` writes one")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            infos = _checked(archive.infolist(), path.stat().st_size)
            sums = _sums(archive.read(SUMS), infos.keys() - {SUMS})
            found: dict[str, KeptFile] = {}
            done, total = 0, sum(info.file_size for info in infos.values())
            for name, info in infos.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("xb") as written:
                    found[name] = _copy(source, written)
                if name != SUMS and found[name].sha256 != sums[name]:
                    raise ValueError(f"{name} does not have the checksum that {SUMS} gives")
                report(done := done + info.file_size, total)
            return found
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, struct.error, OSError) as error:
        reason = str(error) or "it is truncated"
        if isinstance(error, OSError):
            if error.errno != errno.EINVAL:
                raise
            reason = "it gives positions outside of the file"
        raise MissingError(
            f"{path}: not an archive of `qlora-repeat pack` ({reason}); download it again, and compare its "
            "SHA-256 with the published one"
        ) from None


def _checked(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an archive with this size by name, if all are plain files with known names.

    Raises:
        ValueError: an entry is not, two entries conflict, or the archive is too small for them.
    """
    if len(infos) > MOST_FILES:
        raise ValueError(f"it has {len(infos):,} files; at most {MOST_FILES:,} are read")
    for info in infos:
        # Compare the original name too, because zipfile cuts names at a NUL.
        if not is_known(info.orig_filename) or info.filename != info.orig_filename:
            raise ValueError(f"{info.orig_filename!r:.100} is not a file name that it may have")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"{info.filename} is not a regular file")
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{info.filename} is encrypted or compressed, so its size cannot be trusted")
    names = [info.filename for info in infos]
    for name, count in Counter(map(str.lower, names)).items():
        if count > 1:
            raise ValueError(f"it has {count} files named {name}")
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in sorted(folders.intersection(names)):
        raise ValueError(f"{name} is both a file and a folder")
    if (total := sum(info.file_size for info in infos)) > size:
        raise ValueError(f"its files have {total:,} bytes, but it has only {size:,}")
    for needed in (SUMS, CRATE):
        if needed not in names:
            raise ValueError(f"it has no {needed}")
    return {info.filename: info for info in infos}


def _sums(content: bytes, names: set[str]) -> dict[str, str]:
    """Return the checksums by name.

    Raises:
        ValueError: they are not exactly the checksums of the files with these names.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(content.decode("ascii").splitlines(), 1):
        fits = re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)
        if fits is None or fits[2] in sums:
            raise ValueError(f"{SUMS}, line {number}: expected the checksum of another file")
        sums[fits[2]] = fits[1]
    for name in sorted(sums.keys() ^ names):
        where = f"the archive but not in {SUMS}" if name in names else f"{SUMS} but not in the archive"
        raise ValueError(f"{name!r:.100} is in {where}")
    return sums
