"""The cache keeps reproducible work: quantized bases and token ids."""

import dataclasses
import errno
from pathlib import Path

import pytest
import torch
from support.places import NO_RUNS, at

from qlora_repeat.assets import derived_cache
from qlora_repeat.assets.base_models import base_folder, load_quantized, load_tokenizer
from qlora_repeat.assets.datasets import encode, part_rows
from qlora_repeat.assets.derived_cache import (
    encoded_part,
    has_copy,
    keep_copy,
    load_frozen_base,
    quantized_folder,
)
from qlora_repeat.errors import MissingError
from qlora_repeat.study.study import Study
from qlora_repeat.system.hashing import MANIFEST


@pytest.fixture
def own(study: Study, cache: Path, tmp_path: Path) -> Path:
    """Return a cache with the same bases and data, without copies."""
    for name in ("bases", "data"):
        (tmp_path / name).symlink_to(cache / name)
    return tmp_path


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-neox"])
@pytest.mark.parametrize(("double", "files"), [(True, 1), (False, 1), (True, 4)])
def test_a_4_bit_copy_has_the_same_bytes_as_quantizing(
    base: str, double: bool, files: int, study: Study, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if files > 1:
        monkeypatch.setattr(derived_cache, "_SHARD", "400KB")
    study = dataclasses.replace(study, quantization=dataclasses.replace(study.quantization, double=double))
    made = load_frozen_base(at(study, NO_RUNS, own), base)
    assert has_copy(quantized_folder(at(study, NO_RUNS, own), base))
    copied = load_frozen_base(at(study, NO_RUNS, own), base)
    assert len(list(quantized_folder(at(study, NO_RUNS, own), base).glob("*.safetensors"))) == files
    plain = load_quantized(study, base_folder(at(study, NO_RUNS, own), base))
    wanted = plain.state_dict()
    for model in (made, copied):
        found = model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert [value.dtype for value in found.values()] == [value.dtype for value in wanted.values()]
    assert [type(each) for each in copied.parameters()] == [type(each) for each in plain.parameters()]
    assert copied.is_loaded_in_4bit


def test_other_settings_have_other_copies(study: Study, own: Path) -> None:
    base, other = next(iter(study.bases)), dataclasses.replace(study.quantization, double=False)
    half = dataclasses.replace(study.precision, compute="bfloat16")
    folders = {
        quantized_folder(at(each, NO_RUNS, own), base)
        for each in (
            study,
            dataclasses.replace(study, quantization=other),
            dataclasses.replace(study, precision=half),
        )
    }
    assert len(folders) == 3


@pytest.mark.parametrize("how", ["flipped", "shorter", "gone", "no manifest", "no JSON"])
def test_a_damaged_copy_is_written_again(
    how: str, study: Study, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = next(iter(study.bases))
    load_frozen_base(at(study, NO_RUNS, own), base)
    folder = quantized_folder(at(study, NO_RUNS, own), base)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "shorter":
        path.write_bytes(content[:-1])
    elif how == "gone":
        path.unlink()
    elif how == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("[]")
    load_frozen_base(at(study, NO_RUNS, own), base)
    assert str(folder) in capsys.readouterr().err
    assert path.read_bytes() == content
    assert has_copy(folder)


def test_a_changed_base_is_not_quantized(study: Study, cache: Path, tmp_path: Path) -> None:
    base = next(iter(study.bases))
    folder = base_folder(at(study, NO_RUNS, tmp_path), base)
    folder.parent.mkdir(parents=True)
    for path in (source := base_folder(at(study, NO_RUNS, cache), base)).iterdir():
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes((source / weights.name).read_bytes()[:-2] + b"ab")
    with pytest.raises(MissingError, match=r"model\.safetensors was changed"):
        load_frozen_base(at(study, NO_RUNS, tmp_path), base)
    assert not (tmp_path / "quantized").exists()


def test_a_full_disk_costs_a_copy_and_nothing_else(
    study: Study, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = own / "quantized" / "base"
    keep_copy(folder, write)
    assert "no copy was kept (No space left on device)" in capsys.readouterr().err
    assert list(folder.parent.iterdir()) == []


def test_of_two_simultaneous_copies_the_first_stays(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own / "quantized" / "base"

    def write(new: Path) -> None:
        keep_copy(folder, lambda other: (other / "model").write_text("first"))
        (new / "model").write_text("second")

    keep_copy(folder, write)
    assert has_copy(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["base"]
    assert (folder / "model").read_text() == "first"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("limit", [None, 3])
def test_kept_token_ids_match_the_rows(limit: int | None, study: Study, own: Path) -> None:
    for name, model in study.models.items():
        tokenizer = load_tokenizer(base_folder(at(study, NO_RUNS, own), model.base))
        rows = part_rows(at(study, NO_RUNS, own), model.data, "train", 6)[:limit]
        alone = [encode(tokenizer, model, [row])[0] for row in rows]
        wanted = [dataclasses.replace(example, row=place) for place, example in enumerate(alone)]
        for _ in ("made", "kept"):
            assert encoded_part(at(study, NO_RUNS, own), name, "train", 6, tokenizer, limit) == wanted
        other = dataclasses.replace(model, template="Said: " + model.template)
        changed = dataclasses.replace(study, models=study.models | {name: other})
        assert encoded_part(at(changed, NO_RUNS, own), name, "train", 6, tokenizer, limit) != wanted
