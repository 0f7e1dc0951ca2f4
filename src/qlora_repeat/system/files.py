"""Write files and folders atomically (temporary name, fsync, rename), and read JSON from other sources."""

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
"""Bytes; every JSON file that the kit writes is far smaller."""
_DEEPEST = 100
"""Levels of nested values; the kit writes fewer than ten."""
_MOST_DIGITS = 20
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
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
        sync(path.parent)


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


def read_json(path: Path, advice: str) -> Any:
    """Read JSON that another program may have written; an error ends with `advice`, which says what to do.

    Raises:
        MissingError: the file is missing, or `parse_json` refuses it.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {megabytes(LARGEST_JSON)}")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: cannot be read ({reason}); {advice}") from None


def parse_json(content: bytes) -> Any:
    """Return the value of JSON of any origin, in UTF-8.

    Refuse what other readers would take differently, and what could not be computed with or written again.

    Raises:
        ValueError: it is not JSON, an object repeats a key, values are nested too deeply, an integer needs
            more than 64 bits, or a text has a lone surrogate.
    """
    text = content.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_int=_integer)
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


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"integer {digits[:_MOST_DIGITS]} needs more than 64 bits")
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

    If `path` exists, it is replaced; without `replace` it stays, and the new folder is deleted.

    Raises:
        OSError: the disk is full or read-only; names the folder, not its temporary name.
    """
    with _errors_that_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            for found in [*temporary.rglob("*"), temporary]:
                if not found.is_symlink():
                    if found.is_file():
                        os.chmod(found, 0o644)
                    sync(found)
            if replace:
                move_folder(temporary, path)
            else:
                try:
                    temporary.rename(path)  # which refuses to replace a folder that has files
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, path: Path) -> None:
    """Rename a complete folder to `path`, on the same disk, and replace the folder that was there."""
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
    sync(path.parent)


def require_space(folder: Path, size: int, variable: str) -> None:
    """Check that a folder has `size` bytes of free space. Create the folder if it does not exist.

    Raises:
        MissingError: the disk is too full, or the folder cannot be created; names the environment variable
            that sets another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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


def disk_error(error: OSError, path: Path | None = None) -> str:
    """Describe a disk error in one line: the file, the reason and what to do.

    `path` is named if the error names no file, as after a write to an open file.
    """
    if error.errno is None:
        return str(error)
    advice = ""
    if error.errno in (*_FULL, *_CLOSED):
        first = "free some space there" if error.errno in _FULL else "make it writable"
        other = "set QLORA_REPEAT_RUNS (results) or QLORA_REPEAT_CACHE (models and data) to another folder"
        advice = f"; {first}, or {other}"
    named = path if error.filename is None else error.filename
    return ("" if named is None else f"{named}: ") + f"{error.strerror}{advice}"


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
