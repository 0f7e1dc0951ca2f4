"""Read and write safetensors files, which may come from others; refuse pickles, which could run code."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import (
    LARGEST_JSON,
    create,
    flush,
    megabytes,
    open_regular,
    parse_json,
    read_json,
)
from qlora_repeat.system.parallel import in_parallel

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_MOST_ELEMENTS = 2**40
INDEX = "model.safetensors.index.json"
"""The file that says which shard has which tensor."""
_ADVICE = "make or fetch it again"
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "C64": "complex64",
}
"""Torch's name for each safetensors type."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: torch's name of its type (such as ``float16``), its shape and its byte range."""

    dtype: str
    shape: list[int]
    start: int
    end: int


@dataclass(frozen=True)
class WrittenFile:
    """A safetensors file when it was complete: its digest, the `tensor_digests`, and its size and times."""

    sha256: str
    tensors: dict[str, list[Any]]
    state: os.stat_result


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name. The library checks that the header fits the file.

    Raises:
        MissingError: the file is missing or is not a valid safetensors file; says why.
    """
    from safetensors import SafetensorError, safe_open

    first = b""
    try:
        with open_regular(path, follow=True) as file:
            first = file.read(8)
            size = int.from_bytes(first, "little")
            if size > LARGEST_JSON and size <= os.fstat(file.fileno()).st_size:
                raise ValueError(f"its header is larger than {megabytes(LARGEST_JSON)}")
            with safe_open(path, framework="numpy"):
                pass
            header = parse_json(file.read(size))
        header.pop("__metadata__", None)
        return {name: _stored(name, entry, 8 + size) for name, entry in header.items()}
    except FileNotFoundError:
        weight_files(path.parent)
        raise MissingError(f"{path}: the file is missing; {_ADVICE}") from None
    except (OSError, ValueError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        if first.startswith(_PICKLE_STARTS):
            reason = "it is a pickle, which could run code"
        raise MissingError(f"{path}: not a safetensors file ({reason}); {_ADVICE}") from None


def _stored(name: str, entry: dict[str, Any], start: int) -> StoredTensor:
    """Return the tensor of a header entry, whose offsets count from byte `start` of the file."""
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name[:80]!r} has the unknown dtype {entry['dtype']!r}")
    if math.prod(filter(None, entry["shape"])) > _MOST_ELEMENTS:  # of a tensor with a zero in its shape
        raise ValueError(f"{name[:80]!r} has the impossible shape {entry['shape']}")
    first, end = entry["data_offsets"]
    return StoredTensor(_DTYPES[entry["dtype"]], entry["shape"], start + first, start + end)


def read_weights(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        MissingError: as in `read_header`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise MissingError(f"{path}: not a safetensors file ({error}); {_ADVICE}") from None
    return tensors


def stream_weights(
    path: Path, wanted: Mapping[str, tuple[str, Sequence[int]]], tensor: Callable[[str], Any]
) -> WrittenFile:
    """Write a safetensors file one tensor at a time; the writer of safetensors needs all of them in memory.

    Each tensor is hashed while it is written.

    Args:
        path: the file.
        wanted: torch's name of the type (such as ``float16``) and the shape of each tensor, by name.
        tensor: returns the tensor of a name.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    import torch

    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in wanted.items():
        start, end = end, end + getattr(torch, dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    text = len(text).to_bytes(8, "little") + text
    whole, digests = hashlib.sha256(text), {}
    with create(path) as file, ThreadPoolExecutor(2) as pool:
        file.write(text)
        for name, (dtype, shape) in wanted.items():
            found = tensor(name).contiguous()
            assert (str(found.dtype), list(found.shape)) == (f"torch.{dtype}", list(shape)), name
            content = found.flatten().view(torch.uint8).numpy().data
            of_all, of_tensor = pool.submit(whole.update, content), pool.submit(hashlib.sha256, content)
            file.write(content)
            of_all.result()
            digests[name] = [str(found.dtype), list(shape), of_tensor.result().hexdigest()]
        flush(file)
        return WrittenFile(whole.hexdigest(), digests, os.fstat(file.fileno()))


def tensor_digests(path: Path) -> dict[str, list[Any]]:
    """Return the type, the shape and the SHA-256 of the bytes of each tensor in a safetensors file, by name.

    Raises:
        MissingError: as in `read_header`.
    """
    tensors = read_header(path)
    with open_regular(path, follow=True) as file:

        def content(tensor: StoredTensor) -> str:
            digest, place = hashlib.sha256(), tensor.start
            while block := os.pread(file.fileno(), min(tensor.end - place, 1 << 20), place):
                place += len(block)
                digest.update(block)
            return digest.hexdigest()

        digests = in_parallel(content, list(tensors.values()), os.fstat(file.fileno()).st_size)
    return {
        name: [f"torch.{tensor.dtype}", tensor.shape, digest]
        for (name, tensor), digest in zip(tensors.items(), digests, strict=True)
    }


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, sorted by name.

    Raises:
        MissingError: the folder has none (or only pickles), or its index names other files.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLED)
        if pickles:
            raise MissingError(
                f"{pickles[0]}: pickled weights are not read, because they could run code; use safetensors"
            )
        raise MissingError(f"{folder}: it has no weights (*.safetensors); make or fetch them again")
    for index in folder.glob("*.safetensors.index.json"):
        content = read_json(index, _ADVICE, follow=True)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise MissingError(f"{index}: not an index of weights (no weight_map); {_ADVICE}")
        names = {path.name for path in found}
        if wrong := [shard for shard in map(str, shards.values()) if shard not in names]:
            raise MissingError(
                f"{index}: it names {wrong[0][:80]!r}, which is no safetensors file in this folder; {_ADVICE}"
            )
    return found


def index_text(folder: Path, shards: Sequence[str]) -> str:
    """Return the index of these safetensors files of a folder.

    Raises:
        MissingError: as in `read_header`.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for name in shards:
        tensors = read_header(folder / name)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.end - tensor.start for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def check_weights(folder: Path) -> None:
    """Check the header of every safetensors file in a folder, and its index.

    Raises:
        MissingError: as in `read_header` and `weight_files`.
    """
    for path in weight_files(folder):
        read_header(path)
