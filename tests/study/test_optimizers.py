"""Tests of the optimizer of an arm."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_repeat.study.optimizers import Optimizer, OptimizerName

OLD = "adamw-8bit+bitsandbytes-0.41.0"


def test_a_name_contains_family_bits_and_map() -> None:
    assert Optimizer.parse(OLD) == Optimizer("adamw", 8, "bitsandbytes-0.41.0")
    assert Optimizer.parse("lion-32bit") == Optimizer("lion", 32)


@given(st.one_of(st.sampled_from(get_args(OptimizerName)), st.text(st.characters(exclude_characters="+~"))))
def test_every_name_survives_parsing(name: str) -> None:
    assert Optimizer.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("adamw-8bit", "8-bit"),
        ("adamw-32bit", "32-bit"),
        ("lion-8bit", "lion-8bit"),
        (OLD, "8-bit, map of bitsandbytes 0.41.0"),
        ("sgd", "sgd"),
    ],
)
def test_headings_are_those_of_the_paper(name: str, heading: str) -> None:
    assert Optimizer.parse(name).heading == heading


def test_each_8_bit_optimizer_has_a_32_bit_reference() -> None:
    found = {name: Optimizer.parse(name).reference.name for name in get_args(OptimizerName)}
    assert found.pop(OLD) == "adamw-8bit", "one change less"
    assert set(found.values()) == {"adamw-32bit", "lion-32bit"}
    average = Optimizer.parse(f"{OLD}~mean-of-3")
    assert (average.reference.name, average.name) == (OLD, f"{OLD}~mean-of-3")


def test_the_other_precision_is_of_the_same_family() -> None:
    found = {name: Optimizer.parse(name).other_precision.name for name in get_args(OptimizerName)}
    assert found == {
        "adamw-8bit": "adamw-32bit",
        "adamw-32bit": "adamw-8bit",
        "lion-8bit": "lion-32bit",
        "lion-32bit": "lion-8bit",
        OLD: "adamw-32bit",
    }
