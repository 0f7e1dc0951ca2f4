"""Return SHA-256 digests of files, JSON values and weights, as lower-case hexadecimal text."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import open_regular, parse_json, read_file
from qlora_repeat.system.parallel import in_parallel
from qlora_repeat.system.safetensors_file import WrittenFile, tensor_digests, weight_files

_Found = TypeVar("_Found")
MANIFEST = "manifest.json"
"""The file in each folder of the cache that lists the digests of the other files."""
_SETTLED = 2_000_000_000
"""Nanoseconds. A younger file can change again within one tick of the clock, with the same times."""
_WORTH_WAITING = 2 * 10**9
"""Bytes whose hashing takes longer than the time until a file is settled."""
_found: dict[tuple[Any, ...], Any] = {}


def text_digest(text: str) -> str:
    """Return the digest of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def json_digest(value: Any) -> str:
    """Return the digest of a value as compact JSON with sorted keys."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with open_regular(path, follow=True) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """Return the digest of a file's bytes, which this process reads once while the file stays the same."""
    return once(file_digest, path, any_name=True)


def known_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return `known_digest` of each file; several large ones are read at the same time."""
    listed = list(paths)
    size = sum(path.stat().st_size for path in listed)
    return dict(zip(listed, in_parallel(known_digest, listed, size), strict=True))


def manifest_digest(folder: Path) -> str | None:
    """Return the digest of the value of a folder's manifest, or None if it has no readable one."""
    try:
        return once(_json_file_digest, folder / MANIFEST)
    except (OSError, ValueError):
        return None


def _json_file_digest(path: Path) -> str:
    return json_digest(_json_file(path))


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Return the digests in a folder's manifest by file, or None if it has no readable one."""
    try:
        content = once(_json_file, folder / MANIFEST)
    except (OSError, ValueError):
        return None
    is_one = isinstance(content, dict) and all(isinstance(digest, str) for digest in content.values())
    return content if is_one else None


def _json_file(path: Path) -> Any:
    return parse_json(read_file(path))


def once(compute: Callable[[Path], _Found], path: Path, *, any_name: bool = False) -> _Found:
    """Return `compute(path)`, computed once in this process while the file keeps its size and times.

    With `any_name`, which is only for functions that follow links, it is computed once for all names of a
    file, such as a link to it.
    """
    name = "" if any_name else str(path.absolute())
    key, began = (compute, name, *_identity(path.stat())), time.time_ns()
    if key in _found:
        remembered: _Found = _found[key]
        return remembered
    value = compute(path)
    after = path.stat()
    if key == (compute, name, *_identity(after)) and began - after.st_ctime_ns > _SETTLED:
        _found[key] = value
    return value


def remember(written: WrittenFile) -> None:
    """Use the digests of a file that this process wrote, while the file keeps its size and times.

    Call it before others can open the file. Wait for up to two seconds if the file is large and too young.
    """
    left = written.state.st_ctime_ns + _SETTLED - time.time_ns()
    if left >= 0 and written.state.st_size > _WORTH_WAITING:
        time.sleep(left / 1e9 + 0.01)
        left = -1
    if left < 0:
        _found[file_digest, "", *_identity(written.state)] = written.sha256
        _found[tensor_digests, "", *_identity(written.state)] = written.tensors


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, by its path relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest for path, digest in known_digests(files).items()}


def weights_digest(folder: Path) -> str:
    """Return the digest of the weights in a folder of safetensors files: names, types, shapes and values.

    It does not depend on how the weights are split into files, nor on other entries of the headers.

    Raises:
        MissingError: the folder has no weights, a file is invalid, or two files have a tensor of one name.
    """
    digests: dict[str, list[Any]] = {}
    for path in weight_files(folder):
        found = once(tensor_digests, path, any_name=True)
        if repeated := digests.keys() & found.keys():
            raise MissingError(
                f"{path}: {min(repeated)!r} is in another file too; make or fetch {folder} again"
            )
        digests |= found
    return json_digest(digests)


def tensors_digest(tensors: dict[str, Any]) -> str:
    """Return the `weights_digest` that these tensors would have in a file."""
    import torch

    digests = {}
    for name, tensor in tensors.items():
        content = hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digests[name] = [str(tensor.dtype), list(tensor.shape), content.hexdigest()]
    return json_digest(digests)
