"""Weights as data: safetensors files, whose headers are checked before anything else is read.

A file may come from elsewhere, and its header says where in it each tensor is. Pickles, which could run code,
are refused by name.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import parse_json, read_json

LARGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

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
"""The size in bytes, and torch's name, of each type of safetensors."""


_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


Kind = tuple[str, Sequence[int]]
"""The type of a tensor, as torch names it, and its shape."""


@dataclass(frozen=True)
class Placed:
    """A tensor in a file."""

    dtype: str
    """As torch names it, such as ``float16``."""
    shape: list[int]
    start: int
    """The place of its first byte in the file."""
    end: int


def read_header(path: Path) -> dict[str, Placed]:
    """What a safetensors file holds, by name, once the header is consistent and fits the file.

    Raises:
        MissingError: there is no such file, or it is not such a file; says why.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size)
    except FileNotFoundError:
        weight_files(path.parent)
        raise MissingError(f"{path}: there is no such file; make or fetch it again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingError(f"{path}: not a safetensors file ({reason}); make or fetch it again") from None


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU, by name.

    Raises:
        MissingError: as by `read_header`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise MissingError(f"{path}: not a safetensors file ({error}); make or fetch it again") from None
    return tensors


def stream_weights(path: Path, wanted: Mapping[str, Kind], tensor: Callable[[str], Any]) -> None:
    """Writes a safetensors file of tensors, each asked for by its name when its turn comes.

    No more than one of them is in memory; safetensors' own writer takes all at once.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    import torch

    codes = {kind: (code, size) for code, (size, kind) in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in wanted.items():
        code, size = codes[kind]
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where eight bytes may be read at once
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (kind, shape) in wanted.items():
            found = tensor(name).contiguous()
            assert (str(found.dtype), list(found.shape)) == (f"torch.{kind}", list(shape)), name
            file.write(found.flatten().view(torch.uint8).numpy().data)


def tensor_digests(path: Path) -> dict[str, list[Any]]:
    """Type, shape and SHA-256 of the bytes of each tensor of a safetensors file, by name.

    Raises:
        MissingError: as by `read_header`.
    """
    found = {}
    placed = read_header(path)
    with path.open("rb") as file:
        for name, tensor in placed.items():
            file.seek(tensor.start)
            found[name] = [f"torch.{tensor.dtype}", tensor.shape, _digest(file, tensor.end - tensor.start)]
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in the order of their names; any index leads to them alone.

    Raises:
        MissingError: it has none (and perhaps pickles), or its index leads elsewhere.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLED)
        if pickles:
            raise MissingError(
                f"{pickles[0]}: pickled weights are not read, for they could run code; use safetensors"
            )
        raise MissingError(f"{folder}: there are no weights (*.safetensors); make or fetch them again")
    names = {path.name for path in found}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        mend = "make or fetch it again"
        content = read_json(index, mend)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            raise MissingError(f"{index}: not an index of weights (no weight_map); {mend}")
        for name, shard in shards.items():
            if not isinstance(shard, str) or shard not in names:
                raise MissingError(
                    f"{index}: {name[:80]!r} is to be in {str(shard)[:80]!r}, "
                    f"which is not a safetensors file of its folder; {mend}"
                )
    return found


def check_weights(folder: Path) -> None:
    """Checks the header of every safetensors file of a folder, and its index.

    Raises:
        MissingError: as by `read_header` and `weight_files`.
    """
    for path in weight_files(folder):
        read_header(path)


def _header(file: IO[bytes], size: int) -> dict[str, Placed]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    fits = len(start) == 8 and length <= min(LARGEST_HEADER, size - 8)
    text = file.read(length) if fits else b""
    if text[:1] != b"{":
        if start.startswith((b"PK\x03\x04", *_PICKLES)):
            raise ValueError("it is a pickle, which could run code")
        if fits:
            raise ValueError("it has no header")
        at_most = f"{min(LARGEST_HEADER, max(size - 8, 0)):,}"
        raise ValueError(f"its header would have {length:,} bytes, where {at_most} are the most")
    content = parse_json(text)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ are not texts")
    placed = {name: _placed(name, entry, 8 + length) for name, entry in content.items()}
    _require_filled(placed, 8 + length, size)
    return placed


def _placed(name: str, entry: Any, begin: int) -> Placed:
    """The tensor of an entry of the header; `begin` is where the header ends."""
    shown = repr(name[:80])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} has not just dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{shown} has the unknown dtype {str(dtype)[:20]!r}")
    if not _sizes(shape) or len(shape) > 16:
        raise ValueError(f"{shown} has no shape of whole numbers")
    if not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown} has not two data_offsets")
    size, kind = _TYPES[dtype]
    if offsets[1] - offsets[0] != size * math.prod(shape):
        raise ValueError(f"{shown} has {offsets[1] - offsets[0]:,} bytes, which is not what its shape takes")
    return Placed(kind, shape, begin + offsets[0], begin + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _require_filled(tensors: dict[str, Placed], start: int, end: int) -> None:
    """Checks that the tensors follow each other from `start` to `end`, with no gap and no overlap."""
    place = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != place:
            raise ValueError(f"{name[:80]!r} begins at byte {tensor.start}, where {place} is due")
        place = tensor.end
    if place != end:
        raise ValueError(f"the tensors end at byte {place}, the file at {end}")


def _digest(file: IO[bytes], length: int) -> str:
    """The SHA-256 of the next bytes of a file."""
    digest = hashlib.sha256()
    for block in _blocks(file, length):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: IO[bytes], length: int) -> Iterable[bytes]:
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        length -= len(block)
        yield block
