"""Read and write safetensors files; the header is checked before anything else is read.

Files may come from other people, and the header says where in the file each tensor is. Pickles, which could
run code, are refused.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import parse_json, read_json

LARGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_ADVICE = "make or fetch it again"
_TYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "F64": (8, "float64"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "C64": (8, "complex64"),
}
"""The size in bytes of each safetensors type, and torch's name for it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: torch's name of its type (such as ``float16``), its shape and its byte range."""

    dtype: str
    shape: list[int]
    start: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, after checking that the header fits the file.

    Raises:
        MissingError: the file is missing or is not a valid safetensors file; says why.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size)
    except FileNotFoundError:
        weight_files(path.parent)
        raise MissingError(f"{path}: the file is missing; {_ADVICE}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: not a safetensors file ({reason}); {_ADVICE}") from None


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
) -> None:
    """Write a safetensors file one tensor at a time; the writer of safetensors needs all of them in memory.

    Args:
        path: the file.
        wanted: torch's name of the type (such as ``float16``) and the shape of each tensor, by name.
        tensor: returns the tensor of a name.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    import torch

    codes = {dtype: (code, size) for code, (size, dtype) in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in wanted.items():
        code, size = codes[dtype]
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in wanted.items():
            found = tensor(name).contiguous()
            assert (str(found.dtype), list(found.shape)) == (f"torch.{dtype}", list(shape)), name
            file.write(found.flatten().view(torch.uint8).numpy().data)


def tensor_digests(path: Path) -> dict[str, list[Any]]:
    """Return the type, the shape and the SHA-256 of the bytes of each tensor in a safetensors file, by name.

    Raises:
        MissingError: as in `read_header`.
    """
    found: dict[str, list[Any]] = {}
    tensors = read_header(path)
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            file.seek(tensor.start)
            digest, left = hashlib.sha256(), tensor.end - tensor.start
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                left -= len(block)
                digest.update(block)
            found[name] = [f"torch.{tensor.dtype}", tensor.shape, digest.hexdigest()]
    return found


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
    names = {path.name for path in found}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        content = read_json(index, _ADVICE)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise MissingError(f"{index}: not an index of weights (no weight_map); {_ADVICE}")
        for name, shard in shards.items():
            if not isinstance(shard, str) or shard not in names:
                raise MissingError(
                    f"{index}: {name[:80]!r} is mapped to {str(shard)[:80]!r}, "
                    f"which is not a safetensors file in this folder; {_ADVICE}"
                )
    return found


def check_weights(folder: Path) -> None:
    """Check the header of every safetensors file in a folder, and its index.

    Raises:
        MissingError: as in `read_header` and `weight_files`.
    """
    for path in weight_files(folder):
        read_header(path)


def _header(file: IO[bytes], size: int) -> dict[str, StoredTensor]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    fits = len(start) == 8 and length <= min(LARGEST_HEADER, size - 8)
    text = file.read(length) if fits else b""
    if text[:1] != b"{":
        if start.startswith(_PICKLE_STARTS):
            raise ValueError("it is a pickle, which could run code")
        if fits:
            raise ValueError("it has no header")
        limit = min(LARGEST_HEADER, max(size - 8, 0))
        raise ValueError(f"its header has {length:,} bytes, expected at most {limit:,}")
    content = parse_json(text)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not an object of strings")
    tensors = {name: _stored(name, entry, 8 + length) for name, entry in content.items()}
    _require_contiguous(tensors, 8 + length, size)
    return tensors


def _stored(name: str, entry: Any, offset: int) -> StoredTensor:
    """Return the tensor of a header entry, whose offsets count from byte `offset` of the file."""
    shown = repr(name[:80])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown}: expected exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{shown} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > 16:
        raise ValueError(f"{shown}: its shape is not a list of whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown}: its data_offsets are not two whole numbers")
    size, torch_name = _TYPES[dtype]
    if offsets[1] - offsets[0] != size * math.prod(shape):
        raise ValueError(f"{shown} has {offsets[1] - offsets[0]:,} bytes, which does not match its shape")
    return StoredTensor(torch_name, shape, offset + offsets[0], offset + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _require_contiguous(tensors: dict[str, StoredTensor], start: int, end: int) -> None:
    """Check that the tensors fill the bytes from `start` to `end` without gaps or overlaps."""
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise ValueError(f"{name[:80]!r} begins at byte {tensor.start}, expected byte {position}")
        position = tensor.end
    if position != end:
        raise ValueError(f"the tensors end at byte {position}, the file at byte {end}")
