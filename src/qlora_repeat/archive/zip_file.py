"""Write and read the file of an archive: a zip that has the same bytes for the same files.

Files are sorted by name and have one date. They are stored without compression: another version of a
compressor would give other bytes, and a reader need not trust any size. Readers trust nothing.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import KeptFile
from qlora_repeat.study.workspace import ARCHIVE_MARK
from qlora_repeat.system.files import create, make_folder, new_file, open_regular
from qlora_repeat.system.zip_format import Header, directory, local_header, open_zip

SUMS = "SHA256SUMS"
"""The file with a line for each other file, which `sha256sum -c` reads."""
CRATE = ARCHIVE_MARK
"""The file that describes the others (`qlora_repeat.archive.ro_crate`)."""
FORMAT_FILE = "FORMAT"
FORMAT = "qlora-repeat archive, format 2\n"
"""The content of this file. Archives of format 1 have no such file."""
MOST_FILES = 20_000
"""A study of the paper's size has 800."""
LONGEST_NAME = 500

ByteReport = Callable[[int, int], None]
"""Called with the number of bytes done so far and in total."""

_PART = r"\w[\w.+@~-]*"
_ARM = rf"runs/{_PART}/{_PART}/{_PART}"
_NUMBER = r"[1-9]\d{0,8}"
_KNOWN = re.compile(
    rf"{SUMS}|{re.escape(CRATE)}|{FORMAT_FILE}|README\.md|LICENSE|CITATION\.cff"
    rf"|lockfiles/{_PART}\.txt"
    rf"|studies/{_PART}\.(toml|lock)"
    rf"|runs/{_PART}/(results\.jsonl|statistics\.json)"
    r"|runs/self-test-[0-9a-f]{12}\.json"
    rf"|{_ARM}/trial-{_NUMBER}/(trace\.jsonl|(finetune|average|merge|evaluate|time|benchmark)\.json)"
    rf"|{_ARM}/trial-{_NUMBER}/(adapter|last-steps)/(adapter_config\.json|adapter_model\.safetensors)"
    rf"|runs/{_PART}/{_PART}/base/test-{_NUMBER}\.json"
    rf"|{_ARM}/attribution[\w.+@-]{{0,100}}\.json"
    rf"|data/{_PART}/[a-z_]{{1,40}}\.(csv|json|jsonl|parquet|txt)",
    re.ASCII,
)
"""The names that an archive may have: evidence, and data if the packer adds them. No code, settings,
checkpoints, locks or cluster jobs, and nothing that a browser or LaTeX would run: tables and reports can be
made from the results."""
_EARLIER = re.compile(
    rf"fingerprints\.json|tables/({_PART}/)*{_PART}\.(csv|html|json|jsonl|md|pdf|png|svg|tex)", re.ASCII
)
"""Other names in archives of earlier formats, whose files are not used."""

