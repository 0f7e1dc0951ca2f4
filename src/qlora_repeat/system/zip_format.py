"""The zip format (PKWARE's APPNOTE 6.3): list the entries of a file of any origin, and write headers.

The headers that are written depend only on names, sizes and checksums, not on the version of Python.
"""

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from qlora_repeat.system.files import megabytes

_VERSION, _VERSION_64 = 20, 45
"""The version of the format that a reader needs, without and with sizes above 4 GiB."""
_LARGEST_READ = 12_000_000
"""Bytes of a directory, which needs about ten times as much memory."""
_UNIX = 3
_DATE = 1 << 5 | 1
"""1 January 1980, the earliest date of a zip."""
_MODE = 0o100644
_MOST, _MOST_ENTRIES = 2**32 - 1, 2**16 - 1
"""These stand for a value in another header, of 64 bits."""


class _Limited(io.BufferedReader):
    """A file of which no part as large as a harmful directory is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = _LARGEST_READ + 1 if size is None or size < 0 else min(size, _LARGEST_READ + 1)
        content = super().read(wanted)
        if len(content) > _LARGEST_READ:
            raise ValueError(f"its directory or a list in it is larger than {megabytes(_LARGEST_READ)}")
        return content


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Return the zip in a file of any origin.

    Raises:
        ValueError, zipfile.BadZipFile, struct.error, OSError: it is not a zip, or has a very large directory.
    """
    return zipfile.ZipFile(_Limited(io.FileIO(file.fileno(), closefd=False)))


@dataclass(frozen=True)
class Header:
    """An entry without compression: its name, the CRC-32 and number of its bytes, and its place."""

    name: str
    crc: int
    size: int
    start: int
    """The position of its local header."""


def local_header(entry: Header) -> bytes:
    """Return the header in front of the content of an entry."""
    wide = entry.size >= _MOST
    extra = struct.pack("<HHQQ", 1, 16, entry.size, entry.size) if wide else b""
    size = _MOST if wide else entry.size
    name = entry.name.encode("ascii")
    fields = (_VERSION_64 if wide else _VERSION, 0, 0, 0, _DATE, entry.crc, size, size, len(name), len(extra))
    return struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + name + extra


def directory(entries: Sequence[Header], start: int) -> bytes:
    """Return the end of a zip: its directory, which begins at position `start`, and the records after it."""
    found, count = bytearray(), len(entries)
    for entry in entries:
        wide = [value for value in (entry.size, entry.size, entry.start) if value >= _MOST]
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version, size = _VERSION_64 if wide else _VERSION, min(entry.size, _MOST)
        name = entry.name.encode("ascii")
        found += struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            *(_UNIX << 8 | version, version, 0, 0, 0, _DATE, entry.crc, size, size, len(name), len(extra)),
            *(0, 0, 0, _MODE << 16, min(entry.start, _MOST)),
        )
        found += name + extra
    length = len(found)
    if count >= _MOST_ENTRIES or length >= _MOST or start >= _MOST:
        fields = (44, _UNIX << 8 | _VERSION_64, _VERSION_64, 0, 0, count, count, length, start)
        found += struct.pack("<4sQ2H2I4Q", b"PK\6\6", *fields)
        found += struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1)
    ends = (min(count, _MOST_ENTRIES), min(count, _MOST_ENTRIES), min(length, _MOST), min(start, _MOST))
    return bytes(found) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *ends, 0)
