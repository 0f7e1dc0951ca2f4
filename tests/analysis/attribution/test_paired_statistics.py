"""Shares, ratios and their intervals, from random numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from qlora_repeat.analysis.attribution.paired_statistics import (
    Estimate,
    excess,
    half_deviation,
    largest_share,
    mean_difference,
    share,
    size,
)

SEVEN = 7


def draws(seed: int, *deviations: float) -> list[np.ndarray]:
    """Seven independent normal values for each standard deviation."""
    generator = np.random.default_rng(seed)
    return [generator.normal(0, deviation, SEVEN) for deviation in deviations]


def covers(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def test_shares_of_parts_sum_to_one() -> None:
    parts = draws(1, 1, 0.5, 0.2)
    assert sum(share(part, sum(parts)).value for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("estimate", [share, size])
@pytest.mark.parametrize("truth", [0.9, 0.5, 0.02])
def test_intervals_of_shares_and_sizes_cover_the_true_values(
    estimate: Callable[[np.ndarray, np.ndarray], Estimate], truth: float
) -> None:
    sds = math.sqrt(truth), math.sqrt(1 - truth)
    hits = 0
    for seed in range(1000):
        one, other = draws(seed, *sds)
        hits += covers(estimate(one, one + other), truth)
    assert 0.9 < hits / 1000 < 0.97


def test_the_only_part_has_a_share_of_exactly_one() -> None:
    (whole,) = draws(3, 1)
    for found in (share(whole, whole), size(whole, whole)):
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_share_is_a_slope_through_zero_and_a_size_takes_squares_about_zero() -> None:
    part, whole = np.array([1.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.0])
    assert share(part, whole).value == pytest.approx(12 / 14)
    assert size(part, whole).value == pytest.approx(11 / 14)
    assert half_deviation(part) == pytest.approx(math.sqrt(11 / 3 / 2))


def test_one_replicate_with_all_the_variance_gives_no_interval() -> None:
    """Check that one observation gives no interval; it would have width zero."""
    whole = np.array([0, 0, 0, 5.0, 0, 0, 0])
    assert share(whole, whole) == Estimate(1)
    assert size(whole, whole) == Estimate(1)


def test_the_largest_share_is_named_if_it_is_larger_than_each_other() -> None:
    large, small, tiny = draws(4, 1, 0.01, 0.001)
    assert largest_share({"small": small, "large": large, "tiny": tiny}, large + small + tiny) == "large"
    assert largest_share({"small": small[:5], "large": large[:5]}, large[:5] + small[:5]) is None, "too few"
    assert largest_share({"only": large}, large) is None


def test_of_equal_sources_one_is_named_in_one_of_twenty_experiments() -> None:
    named = 0
    for seed in range(1000):
        one, other = draws(seed, 1, 1)
        named += largest_share({"one": one, "other": other}, one + other) is not None
    assert 0.02 < named / 1000 < 0.07


def test_ten_times_the_noise_is_an_excess_and_the_same_noise_is_not() -> None:
    noise, values = draws(6, 1, 1)
    probable, improbable = excess(2 * values, noise, 4), excess(100 * values, noise, 4)
    assert probable is not None
    assert improbable is not None
    assert improbable < 1e-4 < 0.05 < probable


def test_a_mean_has_its_t_interval() -> None:
    found = mean_difference(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    reach = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3 - reach, 3 + reach))


def test_there_are_no_estimates_from_too_few_values() -> None:
    one, nan = draws(7, 1)[0], np.array([1.0, math.nan, 2.0, 3.0, 4.0, 5.0, math.inf])
    for found in (
        share(one, np.zeros(SEVEN)),
        share(nan, one),
        share(one, nan),
        size(one, np.zeros(SEVEN)),
        size(nan, one),
        mean_difference(nan),
    ):
        assert found == Estimate(None)
    assert largest_share({"nan": nan, "one": one}, one) is None
    assert half_deviation(np.array([])) is None
    assert size(np.zeros(SEVEN), one) == Estimate(0)
    assert excess(one, np.zeros(SEVEN), 2) is None
    assert mean_difference(np.array([1.0])) == Estimate(1)


def test_two_replicates_have_shares_without_intervals() -> None:
    one, two = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    assert share(one, two) == Estimate(0.5)
    assert size(one, two) == Estimate(0.25)
