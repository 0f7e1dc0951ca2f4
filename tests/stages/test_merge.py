"""Adapters are merged, and invalid or harmful ones are refused before they are used."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_repeat.errors import MissingError, StageError
from qlora_repeat.stages.merge import merge_weights

LORA = {"layer.lora_A.weight": torch.ones(2, 3), "layer.lora_B.weight": torch.ones(4, 2)}
CONFIG = {"r": 2, "lora_alpha": 4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a base model with one weight and a configuration."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"layer.weight": torch.ones(4, 3), "other": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def adapter(tmp_path: Path, tensors: dict[str, Any] = LORA, config: str = json.dumps(CONFIG)) -> Path:
    """Return an adapter with these tensors and this configuration."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    prefixed = {f"base_model.model.{name}": value for name, value in tensors.items()}
    save_file(prefixed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(config)
    return folder


def merged(base: Path, adapter: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "merged").mkdir()
    merge_weights(base, adapter, tmp_path / "merged", "float32")
    return load_file(tmp_path / "merged" / "model.safetensors")


def test_merging_computes_the_papers_sum(base: Path, tmp_path: Path) -> None:
    found = merged(base, adapter(tmp_path), tmp_path)
    assert found["layer.weight"].tolist() == [[1 + 2 * 4 / 2] * 3] * 4
    assert found["other"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"r": 2, "lora_alpha": 4, "r": 1}', "key 'r' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
        ("[]", "expected numbers lora_alpha and r"),
        ('{"r": 2}', "expected numbers lora_alpha and r"),
        ('{"r": "2", "lora_alpha": 4}', "expected numbers lora_alpha and r"),
        ('{"r": 0, "lora_alpha": 4}', "expected numbers lora_alpha and r"),
        ('{"r": 2, "lora_alpha": Infinity}', "lora_alpha: expected a finite number"),
        ('{"r": 2, "lora_alpha": 4, "target_modules": 5}', "target_modules: expected a list"),
        (f'{{"r": 1{"0" * 400}, "lora_alpha": 4}}', "needs more than 64 bits"),
    ],
)
def test_an_invalid_configuration_is_refused(config: str, reason: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path, config=config)
    with pytest.raises(MissingError) as caught:
        merged(base, folder, tmp_path)
    assert str(caught.value).startswith(f"{folder}/adapter_config.json: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; fine-tune again")


class Harm:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm-was-done"),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_refused_by_name(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(MissingError, match=f"^{folder / name}: .*pickle"):
        merged(base, folder, tmp_path)
    assert not Path("harm-was-done").exists()


def test_an_incomplete_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path, {"layer.lora_A.weight": torch.ones(2, 3)})
    with pytest.raises(
        MissingError, match=r"base_model.model.layer.lora_B.weight is missing; fine-tune again"
    ):
        merged(base, folder, tmp_path)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path, {f"another.{name}": value for name, value in LORA.items()})
    with pytest.raises(StageError, match=r"it changes another\.layer\.weight, which is not in "):
        merged(base, folder, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "layer.lora_magnitude_vector.weight",
        "layer.lora_embedding_A",
        "layer.lora_B.bias",
        "other.lora_B.weight",
    ],
)
def test_a_tensor_that_a_merge_would_drop_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path, {**LORA, name: torch.ones(4, 2)})
    with pytest.raises(
        StageError, match=rf"base_model\.model\.{name} cannot be merged; only A and B of linear"
    ):
        merged(base, folder, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "scale", "beyond"),
    [("float16", 1.0, 3), ("float16", 40_000.0, 15), ("bfloat16", 1.0, 0), ("float32", 1.0, 0)],
)
def test_weights_beyond_the_merged_precision_are_counted_and_refused(
    dtype: str, scale: float, beyond: int, base: Path, tmp_path: Path
) -> None:
    """Count weights of the base, and with a large scale all of the layer that is changed."""
    tensors = load_file(base / "model.safetensors")
    tensors["another"] = torch.tensor([1.0, 7e4, -7e4, 65504.0, 1e6, float("inf")])
    save_file(tensors, base / "model.safetensors")
    folder = adapter(tmp_path, config=json.dumps({"r": 2, "lora_alpha": 2 * scale}))
    (tmp_path / "merged").mkdir()
    if not beyond:
        merge_weights(base, folder, tmp_path / "merged", dtype)
        return
    expected = (
        rf"{beyond} merged weights are beyond float16, which ends at 6\.55e\+04, such as in another; set "
    )
    with pytest.raises(StageError, match=expected):
        merge_weights(base, folder, tmp_path / "merged", dtype)


def test_an_adapter_that_diverged_is_merged(base: Path, tmp_path: Path) -> None:
    """Its numbers are not lost by the precision, and the tables must show what became of it."""
    tensors = LORA | {"layer.lora_B.weight": torch.full((4, 2), float("nan"))}
    assert merged(base, adapter(tmp_path, tensors), tmp_path)["layer.weight"].isnan().all()


@pytest.mark.parametrize(
    ("a", "b"),
    [((1, 100_000), (100_000, 1)), ((2, 3), (1, 2)), ((2, 1), (4, 2)), ((3, 3), (4, 2)), ((3,), (4, 2))],
)
def test_an_adapter_of_other_shapes_is_refused_before_the_product(
    a: tuple[int, ...], b: tuple[int, ...], base: Path, tmp_path: Path
) -> None:
    """Refuse products that need 40 GB, or that torch would repeat to the shape of the weight."""
    tensors = {"layer.lora_A.weight": torch.ones(a), "layer.lora_B.weight": torch.ones(b)}
    with pytest.raises(StageError, match=r"B, A and layer\.weight have the shapes"):
        merged(base, adapter(tmp_path, tensors), tmp_path)


def test_a_base_whose_index_points_outside_is_refused(base: Path, tmp_path: Path) -> None:
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layer.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(MissingError, match=f"^{index}: it names "):
        merged(base, adapter(tmp_path), tmp_path)


def test_merging_holds_one_tensor_of_the_base_at_a_time(tmp_path: Path) -> None:
    """Measure memory other than mapped files, which the system can drop without swapping."""
    (folder := tmp_path / "base").mkdir()
    shape = (2048, 4096)  # 32 MiB each in float32
    save_file({f"layer.{n}.weight": torch.ones(shape) for n in range(16)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    lora = {f"layer.{n}.lora_A.weight": torch.ones(2, shape[1]) for n in range(16)}
    lora |= {f"layer.{n}.lora_B.weight": torch.ones(shape[0], 2) for n in range(16)}
    adapter(tmp_path, lora)
    (tmp_path / "merged").mkdir()
    found = subprocess.run(
        [sys.executable, "-c", MERGE_AND_WATCH, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 200 * 2**20  # all merged weights take 256 MiB, in float32 512 MiB
    assert load_file(tmp_path / "merged" / "model.safetensors")["layer.7.weight"][0, 0] == 5


MERGE_AND_WATCH = """
import re, sys, threading
from pathlib import Path
from safetensors.torch import load_file
import torch
from qlora_repeat.assets.layers import base_skeleton
from qlora_repeat.stages.merge import merge_weights
torch.ones(2048, 2) @ torch.ones(2, 4096)
base_skeleton(Path(sys.argv[1]) / "base")  # libraries would count otherwise

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def watch():
    while not ended.wait(0.002):
        most.append(anonymous())

folder, most, ended = Path(sys.argv[1]), [before := anonymous()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
merge_weights(folder / "base", folder / "adapter", folder / "merged", "float16")
ended.set()
thread.join()
print(max(most) - before)
"""
