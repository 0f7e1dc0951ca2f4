"""Axes that fit the losses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_repeat.render.figures.scales import Scale, common_scales

LOSSES = st.lists(st.just(0.0) | st.floats(1e-40, 3e38), min_size=1, max_size=8)


@pytest.mark.parametrize("bar_share", [None, 0.6])
@given(arms=st.lists(LOSSES, min_size=1, max_size=3))
def test_every_loss_is_on_its_axis_between_labeled_ticks(
    bar_share: float | None, arms: list[list[float]]
) -> None:
    for losses, scale in zip(arms, common_scales(arms, bar_share), strict=True):
        assert math.isfinite(scale.high)
        assert scale.low < scale.high
        assert not scale.log or scale.low > 0
        assert all(scale.low <= scale.clip(loss) <= scale.high for loss in losses)
        assert 2 <= len(scale.ticks) <= 9
        assert len({label for _, label in scale.ticks}) == len(scale.ticks)
        for tick, label in scale.ticks:
            slack = 1e-6 * (scale.high if scale.log else scale.high - scale.low)
            assert scale.low - slack <= tick <= scale.high + slack
            assert float(label) == pytest.approx(tick, abs=slack)


def only(losses: list[float], bar_share: float | None = None) -> Scale:
    (scale,) = common_scales([losses], bar_share)
    return scale


def test_losses_over_more_than_a_decade_are_logarithmic() -> None:
    assert not only([1.5, 3.0, 14.0]).log
    assert only([1.5, 3.0, 1500.0]).log


def test_a_loss_of_zero_lies_on_the_lower_edge_of_a_logarithmic_scale() -> None:
    scale = only([0.0, 1.5, 1500.0])
    assert scale.log
    assert scale.clip(0.0) == scale.low < 1.5


def test_optimizers_share_a_scale_unless_it_would_compress_one() -> None:
    alike = common_scales([[1.5, 3.0], [1.6, 2.9]])
    assert alike[0] == alike[1]
    low, high = common_scales([[1.5, 3.0], [1.5, 3000.0]])
    assert (low.log, high.log) == (False, True)
    low, high = common_scales([[1.50, 1.51], [1.5, 9.0]])
    assert low.high < 2 < 9 < high.high


def test_bars_begin_at_zero_or_at_a_power_of_ten_and_leave_room_for_their_values() -> None:
    linear, log = only([1.5, 3.0], 0.6), only([1.5, 1500.0], 0.6)
    assert (linear.low, linear.high) == (0, pytest.approx(5))
    assert log.low == 1
    assert math.log(1500) / math.log(log.high) == pytest.approx(0.6)


def test_an_arm_without_losses_has_the_scale_of_the_others() -> None:
    assert len(set(map(repr, common_scales([[], [1.5, 3.0]])))) == 1
    assert common_scales([[], []])[0].ticks == []


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([1.5, 3.0], ["1.5", "2.0", "2.5", "3.0"]),
        ([1.2301, 1.2304], ["1.2301", "1.2302", "1.2303", "1.2304"]),
        ([2.0, 40.0], ["2", "5", "10", "20"]),
        ([2.0, 40000.0], ["10", "100", "1000", "10000"]),
        ([1e-6, 1e6], ["1e-6", "0.001", "1", "1000", "1e6"]),
    ],
)
def test_labels_are_short_and_different(losses: list[float], labels: list[str]) -> None:
    assert [label for _, label in only(losses).ticks] == labels
