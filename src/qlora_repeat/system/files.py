"""Write files and folders atomically (temporary name, fsync, rename); read files that others may have made.

All other modules change files by these functions; a test makes each of their calls fail. Files and folders
get the permissions that the umask allows, and the group of a folder that sets it.
"""

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from qlora_repeat.errors import MissingError

LARGEST_JSON = 20_000_000
"""Bytes; every JSON file that the kit writes is smaller."""
LARGEST_LINES = 100_000_000
"""Bytes of a file with one JSON value for each line: a trace, or collected results."""
LARGEST_ROWS = 1_000_000_000
"""Bytes of the rows of a data set, all of which are in memory."""
_MOST_VALUES = 4_000_000
"""Values in a file of JSON, which need up to 100 bytes each in memory."""
_MOST_LINES = 500_000
"""Lines of such a file, each of which becomes an object."""
_DEEPEST = 100
"""Levels of nested values; the kit writes fewer than ten."""
_LARGEST_INTEGER = 2**64 - 1
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
TEMPORARY = "qlora-repeat-tmp-"
"""The first part of the names of the kit's folders in $TMPDIR."""
SET_TMPDIR = "set TMPDIR to another folder"
_SET_RUNS = "set QLORA_REPEAT_RUNS (results) or QLORA_REPEAT_CACHE (models and data) to another folder"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, as `new_file` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, as `new_file` does."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which becomes `path` if the block succeeds and is deleted if it fails.

    A reader sees the old bytes or the new ones, never a part of them.

    Raises:
        OSError: the disk is full or read-only; names the file, not its temporary name.
    """
    with _errors_that_name(path):
        make_folder(path.parent)
        temporary = _temporary_name(path)
        try:
            with create(temporary) as file:
                yield file
                flush(file)
            rename(temporary, path)
        except BaseException:
            discard(temporary)
            raise
        sync(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, opened by `open_regular`, as `new_file` writes it."""
    with open_regular(source) as file, new_file(path) as new:
        shutil.copyfileobj(file, new)


def _temporary_name(path: Path) -> Path:
    """Return a new hidden name next to `path`, which a later start can recognize."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and flush each to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def create(path: Path) -> BinaryIO:
    """Open a new file for writing, in a folder that is not complete yet; `new_file` is for other folders."""
    return path.open("xb")


def write_whole(file: FileIO, content: bytes) -> None:
    """Write to a file without a buffer: after an error, no rest is written when the file is closed."""
    while content:
        content = content[file.write(content) :]


def flush(file: BinaryIO | FileIO) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def rename(source: Path, path: Path) -> None:
    """Rename a file or folder; replace a file, or an empty folder."""
    os.replace(source, path)


def link(source: Path, path: Path) -> None:
    """Give a file a second name, unless something has this name."""
    os.link(source, path)


def symlink(path: Path, target: str) -> None:
    """Make a symbolic link at `path`."""
    path.symlink_to(target)


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first `size` bytes."""
    os.truncate(path, size)


def remove(path: Path) -> None:
    """Delete a file, if it exists."""
    path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Delete a temporary file or folder, as far as the disk allows."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            remove(path)


def delete_folder(path: Path) -> None:
    """Delete a folder, if it exists. It gets a temporary name first: a part of it would look damaged.

    Raises:
        OSError: it cannot be renamed. If only a part can be deleted, the rest keeps the temporary name.
    """
    temporary = _temporary_name(path)
    with contextlib.suppress(FileNotFoundError):
        rename(path, temporary)
        discard(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, which people and `diff` can read."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def strict(value: Any) -> Any:
    """Return a JSON value with text in place of the numbers that JSON lacks (nan, inf, -inf)."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    return [strict(each) for each in value] if isinstance(value, list | tuple) else value


def open_regular(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a file of any origin for reading: at once, and only if it is a regular file.

    A FIFO, a device or a socket could block, or never end. A link could lead to a private file; only with
    `follow` is it followed, which is for files that the user names and for the links of the kit's own cache.

    Raises:
        OSError: there is no such file, or it is something else; names it.
    """
    return os.fdopen(_open_regular(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW)), "rb")


