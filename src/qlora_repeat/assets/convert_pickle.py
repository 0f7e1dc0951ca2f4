"""Convert pickled weights to safetensors: ``python -m qlora_repeat.assets.convert_pickle FROM TO FILE...``.

It runs in its own process and unpickles only tensors (``weights_only``), so that a repository cannot run
code. No trial loads a pickle. The same weights give the same bytes.
"""

import pickle
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qlora_repeat.system.files import open_regular, parse_json, read_file, write_text
from qlora_repeat.system.safetensors_file import INDEX as MADE_INDEX
from qlora_repeat.system.safetensors_file import index_text
from qlora_repeat.system.zip_format import open_zip

INDEX = "pytorch_model.bin.index.json"


def convert(source: Path, target: Path, names: Collection[str]) -> None:
    """Convert the ``pytorch_model*.bin`` among `names` in a folder to ``model*.safetensors`` in another.

    Raises:
        ValueError: a shard has other content than named tensors, or the index names a missing tensor.
    """
    from safetensors.torch import save_file

    made: dict[str, set[str]] = {}
    for shard in sorted(name for name in names if name.endswith(".bin")):
        tensors = _tensors(source / shard)
        name = shard.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        save_file(tensors, target / name, metadata={"format": "pt"})
        made[name] = set(tensors)
    if INDEX not in names:
        return
    index = parse_json(read_file(source / INDEX, follow=True))
    indexed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(indexed, dict):
        raise ValueError(f"{INDEX}: expected weight_map, an object with keys")
    if absent := sorted(indexed.keys() - set().union(*made.values())):
        raise ValueError(f"no shard has {absent[0]}, which {INDEX} names")
    write_text(target / MADE_INDEX, index_text(target, list(made)))


def _tensors(path: Path) -> dict[str, Any]:
    import torch

    size = path.stat().st_size
    _require_stored(path, size)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's message would recommend unsafe loading
        loaded = None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for name, value in loaded.items()
    ):
        raise ValueError(f"{path.name} holds something other than named tensors")
    # A tensor can repeat a few stored values, and several tensors can share them, as tied weights do.
    sizes = [tensor.numel() * tensor.itemsize for tensor in loaded.values()]
    if max(sizes, default=0) > size or sum(sizes) > 2 * size:
        raise ValueError(f"{path.name} has {size:,} bytes, but tensors that are larger than it")
    # Tensors that share memory are written separately, as safetensors requires.
    return {name: loaded[name].contiguous().clone() for name in sorted(loaded)}


def _require_stored(path: Path, size: int) -> None:
    """Raise ValueError if the file is a zip with parts that are larger than it, as compressed ones are."""
    with open_regular(path, follow=True) as file:
        if file.read(4) == b"PK\x03\x04":
            with open_zip(file) as parts:
                if sum(part.file_size for part in parts.infolist()) > size:
                    raise ValueError(f"{path.name} has {size:,} bytes, but parts that are larger than it")


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
