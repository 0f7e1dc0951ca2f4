"""Two arms are compared by their shift, the probability of superiority and the ratio of their spreads."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qlora_repeat.results.two_arms import Comparison, Estimate, compare_arms, decide

VALUES = st.lists(st.floats(0.5, 1e4), min_size=7, max_size=9, unique=True)
INF = math.inf


def drawn(n: int, seed: int, center: float = 0.0, sd: float = 1.0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(center, sd) for _ in range(n)]


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES, st.floats(-1e4, 1e4))
def test_the_interval_of_the_shift_has_what_the_exact_rank_sum_test_does_not_reject(
    ours: list[float], theirs: list[float], shift: float
) -> None:
    found = compare_arms(ours, theirs).shift
    assert found.low is not None and found.high is not None
    moved = [value - shift for value in theirs]
    differences = [b - a for a in ours for b in theirs]
    if min(abs(shift - each) for each in differences) < 1e-6 or len({*ours, *moved}) < len(ours + moved):
        return  # a tie, for which scipy's test is not exact
    p = stats.mannwhitneyu(ours, moved, method="exact").pvalue
    assert (found.low < shift < found.high) == (p > 0.05)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 50), min_size=6, max_size=12, unique=True), st.floats(-60, 60))
def test_the_interval_of_pairs_has_what_the_signed_rank_test_does_not_reject(
    changes: list[float], shift: float
) -> None:
    found = compare_arms([0.0] * len(changes), changes, paired=True).shift
    assert found.low is not None and found.high is not None
    left = [change - shift for change in changes]
    means = [(a + b) / 2 for a in changes for b in changes]
    if min(abs(shift - each) for each in means) < 1e-6 or len({abs(each) for each in left}) < len(left):
        return
    p = stats.wilcoxon(left, method="exact").pvalue
    assert (found.low < shift < found.high) == (p > 0.05)


def test_many_values_have_about_the_same_interval_by_the_normal_distribution() -> None:
    exact = compare_arms(drawn(50, 1), drawn(50, 2, 0.5)).shift
    about = compare_arms(drawn(50, 1), drawn(51, 2, 0.5)).shift
    assert exact.low is not None and about.low is not None
    assert about.low == pytest.approx(exact.low, abs=0.1)


def test_superiority_counts_ties_half_and_has_an_interval_at_its_ends() -> None:
    assert compare_arms([1.0] * 7, [1.0] * 7).superiority.value == 0.5
    apart = compare_arms([1.0 + n for n in range(7)], [11.0 + n for n in range(7)]).superiority
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert apart.low is not None and 0.6 < apart.low < 0.9
    pairs = compare_arms([1.0] * 7, [2.0] * 7, paired=True).superiority
    assert pairs.low == pytest.approx(0.025 ** (1 / 7)), "Clopper and Pearson"


def test_pairs_find_a_ratio_of_spreads_that_seeds_hide() -> None:
    own = drawn(20, 3)
    wider = [1.5 * value + change / 100 for value, change in zip(own, drawn(20, 4), strict=True)]
    apart, together = compare_arms(own, wider).spread, compare_arms(own, wider, paired=True).spread
    assert apart is not None and together is not None
    assert apart.low is not None and apart.low < 1
    assert together.low is not None and together.high is not None
    assert 1 < together.low < 1.5 < together.high


def test_spreads_do_not_depend_on_the_place_and_the_unit() -> None:
    one, two = drawn(7, 5), drawn(7, 6, sd=3)
    first = compare_arms(one, two)
    again = compare_arms([1000 + 0.01 * value for value in one], [1000 + 0.01 * value for value in two])
    assert not first.is_on_log_scale and first.spread is not None and again.spread is not None
    assert again.spread.value == pytest.approx(first.spread.value)
    assert again.spread.low == pytest.approx(first.spread.low)
    assert compare_arms([1.0, 2, 3, 4, 5], [10.0, 200, 3000, 4, 5]).is_on_log_scale


def test_diverged_values_are_above_all_others() -> None:
    found = compare_arms([1.0, 2, 3, 4, 5, 6], [*[INF] * 5, math.nan])
    assert found.superiority.value == 1
    assert found.shift.value == INF
    assert decide(found, 1.0).kind == "different"
    assert decide(compare_arms([1.0, 2, 3], [1.0, 2, INF]), 1.0).kind == "undecided"


def with_shift(value: float, low: float, high: float) -> Comparison:
    return Comparison(7, 7, False, Estimate(value, low, high), Estimate(0.5, 0, 1), None, False)


def test_a_margin_decides() -> None:
    assert decide(with_shift(0.1, -0.5, 0.9), 1).kind == "equivalent"
    assert decide(with_shift(0.5, 0.1, 0.9), 1).kind == "equivalent", "different, but too little to matter"
    assert decide(with_shift(1.5, 0.5, 2.5), 1).kind == "different"
    open_ = decide(with_shift(0.5, -1, 2), 1)
    assert open_.kind == "undecided"
    assert open_.more == math.ceil(7 * (1.5 / 0.5) ** 2) - 7
    assert decide(with_shift(0.5, -INF, INF), 1).more is None


def test_a_ratio_of_spreads_is_judged_by_a_factor() -> None:
    def kind(*spread: float) -> str:
        found = Comparison(7, 7, False, Estimate(0, -1, 1), Estimate(0.5, 0, 1), Estimate(*spread), False)
        return decide(found, 2, "spread").kind

    assert [kind(1.1, 0.6, 1.9), kind(3, 1.2, 8), kind(1.5, 0.4, 6), kind(3, 0, INF)] == [
        "equivalent", "different", "undecided", "undecided",
    ]  # fmt: skip


def test_too_few_values_have_estimates_without_intervals() -> None:
    found = compare_arms([1.0, 2], [3.0, 4])
    assert (found.shift.value, found.shift.low, found.superiority.low) == (2.0, None, None)
    assert decide(found, 1.0).kind == "undecided"
    with pytest.raises(ValueError, match="expected values in both arms"):
        compare_arms([], [1.0])