def append_to(path: Path) -> FileIO:
    """Open a file that may exist for appending, as `open_regular` without `follow`; see `write_whole`.

    Raises:
        OSError: it cannot be written, or is not a regular file; names it.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(_open_regular(path, flags), "ab", buffering=0)


def _open_regular(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "a link, which is not followed", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads
            raise OSError(errno.ENXIO, "not a regular file", str(path)) from None
        raise
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.ENXIO, "not a regular file", str(path))
    return descriptor


def read_file(path: Path, limit: int = LARGEST_JSON, *, follow: bool = False) -> bytes:
    """Return the bytes of a file of any origin, opened by `open_regular`.

    Raises:
        OSError: as `open_regular`.
        ValueError: it has more than `limit` bytes.
    """
    with open_regular(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size <= limit:
            content = file.read(limit + 1)
            if len(content) <= limit:
                return content
    raise ValueError(f"larger than {megabytes(limit)}")


def read_lines(path: Path, *, follow: bool = False) -> str:
    """Return the text of a file of any origin that has one JSON value for each line.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is not in UTF-8, or it has more bytes or values than any such file of the kit.
    """
    content = read_file(path, LARGEST_LINES, follow=follow)
    _require_few_values(content, b",[{\n")
    if content.count(b"\n") > _MOST_LINES:
        raise ValueError(f"more than {_MOST_LINES:,} lines")
    return content.decode("utf-8")


def _require_few_values(content: bytes, separators: bytes = b",[{") -> None:
    if sum(map(content.count, separators)) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values")


def read_json(
    path: Path,
    advice: str,
    *,
    follow: bool = False,
    largest: int = _LARGEST_INTEGER,
    limit: int | None = None,
) -> Any:
    """Read JSON of any origin; an error ends with `advice`, which says what to do.

    `follow` as in `open_regular`, `largest` as in `parse_json`, `limit` as in `read_file`, or LARGEST_JSON.

    Raises:
        MissingError: the file is missing, or `read_file` or `parse_json` refuses it.
    """
    try:
        return parse_json(read_file(path, limit or LARGEST_JSON, follow=follow), largest=largest)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: cannot be read ({reason}); {advice}") from None


def parse_json(content: bytes, *, largest: int = _LARGEST_INTEGER) -> Any:
    """Return the value of JSON of any origin, in UTF-8.

    Refuse what other readers would take differently, and what could not be computed with or written again.

    Raises:
        ValueError: it is not JSON, an object repeats a key, it has too many values, they are nested too
            deeply, an integer needs more than 64 bits or than those of `largest`, or a text has a lone
            surrogate.
    """
    _require_few_values(content)
    text = content.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_int=partial(_integer, largest=largest))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value)
    if _MAYBE_SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text has half of a surrogate pair") from None
    return value


def check_depth(value: Any) -> None:
    """Check that a value of JSON or TOML is not nested too deeply for functions that call themselves.

    Raises:
        ValueError: it is.
    """
    level = [value]
    for _ in range(_DEEPEST):
        if not level:
            return
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    raise ValueError("nested too deeply")


def _integer(digits: str, largest: int) -> int:
    most = len(str(largest))
    if len(digits) > most or not -(2**63) <= int(digits) <= largest:
        raise ValueError(f"integer {digits[:most]} needs more than {largest.bit_length()} bits")
    return int(digits)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated[:60]!r} appears twice")
    return content


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `path` if the block succeeds and is deleted if it fails.

    Until then, only this user can open it. If `path` exists at the end, it is replaced.

    Raises:
        OSError: the disk is full or read-only; names the folder, not its temporary name.
        FileExistsError: without `replace`, something is at `path`, which stays as it is. Only a folder that
            was there at the begin, and is empty, is replaced.
    """
    with _errors_that_name(path):
        make_folder(path.parent)
        temporary, is_there = _temporary_name(path), path.is_dir()
        temporary.mkdir()
        try:
            mode = stat.S_IMODE(temporary.stat().st_mode)
            temporary.chmod(mode & ~0o077)
            yield temporary
            for found in [*temporary.rglob("*"), temporary]:
                if not found.is_symlink():
                    if found.is_file() and stat.S_IMODE(found.stat().st_mode) != mode & 0o666:
                        found.chmod(mode & 0o666)  # safetensors gives others no access
                    sync(found)
            temporary.chmod(mode)
            if replace:
                move_folder(temporary, path)
            else:
                _move_to_new(temporary, path, is_there=is_there)
        except BaseException:
            discard(temporary)
            raise


