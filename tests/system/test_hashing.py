"""Digests of files and weights."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_repeat.errors import MissingError
from qlora_repeat.system import hashing, parallel
from qlora_repeat.system.files import new_folder
from qlora_repeat.system.hashing import (
    MANIFEST,
    file_digest,
    folder_digests,
    json_digest,
    known_digest,
    known_digests,
    manifest_digest,
    read_manifest,
    remember,
    weights_digest,
)
from qlora_repeat.system.safetensors_file import stream_weights, tensor_digests

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


def test_files_in_parallel_have_the_same_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_WORTH_THREADS", 0)
    for number in range(7):
        (tmp_path / f"{number}.bin").write_bytes(os.urandom(300_000))
    save_file(TENSORS, tmp_path / "model.safetensors")
    paths = sorted(tmp_path.iterdir())
    wanted = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert known_digests(paths) == wanted
    assert folder_digests(tmp_path) == {path.name: digest for path, digest in wanted.items()}
    assert weights_digest(tmp_path) == expected()
    with pytest.raises(FileNotFoundError):
        known_digests([*paths, tmp_path / "missing"])


def test_a_link_gives_a_known_digest_but_no_value_of_a_file_that_refuses_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_SETTLED", -(10**18))  # as if it had been written long ago
    path, link = tmp_path / MANIFEST, tmp_path / "linked" / MANIFEST
    path.write_text('{"a": "1"}')
    link.parent.mkdir()
    link.symlink_to(path)
    digest = known_digest(path)
    assert read_manifest(tmp_path) == {"a": "1"}
    assert read_manifest(link.parent) is None
    monkeypatch.setattr(os, "open", None)  # it can no longer be read
    assert known_digest(link) == digest


def test_written_weights_are_not_read_to_be_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: (str(value.dtype).removeprefix("torch."), value.shape) for name, value in TENSORS.items()}
    folder = tmp_path / "weights"
    with new_folder(folder) as new:
        written = stream_weights(new / "model.safetensors", wanted, TENSORS.__getitem__)
        assert written.sha256 == file_digest(new / "model.safetensors")
        assert written.tensors == tensor_digests(new / "model.safetensors")
        monkeypatch.setattr(hashing, "_WORTH_WAITING", 0)
        remember(written)
    path = folder / "model.safetensors"
    with monkeypatch.context() as closed:
        closed.setattr(os, "open", None)  # it can no longer be read
        assert known_digest(path) == written.sha256
        assert weights_digest(folder) == expected()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, ns=(written.state.st_atime_ns, written.state.st_mtime_ns))
    assert known_digest(path) == file_digest(path) != written.sha256
    assert weights_digest(folder) != expected()


def test_what_was_written_a_moment_ago_is_read_again(tmp_path: Path) -> None:
    """Change the file within one tick of the clock, and restore its old times."""
    wanted = {"x": ("float32", (1,))}
    for number in range(50):
        path = tmp_path / f"{number}.safetensors"
        written = stream_weights(path, wanted, lambda name: torch.ones(1))
        remember(written)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        os.utime(path, ns=(written.state.st_atime_ns, written.state.st_mtime_ns))
        assert known_digest(path) == file_digest(path) != written.sha256


def test_a_changed_manifest_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_SETTLED", -(10**18))  # as if it had been written long ago
    assert manifest_digest(tmp_path) is None
    manifest = tmp_path / "manifest.json"
    for text, value in (('{"a":  "1"}', {"a": "1"}), ('{"a": "12"}', {"a": "12"}), ("{", None)):
        manifest.write_text(text)
        assert manifest_digest(tmp_path) == (value and json_digest(value))
    manifest.unlink()
    assert manifest_digest(tmp_path) is None
