"""SHA-256 digests of files, of JSON values and of weights, as lower-case hexadecimal."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qlora_repeat.errors import MissingError
from qlora_repeat.system.safetensors_file import tensor_digests, weight_files

_Found = TypeVar("_Found")
MANIFEST = "manifest.json"
"""In each folder of the cache: the digests of its files."""


def text_digest(text: str) -> str:
    """The digest of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 digest of a value as compact JSON with sorted keys."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_digest(folder: Path) -> str | None:
    """The digest of what the manifest of a folder of the cache names, or None if that has none."""
    try:
        return once(_json_file_digest, folder / MANIFEST)
    except (OSError, ValueError):
        return None


def _json_file_digest(path: Path) -> str:
    return json_digest(json.loads(path.read_text("utf-8")))


def known_digest(path: Path) -> str:
    """The same, but this process reads a file once only, while it stays the same file."""
    return once(file_digest, path)


_found: dict[tuple[Any, ...], Any] = {}

_SETTLED = 2_000_000_000
"""Nanoseconds. Within a tick of its file system's clock a file can change again, and its times don't tell."""


def once(compute: Callable[[Path], _Found], path: Path) -> _Found:
    """What a function finds in a file, remembered as long as neither the file's size nor its times change."""
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
    """The digest of each file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def weights_digest(folder: Path) -> str:
    """The digest of the weights in a folder of safetensors files: names, types, shapes and values.

    Independent of how the weights are spread over files and of what the files' headers say besides.

    Raises:
        MissingError: there are no such files, one is not as it should be, or two have a tensor of one name.
    """
    digests: dict[str, list[Any]] = {}
    for path in weight_files(folder):
        found = once(tensor_digests, path)
        if twice := digests.keys() & found.keys():
            raise MissingError(f"{path}: {min(twice)!r} is in another file too; make or fetch {folder} again")
        digests |= found
    return json_digest(digests)


def tensors_digest(tensors: dict[str, Any]) -> str:
    """The digest of weights in memory: that of the folder that they would be saved to."""
    import torch

    digests = {}
    for name, tensor in tensors.items():
        content = hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digests[name] = [str(tensor.dtype), list(tensor.shape), content.hexdigest()]
    return json_digest(digests)
