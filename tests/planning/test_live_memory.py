"""Live tensors are counted: views share storage, freed tensors no longer count, the peak stays."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_repeat.planning.memory_estimate import LiveMemory

THOUSAND = 4000
"""The bytes of a thousand float32."""


@pytest.fixture(params=["real", "fake"])
def kind(request: pytest.FixtureRequest):
    with FakeTensorMode() if request.param == "fake" else torch.enable_grad():
        yield request.param


def test_live_tensors_count(kind: str) -> None:
    with LiveMemory() as live:
        first = torch.ones(1000)
        second = first + 1
        assert live.now == 2 * THOUSAND
        del first
        assert live.now == THOUSAND
        del second
    assert (live.now, live.peak) == (0, 2 * THOUSAND)


def test_a_view_costs_nothing_and_keeps_its_storage(kind: str) -> None:
    with LiveMemory() as live:
        whole = torch.ones(1000)
        part = whole.view(10, 100).t()[3]
        del whole
        assert live.now == THOUSAND
        del part
        assert live.now == 0


def test_saved_tensors_live_until_the_end_of_the_backward_pass(kind: str) -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveMemory() as live:
        loss = (weight.exp() * 2).exp().sum()  # each exp saves its result
        assert live.now == 2 * THOUSAND + loss.nbytes
        loss.backward()
        del loss
        assert live.now == THOUSAND  # the gradient


def test_memory_within_an_operation_counts_only_for_the_peak() -> None:
    def within(operation, arguments, keywords) -> int:
        return 123 if operation is torch.ops.aten.exp.default else 0

    with LiveMemory(within) as live:
        ones = torch.ones(1000)
        result = ones.exp()
    assert (live.now, live.peak) == (ones.nbytes + result.nbytes, ones.nbytes + result.nbytes + 123)


def test_earlier_tensors_can_be_counted_too() -> None:
    before = torch.ones(1000)
    live = LiveMemory()
    live.count([before, before.view(10, 100)])
    assert live.now == THOUSAND
    del before
    assert (live.now, live.peak) == (0, THOUSAND)
