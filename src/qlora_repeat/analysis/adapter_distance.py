"""Measure the distance of two adapters, without torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.system.files import read_file
from qlora_repeat.system.safetensors_file import read_header

_LARGEST = 10_000_000_000
"""Bytes of an adapter's file, which is read as a whole."""

PARTS = ("lora_A", "lora_B")
"""An adapter's matrices A and B of each module; the model adds their product BA to its weights."""

Adapter = dict[str, NDArray[Any]]
"""The tensors of an adapter, by name."""

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Distance:
    """The distance of values of two adapters."""

    values: int
    """Number of values in each."""
    equal: int
    """Number of values with the same bits."""
    largest: float
    """The largest absolute difference."""
    l2: float
    """The norm of the difference."""
    relative: float | None
    """The norm of the difference, divided by the norm of the first; None if that is 0."""


def adapter_distances(first: Path, second: Path) -> dict[str, Distance]:
    """Return the distances of the adapters in two folders: of ``all`` values, ``lora_A`` and ``lora_B``.

    Raises:
        MissingError: a folder has no weights.
        UsageError: a file is not a safetensors file, or has values that are not floats.
        ValueError: the adapters do not have the same tensors; says which differ.
    """
    return distances(read_adapter(first), read_adapter(second))


def distances(ours: Adapter, theirs: Adapter) -> dict[str, Distance]:
    """Return the same distances for adapters in memory.

    Raises:
        ValueError: as `adapter_distances`.
    """
    if alone := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"only one has {alone[0]}" + (f" and {len(alone) - 1} more" if alone[1:] else ""))
    for name, value in ours.items():
        shapes = [f"{_type(each)}{list(each.shape)}" for each in (value, theirs[name])]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[0]} in one, {shapes[1]} in the other")
    parts = {part: [name for name in ours if part in name] for part in PARTS}
    chosen = {"all": list(ours), **{part: names for part, names in parts.items() if names}}
    return {part: _distance((ours[name], theirs[name]) for name in names) for part, names in chosen.items()}


def update_distance(ours: Adapter, theirs: Adapter) -> float | None:
    """Return the distance of the products BA of all modules, which two adapters add to the weights.

    It is the norm of the difference, divided by the root mean square of both norms: 0 for equal products,
    1.41 for unrelated ones. Differences of A and B that cancel out in BA do not count. None if both products
    are zero.
    """
    apart = ours_squared = theirs_squared = 0.0
    for name in ours:
        twin = name.replace("lora_A", "lora_B")
        if twin == name or twin not in ours:
            continue
        a, other_a, b, other_b = (
            _numbers(each[key]).reshape(each[key].shape) for key in (name, twin) for each in (ours, theirs)
        )
        # B1 A1 - B2 A2 = (B1 - B2) A1 + B2 (A1 - A2) is accurate even if both are nearly the same.
        apart += _product_squares(np.hstack([b - other_b, other_b]), np.vstack([a, a - other_a]))
        ours_squared += _product_squares(b, a)
        theirs_squared += _product_squares(other_b, other_a)
    mean = (ours_squared + theirs_squared) / 2
    return math.sqrt(apart / mean) if mean else None


def _product_squares(b: NDArray[np.float64], a: NDArray[np.float64]) -> float:
    """Return the sum of squares of BA, using matrices no larger than its rank, or than itself."""
    if b.shape[0] * a.shape[1] < b.shape[1] ** 2:
        return float(np.sum((b @ a) ** 2))
    return max(float(np.sum((b.T @ b) * (a @ a.T))), 0.0)


def _distance(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Distance:
    values = equal = 0
    largest, squares, norm = [0.0], 0.0, 0.0
    for one, other in pairs:
        values += one.size
        equal += int(np.count_nonzero(_bits(one) == _bits(other)))
        first = _numbers(one)
        with np.errstate(invalid="ignore"):
            difference = _numbers(other) - first
        largest.append(float(np.max(np.abs(difference), initial=0)))
        squares += float(difference @ difference)
        norm += float(first @ first)
    return Distance(
        values=values,
        equal=equal,
        largest=float(np.max(largest)),
        l2=math.sqrt(squares),
        relative=math.sqrt(squares / norm) if norm else None,
    )


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"<u{values.dtype.itemsize}")


def _type(values: NDArray[Any]) -> str:
    return "bfloat16" if values.dtype.kind == "u" else str(values.dtype)


def _numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as float64; bfloat16, which numpy lacks, is the upper half of a float32."""
    if values.dtype.kind == "u":
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float64).ravel()


def read_adapter(folder: Path) -> Adapter:
    """Read the tensors in a folder, by name; bfloat16 values become unsigned 16-bit integers.

    Raises:
        MissingError, UsageError: as `adapter_distances`.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise MissingError(f"{folder}: has no adapter; fine-tune its trial first")
    found = {}
    for path in paths:
        try:
            read_header(path)
            for name, tensor in deserialize(read_file(path, _LARGEST, follow=True)):  # type: ignore[no-untyped-call]
                kind = "<u2" if tensor["dtype"] == "BF16" else _TYPES[tensor["dtype"]]
                found[name] = np.frombuffer(tensor["data"], dtype=kind).reshape(tensor["shape"])
        except KeyError as error:
            raise UsageError(f"{path}: has {error} values, which cannot be compared") from None
        except MissingError as error:
            raise UsageError(str(error)) from None
        except (SafetensorError, ValueError) as error:
            raise UsageError(f"{path}: not a safetensors file ({error})") from None
    return found
