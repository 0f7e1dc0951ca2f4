"""The first difference between two traces or trials, from files that tests write."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.made_traces import changed, trace

from qlora_repeat.analysis.trial_diff import MEANINGS, Divergence, first_divergence
from qlora_repeat.records.trace import Step
from qlora_repeat.render.text.diff import meaning

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
CHANGES: dict[str, tuple[str, Any]] = {
    "examples": ("data", [999]),
    "tokens": ("data", 9999),
    "learning_rate": ("learning rate", 0.5),
    "loss": ("loss", 17.25),
    "gradient_norm": ("gradient", 17.5),
    "skipped": ("skipped", True),
    "adapter": ("update", "another"),
}
"""Fields of a step, the kind of their difference, and a changed value."""


def found(first: Sequence[Step], second: Sequence[Step]) -> Divergence:
    divergence = first_divergence(first, second)
    assert divergence is not None
    return divergence


@pytest.mark.parametrize("name", CHANGES)
def test_the_first_different_step_and_its_kind_are_named(name: str) -> None:
    kind, value = CHANGES[name]
    own = trace(9)
    for place in (1, 5, 9):
        divergence = found(own, changed(own, place, **{name: value}))
        assert (divergence.step, divergence.kind) == (place, kind)
        assert (divergence.first, divergence.second) == (getattr(own[place], name), value)
        assert divergence.alike_after == place - 1


def test_different_initial_adapters_are_of_kind_init() -> None:
    divergence = found(trace(3), changed(trace(3), 0, adapter="another"))
    assert (divergence.step, divergence.kind, divergence.alike_after) == (0, "init", None)
    assert divergence.apart_after == 0


def test_within_a_step_causes_are_named_before_effects() -> None:
    own, other = trace(4), trace(4)
    for name in reversed(CHANGES):  # the one after the other, from the last that a step computes
        kind, value = CHANGES[name]
        other = changed(other, 3, **{name: value})
        assert found(own, other).kind == kind


@settings(deadline=None)
@given(st.data())
def test_the_first_change_is_found_in_any_traces(data: st.DataObject) -> None:
    step = st.builds(
        Step,
        step=st.just(1),
        examples=st.none() | st.lists(st.integers(0, 3), max_size=2),
        tokens=st.none() | st.integers(0, 3),
        loss=st.none() | FLOATS,
        gradient_norm=st.none() | FLOATS,
        learning_rate=st.none() | FLOATS,
        skipped=st.booleans(),
        adapter=st.none() | st.sampled_from("abc"),
    )
    drawn = [Step(0, adapter="a"), *data.draw(st.lists(step, min_size=1, max_size=8))]
    own = [replace(each, step=place) for place, each in enumerate(drawn)]
    assert first_divergence(own, list(own)) is None
    place = data.draw(st.integers(1, len(own) - 1))
    name = data.draw(st.sampled_from([name for name in CHANGES if getattr(own[place], name) is not None]))
    kind, value = CHANGES[name]
    value = not own[place].skipped if name == "skipped" else value
    if isinstance(value, float) and value == getattr(own[place], name):
        value += 1
    divergence = found(own, changed(own, place, **{name: value}))
    assert (divergence.step, divergence.kind) == (place, kind)
    known = [each.step for each in own[:place] if each.adapter is not None]
    assert divergence.alike_after == known[-1]


def test_numbers_are_compared_bit_by_bit() -> None:
    own = changed(trace(3), 2, loss=math.nan, gradient_norm=math.inf)
    assert first_divergence(own, changed(own, 2, loss=float("nan"))) is None
    for one, other in ((0.0, -0.0), (1.0, math.nextafter(1.0, 2)), (math.nan, 1.0), (math.inf, -math.inf)):
        divergence = found(changed(own, 2, loss=one), changed(own, 2, loss=other))
        assert (divergence.step, divergence.kind) == (2, "loss")


def test_a_value_that_one_trace_lacks_is_no_difference() -> None:
    own = trace(5)
    for name in CHANGES:
        if name != "skipped":
            assert first_divergence(own, changed(own, 2, **{name: None})) is None
    assert first_divergence(own, trace(3)) is None
    assert first_divergence(own, []) is None
    assert first_divergence(trace(6, digest_every=2), trace(6, digest_every=3)) is None


def test_sparse_digests_narrow_down_where_the_adapters_first_differ() -> None:
    own = trace(40, digest_every=10)
    late = changed(changed(own, 17, loss=9.0), 20, adapter="another")
    divergence = found(own, late)
    assert (divergence.step, divergence.kind) == (17, "loss")
    assert (divergence.alike_after, divergence.apart_after) == (10, 20)
    assert "one of steps 11 to 16, which has no digest" in meaning(divergence)
    assert "dropout" in meaning(divergence)
    assert "optimizer" in meaning(divergence)

    unseen = found(own, changed(own, 30, adapter="another"))
    assert (unseen.step, unseen.kind, unseen.alike_after, unseen.apart_after) == (30, "update", 20, 30)
    assert "from step 21 to 30" in meaning(unseen)

    known = found(own, changed(own, 21, loss=9.0))
    assert known.apart_after is None
    assert meaning(known) == MEANINGS["loss"], "the adapters were the same after step 20"

    one_unseen = found(own, changed(own, 22, loss=9.0))
    assert "step 21, which has no digest" in meaning(one_unseen)

    without = [replace(step, adapter=None) for step in own]
    assert "no earlier step has digests of both" in meaning(found(without, changed(without, 3, loss=9.0)))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("examples", "order"),
        ("learning_rate", "schedule"),
        ("loss", "dropout"),
        ("gradient_norm", "backward"),
        ("skipped", "scaler"),
        ("adapter", "optimizer"),
    ],
)
def test_each_kind_points_to_its_causes_in_one_sentence(name: str, word: str) -> None:
    own = trace(3)
    sentence = meaning(found(own, changed(own, 2, **{name: CHANGES[name][1]})))
    assert word in sentence
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")
