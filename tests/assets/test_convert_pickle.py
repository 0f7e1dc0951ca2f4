"""Pickled weights are converted once, to the same values, and never run."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.hub_server import Hub
from support.hub_study import PICKLED, User
from transformers import AutoModelForCausalLM

from qlora_repeat.assets.convert_pickle import INDEX, convert
from qlora_repeat.system.hashing import file_digest

SOLVER = ("--only", "solver")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
FIRST = "pytorch_model-00001-of-00002.bin"


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def pickled(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in the shards of a snapshot."""
    shards = sorted(path.glob("pytorch_model*.bin"))
    assert len(shards) == 2
    return {name: value for shard in shards for name, value in torch.load(shard, weights_only=True).items()}


def test_converted_values_match_the_pickles(fetched: User) -> None:
    expected = pickled(fetched.snapshot(PICKLED))
    model = AutoModelForCausalLM.from_pretrained(fetched.base("neox"), use_safetensors=True)
    loaded = model.state_dict()
    assert set(loaded) == set(expected)
    assert [name for name in expected if not torch.equal(loaded[name], expected[name])] == []
    assert {loaded[name].dtype for name in expected} == {torch.float16}


def test_folders_of_models_have_no_pickle(fetched: User) -> None:
    names = sorted(path.name for path in fetched.base("neox").iterdir())
    assert names == [
        "config.json",
        "manifest.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not any(path.read_bytes().startswith((b"PK", b"\x80")) for path in fetched.base("neox").iterdir())


def test_the_lock_has_the_digests_of_both(fetched: User) -> None:
    entry = fetched.locked()[PICKLED]
    snapshot, base = fetched.snapshot(PICKLED), fetched.base("neox")
    shards = [name for name in entry["files"] if name.endswith(".bin")]
    assert len(shards) == 2
    assert {name: entry["files"][name]["digest"] for name in shards} == {
        name: file_digest(snapshot / name) for name in shards
    }
    assert entry["converted"] == {path.name: file_digest(path) for path in base.glob("*.safetensors")}


def test_weights_are_converted_once(copied: User) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.base("neox").iterdir()}
    copied.fetch(*SOLVER, **OFFLINE)
    assert {path: path.stat().st_mtime_ns for path in copied.base("neox").iterdir()} == before


def test_other_bytes_than_locked_are_refused_and_leave_nothing(copied: User) -> None:
    lock = copied.locked()
    lock[PICKLED]["converted"]["model-00001-of-00002.safetensors"] = "0" * 64
    copied.lock.write_text(json.dumps(lock))
    shutil.rmtree(copied.base("neox"))
    assert copied.refused(*SOLVER, **OFFLINE) == (
        f"{PICKLED}: its pickled weights convert to other bytes than locked; "
        "install the locked version of torch"
    )
    assert [path.name[:5] for path in (copied.cache / "bases").iterdir()] == ["llama"]


def test_a_pickle_with_code_is_refused_and_not_run(user: User, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    trap = tmp_path / "trap"
    evil = pickle.dumps({"weight": Malicious(trap)})
    hub.repositories[f"models/{PICKLED}"].commit({FIRST: evil})
    assert user.refused(*SOLVER) == (
        f"{PICKLED}: its pickled weights cannot be converted "
        f"(ValueError: {FIRST} holds something other than named tensors)"
    )
    assert not trap.exists()
    assert PICKLED not in user.locked()
    assert not list((user.cache / "bases").iterdir())
    pickle.loads(evil)
    assert trap.exists(), "otherwise this test would show nothing"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder of two shards and their index."""
    folder = tmp_path / "shards"
    folder.mkdir()
    torch.save(
        {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1], dtype=torch.bool)}, folder / FIRST
    )
    torch.save({"c": torch.tensor([0.5], dtype=torch.bfloat16)}, folder / FIRST.replace("1-", "2-"))
    weight_map = {"a": FIRST, "b": FIRST, "c": FIRST.replace("1-", "2-")}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def converted(source: Path, target: Path) -> Path:
    target.mkdir()
    convert(source, target, [path.name for path in source.iterdir()])
    return target


def test_shapes_types_and_the_index_survive(shards: Path, tmp_path: Path) -> None:
    target = converted(shards, tmp_path / "out")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    tensors = load_file(target / first) | load_file(target / second)
    assert tensors["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (tensors["a"].dtype, tensors["c"].dtype) == (torch.bool, torch.bfloat16)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": first, "b": first, "c": second}
    assert index["metadata"]["total_size"] == 6 * 4 + 1 + 2
    with safe_open(target / first, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}, "transformers requires it"


def test_the_same_weights_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    one, two = converted(shards, tmp_path / "one"), converted(shards, tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 3
    assert [name for name in names if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_a_single_file_needs_no_index_and_tied_weights_are_both_kept(tmp_path: Path) -> None:
    tied = torch.ones(2)
    (tmp_path / "in").mkdir()
    torch.save({"embed": tied, "head": tied}, tmp_path / "in" / "pytorch_model.bin")
    target = converted(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    assert load_file(target / "model.safetensors")["head"].tolist() == [1, 1]


def test_only_the_named_files_are_converted(shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    torch.save({"d": torch.ones(1)}, shards / "pytorch_model-00003-of-00003.bin")
    (shards / INDEX).write_text(json.dumps({"weight_map": {"d": "../pytorch_model.bin"}}))
    convert(shards, target, [FIRST])
    assert [path.name for path in target.iterdir()] == ["model-00001-of-00002.safetensors"]


def test_an_index_with_a_missing_tensor_is_refused(shards: Path, tmp_path: Path) -> None:
    """Refuse it, since transformers would initialize the tensor at random without an error."""
    content = json.loads((shards / INDEX).read_text())
    content["weight_map"]["head"] = FIRST
    (shards / INDEX).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no shard has head, which"):
        converted(shards, tmp_path / "out")


def test_a_small_pickle_that_would_become_huge_is_refused(tmp_path: Path) -> None:
    """Neither repeat a stored value, nor share it many times, nor expand a compressed file."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "pytorch_model.bin"
    one = torch.zeros(1)
    for values in ({"a": one.expand(134_217_728)}, {f"t{n}": one.expand(200) for n in range(1000)}):
        torch.save(values, path)
        assert path.stat().st_size < 200_000
        with pytest.raises(ValueError, match=r"bytes, but tensors that are larger than it$"):
            converted(tmp_path / "in", tmp_path / f"out-{len(values)}")
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as stored:
        parts = {info.filename: stored.read(info) for info in stored.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name, content in parts.items():
            compressed.writestr(name, content)
    with pytest.raises(ValueError, match=r"bytes, but parts that are larger than it$"):
        converted(tmp_path / "in", tmp_path / "out")


def test_tied_weights_are_converted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tied = torch.ones(1000)
    torch.save({"embed": tied, "head": tied}, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "in", tmp_path / "out", ["pytorch_model.bin"])
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"embed", "head"}


@pytest.mark.parametrize("content", ["a list", "a number among tensors", "a zip of pickles that run code"])
def test_a_pickle_with_other_content_than_tensors_is_refused(content: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    values = {
        "a list": [torch.ones(1)],
        "a number among tensors": {"a": torch.ones(1), "step": 3},
        "a zip of pickles that run code": {"a": Malicious(trap)},
    }
    (tmp_path / "in").mkdir()
    torch.save(values[content], tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^pytorch_model\.bin holds something other than named tensors$"):
        converted(tmp_path / "in", tmp_path / "out")
    assert not trap.exists()
