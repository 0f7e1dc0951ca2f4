"""Files that are either whole or not there (temporary name, fsync, rename), and JSON from elsewhere."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qlora_repeat.errors import MissingError

LARGEST_JSON = 100_000_000
"""Bytes; the kit writes nothing near it."""


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file at once."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file at once: a reader sees the old bytes or the new ones, never a part.

    Raises:
        OSError: the disk is full or read-only; names the file, not its temporary name.
    """
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to be written, which becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        OSError: the disk is full or read-only; names the file, not its temporary name.
    """
    with _naming(path), _new_file(path) as file:
        yield file


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, for people and for `diff`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """JSON as `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def strict(value: Any) -> Any:
    """A JSON value in which numbers that JSON does not have are text: nan, inf, -inf."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    return [strict(each) for each in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, mend: str) -> Any:
    """Reads JSON that may come from elsewhere; `mend` tells, in errors, what to do about the file.

    Raises:
        MissingError: there is no such file, or it is not such JSON as `parse_json` reads.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {megabytes(LARGEST_JSON)}")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: not readable ({reason}); {mend}") from None


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8, in which no object has a key twice: of two values, readers would take different ones.

    Raises:
        ValueError: it is not such JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:60]!r} stands there twice")
    return content


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends well, and vanishes otherwise.

    An older folder of that name is replaced; without `replace` it stays, and the new one vanishes.

    Raises:
        OSError: the disk is full or read-only; names the folder, not its temporary name.
    """
    with _naming(path), _new_folder(path, replace) as folder:
        yield folder


@contextlib.contextmanager
def _new_folder(path: Path, replace: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for found in [*temporary.rglob("*"), temporary]:
            if found.is_dir() and not found.is_symlink():
                _sync_folder(found)
            elif found.is_file() and not found.is_symlink():
                os.chmod(found, 0o644)
                with found.open("rb") as opened:
                    os.fsync(opened.fileno())
        if replace:
            move_folder(temporary, path)
        else:
            _move_unless_there(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def move_folder(source: Path, path: Path) -> None:
    """Makes a folder, whole and on the same disk, be `path`; an older one of that name is replaced."""
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        os.replace(path, old / "replaced")
        try:
            os.replace(source, path)
        except BaseException:
            os.replace(old / "replaced", path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(source, path)
    _sync_folder(path.parent)


def _move_unless_there(source: Path, path: Path) -> None:
    try:
        source.rename(path)  # which refuses to replace a folder that has files
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(source, ignore_errors=True)
    else:
        _sync_folder(path.parent)


def require_space(folder: Path, size: int, variable: str) -> None:
    """Checks that so many bytes can be written below a folder, which is made if it is not there.

    Raises:
        MissingError: the disk is too full, or takes no folder; says which environment variable moves it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingError(
            f"{folder}: cannot be made ({error.strerror}); set {variable} to another folder"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MissingError(
            f"{folder}: {megabytes(size)} are needed, {megabytes(free)} are free; "
            f"free some, or set {variable} to a folder on a larger disk"
        )


def megabytes(size: int) -> str:
    """A size in bytes, for people."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Lets errors of the disk name what was to be written, where they name a temporary file or none.

    Libraries in Rust (safetensors, tokenizers) have errors of their own, which only tell the number.
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


_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_error(error: OSError, where: Path | None = None) -> str:
    """An error of the disk in a line: the file, the reason, and how to go on.

    `where` is named if the error names no file, as that of a write to an open one does not.
    """
    if error.errno is None:
        return str(error)
    named = where if error.filename is None else error.filename
    advice = ""
    if error.errno in (*_FULL, *_CLOSED):
        first = "free some space there" if error.errno in _FULL else "let it be written to"
        moved = "set QLORA_REPEAT_RUNS (results) or QLORA_REPEAT_CACHE (models and data) to another folder"
        advice = f"; {first}, or {moved}"
    return f"{named}: {error.strerror}{advice}" if named is not None else f"{error.strerror}{advice}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
