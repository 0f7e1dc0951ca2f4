"""Safetensors files are read with the same result as by safetensors, and refused if they could do harm."""

import json
import pickle
import re
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qlora_repeat.errors import MissingError
from qlora_repeat.system import safetensors_file
from qlora_repeat.system.safetensors_file import (
    check_weights,
    read_header,
    read_weights,
    stream_weights,
    tensor_digests,
    weight_files,
)

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4, dtype=torch.float16),
    "flags": torch.tensor([True, False, True]),
}


def written(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of a header (bytes, or a value to encode) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def refusal(content: bytes) -> str:
    """Return the reason why a file is refused, which is one line that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        found = []
        for read in (read_header, read_weights, tensor_digests):
            with pytest.raises(MissingError) as caught:
                read(path)
            pattern = f"{path}: not a safetensors file \\((.*)\\); make or fetch it again"
            found.append(re.fullmatch(pattern, str(caught.value)))
    assert found[0] is not None and all(found)
    return found[0][1]


def test_weights_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    found = read_weights(path)
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        name: (value.dtype, value.tolist()) for name, value in TENSORS.items()
    }
    placed = read_header(path)
    assert placed["a"].dtype == "float32"
    assert placed["a"].shape == [2, 3]
    assert path.read_bytes()[placed["a"].start : placed["a"].end] == TENSORS["a"].numpy().tobytes()
    check_weights(tmp_path)


@pytest.mark.parametrize("kind", sorted(safetensors_file._DTYPES))
def test_every_type_has_torchs_name(kind: str, tmp_path: Path) -> None:
    name = safetensors_file._DTYPES[kind]
    size = getattr(torch, name).itemsize
    path = tmp_path / "model.safetensors"
    path.write_bytes(written({"x": entry(kind, [3], [0, 3 * size])}, bytes(range(3 * size))))
    assert read_header(path)["x"].dtype == name
    assert read_weights(path)["x"].dtype == getattr(torch, name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        written({}, length=3),
        written(b"{}", length=2**63),
        written(b""),
        written(b"[]"),
        written(b' {"x": 1}'),
        written(b"{"),
        written(b"{" + b"\xff}"),
        written(b'{"x":' * 100_000),
        written(b'{"x": 1, "x": 2}'),
        written(b'{"x": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}', b"0000"),
        written({"__metadata__": {"format": 1}}),
        written({"__metadata__": "pt"}),
        written({"x": [1]}),
        written({"x": {"dtype": "F32", "shape": [1]}}, b"0000"),
        written({"x": entry("object")}, b"0000"),
        written({"x": entry(["F32"])}, b"0000"),
        written({"x": entry("F4", [8])}, b"0000"),
        written({"x": entry(shape=[-1, -1])}, b"0000"),
        written({"x": entry(shape=[1.0])}, b"0000"),
        written({"x": entry(shape=[True])}, b"0000"),
        written({"x": entry(offsets=[0, 4, 8])}, b"0000"),
        written({"x": entry(offsets=[-4, 0])}, b"0000"),
        written({"x": entry(offsets=[4, 0])}, b"0000"),
        written({"x": entry(shape=[2**40, 2**40])}, b"0000"),
        written({"x": entry()}),
        written({"x": entry()}, b"00000000"),
        written({"x": entry(offsets=[4, 8])}, b"00000000"),
        written({"x": entry(), "y": entry()}, b"0000"),
        written({"x": entry(), "y": entry(offsets=[8, 12])}, b"0" * 12),
    ],
)
def test_a_file_with_an_invalid_header_is_refused(content: bytes) -> None:
    assert refusal(content)


def test_a_shape_without_values_is_not_taken_for_a_huge_one() -> None:
    content = written({"x": entry(shape=(0, 2**62), offsets=(0, 0))})
    assert "'x' has the impossible shape [0, 4611686018427387904]" in refusal(content)


def test_a_header_of_30_mb_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(written(b"{" + b" " * 30_000_000 + b"}"))
    with pytest.raises(MissingError, match="its header is larger than 20 MB"):
        read_header(path)


def test_a_header_of_more_than_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # a sparse file takes no disk space
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)
    with pytest.raises(MissingError, match="not a safetensors file"):
        read_header(path)


class Harm:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm-was-done"),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_named_safetensors_is_recognized(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(pickle.dumps(Harm(), protocol)) == "it is a pickle, which could run code"
    assert not (tmp_path / "harm-was-done").exists()


def test_archives_of_torch_are_recognized_as_pickles(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "model.bin")
    assert refusal((tmp_path / "model.bin").read_bytes()) == "it is a pickle, which could run code"
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Harm()))
    assert refusal((tmp_path / "model.zip").read_bytes()) == "it is a pickle, which could run code"


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.pt", "x.pth", "x.ckpt", "x.pkl", "x.pickle"])
def test_pickled_weights_in_place_of_safetensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    for read in (weight_files, lambda folder: read_weights(folder / "adapter_model.safetensors")):
        with pytest.raises(MissingError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / name}: pickled weights are not read")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"^{tmp_path}: it has no weights"):
        weight_files(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(MissingError, match=r"other.safetensors: the file is missing"):
        read_weights(tmp_path / "other.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(MissingError, match=r"folder.safetensors: not a safetensors file \(Is a directory\)"):
        check_weights(tmp_path)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": "../outside/model.safetensors"}}, "it names '../outside/model.safe"),
        ({"weight_map": {"a": "/etc/passwd"}}, "it names '/etc/passwd'"),
        ({"weight_map": {"a": "other.safetensors"}}, "it names 'other.safetensors', which is no"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "it names 'pytorch_model.bin', which is no"),
        ({"weight_map": {"a": ["model.safetensors"]}}, "it names"),
        ({"weight_map": ["a"]}, "not an index of weights"),
        ([], "not an index of weights"),
        (b'{"weight_map": {}, "weight_map": {"a": "model.safetensors"}}', "key 'weight_map' appears tw"),
        (b"\x80", "cannot be read"),
    ],
)
def test_an_index_that_names_other_files_is_refused(index: Any, reason: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "base", tmp_path / "outside"):
        folder.mkdir()
        save_file(TENSORS, folder / "model.safetensors")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    path = tmp_path / "base" / INDEX
    path.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
    check_weights(tmp_path / "base")
    path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    with pytest.raises(MissingError) as caught:
        check_weights(tmp_path / "base")
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


HEADERS = st.dictionaries(
    st.sampled_from(["x", "y", "__metadata__"]),
    st.builds(
        entry,
        st.sampled_from(["F32", "U8", "BOOL", "F64", "nonsense"]),
        st.lists(st.integers(-1, 3), max_size=3),
        st.lists(st.integers(-1, 16), min_size=1, max_size=3),
    )
    | st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    max_size=3,
)


@settings(deadline=None, max_examples=200)
@given(HEADERS | st.binary(max_size=30), st.binary(max_size=16), st.integers(-2, 2))
def test_safetensors_reads_every_accepted_file(header: Any, data: bytes, off: int) -> None:
    content = written(header, data)
    length = max(int.from_bytes(content[:8], "little") + off, 0)
    content = struct.pack("<Q", length) + content[8:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        try:
            placed = read_header(path)
        except MissingError as error:
            assert len(str(error).splitlines()) == 1
            return
        assert {name: list(value.shape) for name, value in load_file(path).items()} == {
            name: tensor.shape for name, tensor in placed.items()
        }


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_truncated_or_corrupted_file_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(TENSORS, path)
        whole = bytearray(path.read_bytes())
        cut = data.draw(st.integers(0, len(whole)))
        for bit in data.draw(st.lists(st.integers(0, len(whole) * 8 - 1), max_size=3)):
            whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole[:cut])
        if cut < len(whole):
            with pytest.raises(MissingError):
                read_header(path)
        try:
            read_weights(path)
        except MissingError as error:
            assert len(str(error).splitlines()) == 1


def test_other_errors_of_safetensors_have_the_same_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise an error that the check does not know."""
    save_file(TENSORS, tmp_path / "model.safetensors")

    def refuse(path: Path) -> None:
        raise SafetensorError("a reason")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    with pytest.raises(MissingError, match=r"model\.safetensors: not a safetensors file \(a reason\)"):
        read_weights(tmp_path / "model.safetensors")


def test_a_file_written_tensor_by_tensor_has_the_same_tensors(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 4, dtype=torch.int8),
        "three": torch.tensor([True, False, True]),
        "half": torch.randn(3, 5).to(torch.float16),
        "brain": torch.randn(7).to(torch.bfloat16),
        "turned": torch.arange(12).reshape(3, 4).T,
    }
    wanted = {
        name: (str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in tensors.items()
    }
    path = tmp_path / "streamed.safetensors"
    stream_weights(path, wanted, tensors.__getitem__)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [value.dtype for value in found.values()] == [tensors[name].dtype for name in found]
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "whole.safetensors")
    assert tensor_digests(path) == tensor_digests(tmp_path / "whole.safetensors")
