"""Streams of randomness do not affect each other."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_repeat.assets.datasets import batch_order, split_rows
from qlora_repeat.study.data_sources import Data
from qlora_repeat.study.randomness import SOURCES, PerTrial, Source, draw_seed, stream_seed, torch_stream

PUBLISHED = [976230583, 3434540021, 505533444, 299985713, 1734428444]
SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.sampled_from(SOURCES), st.lists(st.integers(0, 99) | st.floats(0, 2), max_size=3))
def test_a_seed_is_accepted_by_every_library(seed: int, source: Any, position: list[float]) -> None:
    found = stream_seed(seed, source, *position)
    assert 0 <= found < 2**32
    assert found == stream_seed(seed, source, *position)
    np.random.RandomState(found)


def test_a_seed_depends_on_each_argument() -> None:
    seeds = {
        stream_seed(seed, source, *position)
        for seed in range(20)
        for source in SOURCES
        for position in [(), (0,), (1,), (0, 1), (1, 0), (1, 1, 0.1), (1, 1, 1.0)]
    }
    assert len(seeds) == 20 * len(SOURCES) * 7


def test_a_seed_depends_on_nothing_else() -> None:
    seeds = set()
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        seeds.add(stream_seed(42, "dropout", 3))
    script = "from qlora_repeat.study.randomness import stream_seed; print(stream_seed(42, 'dropout', 3))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seeds == {int(elsewhere.stdout)}


def test_seeds_equal_those_of_published_results() -> None:
    assert [stream_seed(42, source) for source in SOURCES] == PUBLISHED


def test_fresh_draws_differ_even_with_equal_seeds() -> None:
    drawn = set()
    for _ in range(50):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        drawn.add(draw_seed("fresh", "adapter_init", 1))
    assert len(drawn) == 50
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_a_stream_does_not_depend_on_what_ran_before() -> None:
    drawn = []
    for state in (1, 2):
        torch.manual_seed(state)
        with torch_stream(7):
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("failing", [False, True])
def test_a_stream_leaves_the_generator_unchanged(failing: bool) -> None:
    torch.manual_seed(1)
    undisturbed = torch.rand(3).tolist()
    torch.manual_seed(1)
    try:
        with torch_stream(7):
            torch.rand(5)
            assert not failing
    except AssertionError:
        assert failing
    assert torch.rand(3).tolist() == undisturbed


def test_streams_within_each_other_do_not_mix() -> None:
    with torch_stream(7):
        alone = torch.rand(4).tolist()
    with torch_stream(7):
        first = torch.rand(2).tolist()
        with torch_stream(8):
            torch.rand(2)
        assert first + torch.rand(2).tolist() == alone


def test_a_seed_is_for_all_trials_or_for_each() -> None:
    for source in SOURCES:
        assert {draw_seed(42, source, trial) for trial in range(1, 8)} == {42}
        drawn = [draw_seed(PerTrial(42), source, trial) for trial in range(1, 8)]
        assert len(set(drawn)) == 7
        assert drawn == [draw_seed(PerTrial(42), source, trial) for trial in range(1, 8)]
        assert drawn != [draw_seed(PerTrial(43), source, trial) for trial in range(1, 8)]


QUOTES = Data("text-generation", "fortunes", 20, 4, seed=1, sha256="0" * 64)
ROWS = [{"quote": str(number)} for number in range(20)]


def draw(source: Source, seed: int, step: int) -> Any:
    """Return what the kit draws from a source at a step."""
    if source == "split":
        return split_rows(QUOTES, ROWS, seed)["test"]
    if source == "data_order":
        return batch_order(9, 2, 12, seed)[step]
    with torch_stream(stream_seed(seed, source, step)):
        if source == "adapter_init":
            return torch.nn.init.kaiming_uniform_(torch.empty(4, 3)).tolist()
        if source == "dropout":
            return torch.nn.functional.dropout(torch.ones(40)).tolist()
        return torch.multinomial(torch.ones(50), 5).tolist()


def disturb(how: int) -> None:
    """Change generators of the process, as another library, an evaluation or a user's code does."""
    random.seed(how)
    np.random.seed(how)
    np.random.rand(how)
    torch.manual_seed(how)
    torch.rand(how)


DRAWS = st.tuples(st.sampled_from(SOURCES), st.integers(0, 3), st.integers(0, 11))


@settings(deadline=None)
@given(st.lists(st.one_of(DRAWS, st.integers(0, 99)), max_size=12))
def test_a_draw_does_not_depend_on_earlier_draws(program: list[Any]) -> None:
    """Draw from any sources in any order, mixed with other uses of the generators."""
    mixed = []
    for action in program:
        if isinstance(action, int):
            disturb(action)
        else:
            mixed.append(draw(*action))
    disturb(0)
    assert mixed == [draw(*action) for action in program if not isinstance(action, int)]


@settings(deadline=None)
@given(st.sampled_from(["dropout", "generation", "adapter_init"]), st.integers(0, 2**32 - 1))
def test_a_draw_leaves_no_trace_in_the_process(source: Source, state: int) -> None:
    torch.manual_seed(state)
    undisturbed = torch.rand(3).tolist()
    torch.manual_seed(state)
    draw(source, 42, 1)
    assert torch.rand(3).tolist() == undisturbed