def _move_to_new(source: Path, path: Path, *, is_there: bool) -> None:
    """Rename a complete folder to `path`, and replace nothing but an empty folder that was there before."""
    if not is_there:
        path.mkdir()  # fails if there is anything
    try:
        rename(source, path)  # replaces an empty folder only
    except OSError as error:
        if not is_there:
            with contextlib.suppress(OSError):
                path.rmdir()
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        raise
    try:
        sync(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            rename(path, source)
        raise


def move_folder(source: Path, path: Path) -> None:
    """Rename a complete folder to `path`, on the same disk, and replace the folder that was there.

    If the process is killed between two renames, `restore_folder` puts the old folder back.
    """
    restore_folder(path)
    try:
        if os.path.lexists(path):
            aside = _aside(path)
            aside.parent.mkdir()
            rename(path, aside)
        rename(source, path)
    finally:
        restore_folder(path)
    sync(path.parent)


def restore_folder(path: Path) -> None:
    """Put back the folder that a killed `move_folder` had moved aside, unless its successor is in place."""
    aside = _aside(path)
    if aside.parent.exists():
        if os.path.lexists(aside) and not os.path.lexists(path):
            rename(aside, path)
        sync(path.parent)
        discard(aside.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old") / path.name


def require_space(folder: Path, size: int, variable: str) -> None:
    """Check that a folder has `size` bytes of free space. Create the folder if it does not exist.

    Raises:
        MissingError: the disk is too full, or the folder cannot be created; names the environment variable
            that sets another folder.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise MissingError(
            f"{folder}: cannot be created ({error.strerror}); set {variable} to another folder"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MissingError(
            f"{folder}: {megabytes(size)} are needed, {megabytes(free)} are free; "
            f"free some space, or set {variable} to a folder on a larger disk"
        )


def megabytes(size: int) -> str:
    """Return a size in bytes as text for people."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


@contextlib.contextmanager
def _errors_that_name(path: Path) -> Iterator[None]:
    """Name `path` in disk errors that name a temporary file or no file.

    Libraries written in Rust (safetensors, tokenizers) raise their own errors, which give only the number.
    """
    try:
        yield
    except OSError as error:
        named = Path(str(error.filename or "")).parts
        ours = not named or any(part.startswith(f".{path.name}.") for part in named)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or int(found[1]) not in (*_FULL, errno.EFBIG, errno.EROFS):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def disk_error(error: OSError, path: Path | str | None = None, other: str = _SET_RUNS) -> str:
    """Describe a disk error in one line: the file, the reason and what to do.

    `path` is named if the error names no file, as after a write to an open file. `other` says how to choose
    another place.
    """
    if error.errno is None:
        return str(error)
    advice = ""
    named = path if error.filename is None else error.filename
    if error.errno in (*_FULL, *_CLOSED):
        first = "free some space there" if error.errno in _FULL else "make it writable"
        is_temporary = any(part.startswith(TEMPORARY) for part in Path(str(named)).parts)
        advice = f"; {first}, or {SET_TMPDIR if is_temporary else other}"
    return ("" if named is None else f"{named}: ") + f"{error.strerror}{advice}"


@contextlib.contextmanager
def disk_errors(path: Path | str, other: str) -> Iterator[None]:
    """Raise MissingError for a disk error in the block, as `disk_error` describes it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_CLOSED, errno.EFBIG, errno.EIO):
            raise
        raise MissingError(disk_error(error, path, other)) from error


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for the block that only this user can open, in $TMPDIR.

    Raises:
        MissingError: no folder can be made there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=TEMPORARY)
    except OSError as error:
        where = os.environ.get("TMPDIR") or "/tmp"
        raise MissingError(
            f"{where}: no temporary folder can be made ({error.strerror}); {SET_TMPDIR}"
        ) from None
    with made as folder:
        yield Path(folder)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