_BLOCK = 2**20
_NOT_A_ZIP = (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, struct.error, OverflowError)


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
        MissingError: a file has changed since its entry was made, or there are too many files.
    """
    files = sorted(entries, key=lambda entry: entry.name)
    sums = text_entry(SUMS, "".join(f"{each.kept.sha256}  {each.name}\n" for each in files))
    files = sorted([*files, sums], key=lambda entry: entry.name)
    if len(files) > MOST_FILES:
        raise MissingError(f"{path}: {len(files):,} files to pack; an archive can have {MOST_FILES:,}")
    done, total = 0, sum(entry.kept.bytes for entry in files)
    headers: list[Header] = []
    with new_file(path) as file:
        for entry in files:
            assert is_known(entry.name), entry.name
            content, start = entry.content, file.tell()
            header = Header(entry.name, 0, entry.kept.bytes, start)
            file.write(local_header(header))
            with io.BytesIO(content) if isinstance(content, bytes) else open_regular(content) as source:
                kept, crc = _copy(source, file)
            if kept != entry.kept:
                raise MissingError(f"{content!s}: changed while it was packed; pack again")
            headers.append(replace(header, crc=crc))
            end = file.tell()
            file.seek(start)
            file.write(local_header(headers[-1]))
            file.seek(end)
            report(done := done + entry.kept.bytes, total)
        file.write(directory(headers, file.tell()))


def _copy(source: IO[bytes], target: IO[bytes] | None) -> tuple[KeptFile, int]:
    """Copy a file, if there is a target, and return its digest and size, and its CRC-32."""
    digest, size, crc = hashlib.sha256(), 0, 0
    while block := source.read(_BLOCK):
        digest.update(block)
        crc = zlib.crc32(block, crc)
        if target is not None:
            target.write(block)
        size += len(block)
    return KeptFile(digest.hexdigest(), size), crc


@dataclass(frozen=True)
class Extracted:
    """The files of an archive."""

    files: dict[str, KeptFile]
    """The digest and size of each file, also of those that were not written."""
    ignored: list[str]
    """Tables, figures and reports of an archive of an earlier format, which were not written."""


def extract(path: Path, folder: Path, report: ByteReport) -> Extracted:
    """Write the files of an archive of any origin to an empty folder.

    All names, kinds, sizes and headers are checked before the first file is written, digests while files are
    written. Do not read any of these files before this function returns. An archive of the current format
    must have the bytes that `write_archive` writes; one of an earlier format may be from another program.

    Raises:
        MissingError: there is no such file, or it is not such an archive.
    """
    try:
        with open_regular(path, follow=True) as file, open_zip(file) as archive:
            size = os.fstat(file.fileno()).st_size
            current = _is_current(archive)
            infos = _checked(archive.infolist(), size, current)
            if current:
                _require_canonical(file, infos)
            sums = _sums(archive.read(SUMS), infos.keys() - {SUMS})
            found, ignored = dict[str, KeptFile](), list[str]()
            done, total = 0, sum(info.file_size for info in infos.values())
            for name, info in sorted(infos.items()):
                with archive.open(info) as source, contextlib.ExitStack() as opened:
                    target = None
                    if _EARLIER.fullmatch(name):
                        ignored.append(name)
                    else:
                        make_folder((folder / name).parent)
                        target = opened.enter_context(create(folder / name))
                    found[name], _ = _copy(source, target)
                if name != SUMS and found[name].sha256 != sums[name]:
                    raise ValueError(f"{name} does not have the checksum that {SUMS} gives")
                report(done := done + info.file_size, total)
            return Extracted(found, ignored)
    except (FileNotFoundError, IsADirectoryError):
        raise MissingError(f"{path}: no such archive; `qlora-repeat pack` writes one") from None
    except (*_NOT_A_ZIP, OSError) as error:
        reason = str(error) or "it is truncated"
        if isinstance(error, OSError):
            if error.errno not in (errno.EINVAL, errno.ENXIO):
                raise
            seeks = error.errno == errno.EINVAL
            reason = "it gives positions outside of the file" if seeks else "not a regular file"
        raise MissingError(
            f"{path}: not an archive of `qlora-repeat pack` ({reason}); download it again, and compare its "
            "SHA-256 with the published one"
        ) from None


def _is_current(archive: zipfile.ZipFile) -> bool:
    """Return whether an archive has the current format, by the file that names it.

    Raises:
        ValueError: it has a format that this version of the kit does not know.
    """
    if FORMAT_FILE not in archive.namelist():
        return False
    with archive.open(FORMAT_FILE) as file:
        if file.read(len(FORMAT) + 1) != FORMAT.encode():
            raise ValueError(
                f"its {FORMAT_FILE} is not {FORMAT.strip()!r}, which this version of the kit reads"
            )
    return True


def _require_canonical(file: BinaryIO, infos: dict[str, zipfile.ZipInfo]) -> None:
    """Check that an archive has no byte but those that `write_archive` writes for these files.

    Raises:
        ValueError: there is something before, between or behind the files, or in a header.
    """
    headers, position = list[Header](), 0
    for name, info in sorted(infos.items()):
        headers.append(Header(name, info.CRC, info.file_size, position))
        wanted = local_header(headers[-1])
        _require_bytes(file, position, wanted)
        position += len(wanted) + info.file_size
    _require_bytes(file, position, directory(headers, position), last=True)


def _require_bytes(file: BinaryIO, position: int, wanted: bytes, *, last: bool = False) -> None:
    file.seek(position)
    if file.read(len(wanted) + last) != wanted:
        raise ValueError(f"its headers from byte {position:,} on are not those that `pack` writes")


def _checked(infos: list[zipfile.ZipInfo], size: int, current: bool) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an archive with this size by name, if all are plain files with known names.

    An archive that does not have the current format may also have names of an earlier one.

    Raises:
        ValueError: an entry is not, two entries conflict, or the archive is too small for them.
    """
    if len(infos) > MOST_FILES:
        raise ValueError(f"it has {len(infos):,} files; at most {MOST_FILES:,} are read")
    for info in infos:
        # Compare the original name too, because zipfile cuts names at a NUL.
        name = info.orig_filename
        known = is_known(name) or (not current and _EARLIER.fullmatch(name) and len(name) <= LONGEST_NAME)
        if not known or info.filename != name:
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
