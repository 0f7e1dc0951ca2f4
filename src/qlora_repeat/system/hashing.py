"""Return SHA-256 digests of files, JSON values and weights, as lower-case hexadecimal text."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import open_regular, parse_json, read_file
from qlora_repeat.system.safetensors_file import tensor_digests, weight_files

_Found = TypeVar("_Found")
MANIFEST = "manifest.json"
"""The file in each folder of the cache that lists the digests of the other files."""
_SETTLED = 2_000_000_000
"""Nanoseconds. A younger file can change again within one tick of the clock, with the same times."""
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
    return once(file_digest, path)


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


def once(compute: Callable[[Path], _Found], path: Path) -> _Found:
    """Return `compute(path)`, computed once in this process while the file keeps its size and times."""
    key, began = (compute, *_identity(path)), time.time_ns()
    if key in _found:
        remembered: _Found = _found[key]
        return remembered
    value = compute(path)
    if key == (compute, *_identity(path)) and began - key[-1] > _SETTLED:
        _found[key] = value
    return value


def _identity(path: Path) -> tuple[Any, ...]:
    stat = path.stat()
    return str(path.absolute()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, by its path relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def weights_digest(folder: Path) -> str:
    """Return the digest of the weights in a folder of safetensors files: names, types, shapes and values.

    It does not depend on how the weights are split into files, nor on other entries of the headers.

    Raises:
        MissingError: the folder has no weights, a file is invalid, or two files have a tensor of one name.
    """
    digests: dict[str, list[Any]] = {}
    for path in weight_files(folder):
        found = once(tensor_digests, path)
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
