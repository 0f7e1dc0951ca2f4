"""Distances between two adapters, from files that tests write."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qlora_repeat.analysis.adapter_distance import adapter_distances, read_adapter, update_distance
from qlora_repeat.errors import MissingError, UsageError

A, B = "layers.0.q.lora_A.weight", "layers.0.q.lora_B.weight"


def write(folder: Path, **changes: NDArray) -> Path:
    """Write an adapter of four values in A and two in B."""
    tensors = {
        A: np.array([[1, 2], [3, 4]], np.float32),
        B: np.array([[0.5], [0]], np.float32),
    }
    folder.mkdir()
    save_file(
        tensors | {{"a": A, "b": B}.get(key, key): value for key, value in changes.items()}, _file(folder)
    )
    return folder


def _file(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def test_distances_are_given_for_all_values_and_each_kind_of_matrix(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    second = write(
        tmp_path / "second", a=np.array([[1, 2], [3, 1]], np.float32), b=np.ones((2, 1), np.float32)
    )
    found = adapter_distances(first, second)
    assert list(found) == ["all", "lora_A", "lora_B"]
    assert (found["all"].values, found["all"].equal, found["all"].largest) == (6, 3, 3)
    assert found["all"].l2 == pytest.approx(math.sqrt(9 + 0.25 + 1))
    assert found["all"].relative == pytest.approx(math.sqrt((9 + 1.25) / (30 + 0.25)))
    assert (found["lora_A"].values, found["lora_A"].equal, found["lora_A"].l2) == (4, 3, 3)
    assert (found["lora_B"].values, found["lora_B"].equal, found["lora_B"].largest) == (2, 0, 1)


def test_an_adapter_has_distance_zero_from_its_copy(tmp_path: Path) -> None:
    odd = np.array([[math.nan, -0.0], [math.inf, 1e-45]], np.float32)
    found = adapter_distances(write(tmp_path / "first", a=odd), write(tmp_path / "second", a=odd))
    assert (found["all"].values, found["all"].equal) == (6, 6)


def test_values_are_equal_only_by_their_bits(tmp_path: Path) -> None:
    zeros = np.zeros((2, 1), np.float32)
    found = adapter_distances(write(tmp_path / "first", b=zeros), write(tmp_path / "second", b=-zeros))
    assert (found["lora_B"].equal, found["lora_B"].largest, found["lora_B"].relative) == (0, 0, None)


def test_a_difference_that_is_not_a_number_is_not_hidden(tmp_path: Path) -> None:
    broken = np.array([[math.nan, 2], [3, 4]], np.float32)
    found = adapter_distances(write(tmp_path / "first"), write(tmp_path / "second", a=broken))
    assert math.isnan(found["all"].largest)
    assert math.isnan(found["all"].l2)
    assert found["lora_B"].l2 == 0


def test_half_precision_values_are_read_exactly(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    for kind in (torch.bfloat16, torch.float16):
        for name, value in (("first", 1.0), ("second", 1.5)):
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir()
            save_torch({A: torch.full((2, 2), value, dtype=kind)}, _file(folder))
        found = adapter_distances(tmp_path / f"first-{kind}", tmp_path / f"second-{kind}")["all"]
        assert (found.equal, found.largest, found.l2, found.relative) == (0, 0.5, 1.0, 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"more": np.ones(1, np.float32)}, "only one has more"),
        ({"a": np.ones((2, 3), np.float32)}, "float32[2, 2] in one, float32[2, 3] in the other"),
        ({"b": np.ones((2, 1), np.float16)}, "float32[2, 1] in one, float16[2, 1] in the other"),
    ],
)
def test_adapters_with_different_tensors_have_no_distance(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        adapter_distances(write(tmp_path / "first"), write(tmp_path / "second", **change))
    assert words in str(caught.value)


def test_an_invalid_adapter_is_named(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), tmp_path / "second"
    with pytest.raises(MissingError, match="second: has no adapter"):
        adapter_distances(first, second)
    write(second)
    _file(second).write_bytes(_file(first).read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: not a safetensors file"):
        adapter_distances(first, second)
    save_file({A: np.ones(1, np.int32)}, _file(second))
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: has 'I32' values"):
        adapter_distances(first, second)


def test_the_distance_of_updates_is_the_distance_of_their_products(tmp_path: Path) -> None:
    changed = {"a": np.array([[1, 2], [3, 1]], np.float32), "b": np.array([[1], [0.5]], np.float32)}
    a, b = np.array([[1.0, 2], [3, 4]]), np.array([[0.5], [0]])
    ours, theirs = b @ a[:1], changed["b"] @ changed["a"][:1]
    given = {"a": a[:1].astype(np.float32)}, {"a": changed["a"][:1], "b": changed["b"]}
    first, second = write(tmp_path / "first", **given[0]), write(tmp_path / "second", **given[1])
    found = update_distance(read_adapter(first), read_adapter(second))
    mean = (np.sum(ours**2) + np.sum(theirs**2)) / 2
    assert found == pytest.approx(math.sqrt(np.sum((ours - theirs) ** 2) / mean))


def test_a_rank_above_the_size_of_the_product_needs_no_matrix_of_its_square(tmp_path: Path) -> None:
    """Compare adapters of 1.6 MB, whose rank would need 320 GB for the usual formula."""
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b"), 1):
        folder.mkdir()
        tensors = {
            "x.lora_A": np.full((200_000, 1), 1e-3, "f"),
            "x.lora_B": np.full((1, 200_000), number, "f"),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
    found = update_distance(read_adapter(tmp_path / "a"), read_adapter(tmp_path / "b"))
    assert found == pytest.approx(1 / math.sqrt((1 + 4) / 2))


def test_changes_that_cancel_in_the_product_give_no_distance(tmp_path: Path) -> None:
    row = np.array([[1, 2]], np.float32)
    first = write(tmp_path / "first", a=row)
    second = write(tmp_path / "second", a=row / 4, b=np.array([[2], [0]], np.float32))
    assert update_distance(read_adapter(first), read_adapter(second)) == 0
    assert adapter_distances(first, second)["all"].l2 > 1


def test_the_smallest_difference_of_updates_is_measured(tmp_path: Path) -> None:
    row = np.array([[1, 2]], np.float32)
    first = write(tmp_path / "first", a=row)
    second = write(tmp_path / "second", a=np.nextafter(row, np.float32(9)))
    expected = math.sqrt(2**-46 + 2**-44) / math.sqrt(5)
    assert update_distance(read_adapter(first), read_adapter(second)) == pytest.approx(expected, rel=1e-5)


def test_adapters_with_zero_updates_have_no_distance(tmp_path: Path) -> None:
    zero = {"a": np.ones((1, 2), np.float32), "b": np.zeros((2, 1), np.float32)}
    first, second = write(tmp_path / "first", **zero), write(tmp_path / "second", **zero)
    assert update_distance(read_adapter(first), read_adapter(second)) is None
