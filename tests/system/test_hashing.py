"""Digests of files and weights."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_repeat.errors import MissingError
from qlora_repeat.system import hashing
from qlora_repeat.system.hashing import (
    file_digest,
    json_digest,
    known_digest,
    manifest_digest,
    weights_digest,
)

TENSORS = {
    "model.b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "model.a": torch.randn(40, 30, generator=torch.Generator().manual_seed(1)),
    "scale": torch.tensor(0.5, dtype=torch.float64),
    "steps": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.float16),
    "tiny": torch.ones(3).to(torch.float8_e4m3fn),
}


def expected() -> str:
    """Return the digest computed from the tensors in memory."""
    return json_digest(
        {
            name: [
                str(value.dtype),
                list(value.shape),
                hashlib.sha256(value.flatten().view(torch.uint8).numpy().tobytes()).hexdigest(),
            ]
            for name, value in TENSORS.items()
        }
    )


def test_the_digest_of_weights_does_not_depend_on_how_they_are_split_into_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    save_file(TENSORS, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    names = list(TENSORS)
    for number, part in enumerate((names[:3], names[3:])):
        save_file({name: TENSORS[name] for name in part}, tmp_path / "two" / f"{number}.safetensors")
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two") == expected()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MissingError, match="'x' is in another file too"):
        weights_digest(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="it has no weights"):
        weights_digest(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(MissingError, match=r"adapter_model\.bin: pickled weights are not read"):
        weights_digest(tmp_path)


def test_a_change_right_after_a_digest_is_noticed(tmp_path: Path) -> None:
    """Change the file within one tick of the clock, and restore its old times."""
    path = tmp_path / "file"
    path.write_bytes(b"0000")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    for number in range(300):
        content = f"{number:04}".encode()
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=times)
        assert known_digest(path) == hashlib.sha256(content).hexdigest() == file_digest(path)


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_SETTLED", -(10**18))  # as if it had been written long ago
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    found = known_digest(path), weights_digest(tmp_path)
    monkeypatch.setattr(os, "open", None)  # it can no longer be read
    assert (known_digest(path), weights_digest(tmp_path)) == found
    monkeypatch.undo()
    content = json.loads(path.read_bytes()[8:].split(b"}}")[0].decode() + "}}")
    assert "model.a" in content
    os.replace(tmp_path / "model.safetensors", tmp_path / "old")
    save_file({**TENSORS, "steps": torch.tensor([1, 2, 4])}, path)
    assert known_digest(path) != found[0]
    assert weights_digest(tmp_path) != found[1]


def test_a_changed_manifest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_SETTLED", -(10**18))  # as if it had been written long ago
    assert manifest_digest(tmp_path) is None
    manifest = tmp_path / "manifest.json"
    for text, value in (('{"a":  "1"}', {"a": "1"}), ('{"a": "12"}', {"a": "12"}), ("{", None)):
        manifest.write_text(text)
        assert manifest_digest(tmp_path) == (value and json_digest(value))
    manifest.unlink()
    assert manifest_digest(tmp_path) is None
