"""SHA-256 digests of files, of JSON values and of weights, as lower-case hexadecimal."""

import hashlib
import json
from pathlib import Path
from typing import Any


def text_digest(text: str) -> str:
    """The digest of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def json_digest(value: Any) -> str:
    """The digest of a JSON value, whatever the order of its keys."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def weights_digest(folder: Path) -> str:
    """The digest of the weights in a folder of safetensors files: names, types, shapes and values.

    Independent of how the weights are spread over files and of what the files' headers say besides.
    """
    from safetensors import safe_open

    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                tensor = tensors.get_tensor(name).contiguous()
                content = hashlib.sha256(tensor.flatten().view(_bytes_type()).numpy())
                digests[name] = [str(tensor.dtype), list(tensor.shape), content.hexdigest()]
    return json_digest(digests)


def tensors_digest(tensors: dict[str, Any]) -> str:
    """The digest of weights in memory: that of the folder that they would be saved to."""
    digests = {}
    for name, tensor in tensors.items():
        content = hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(_bytes_type()).numpy())
        digests[name] = [str(tensor.dtype), list(tensor.shape), content.hexdigest()]
    return json_digest(digests)


def _bytes_type() -> Any:
    import torch

    return torch.uint8
