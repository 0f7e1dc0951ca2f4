"""Statistics of a few values agree with scipy's, and have the properties that hold for all values."""

import itertools
import math
import random
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from qlora_repeat.results import statistical_methods
from qlora_repeat.results.statistical_methods import (
    FEWEST,
    MOST_ASSIGNMENTS,
    TRIALS_NEEDED,
    SpreadTest,
    compare_ranks,
    compare_spreads,
    deviation_interval,
    holm,
    prediction_interval,
    rank,
    share,
    summarize,
)

NEOX = [21024.0, 3452.0, 3028.0, 5440.0, 1105.0, 790.0, 1780.0]
STABLE = [8.039, 8.179, 8.257, 8.101, 8.391, 8.226, 8.703]
LLAMA = [165687.93, 12.471, 109585.75, 14.766, 185572.82, 13.541, 233812.79]
"""Arms of the paper's Table 1."""
INF, NAN = math.inf, math.nan

SEVEN = st.lists(st.floats(0.5, 1e5), min_size=7, max_size=7)
SOME = st.lists(st.floats(0.5, 1e5), min_size=FEWEST, max_size=12)


def compared(values: list[float], others: list[float], level: float = 0.95) -> SpreadTest:
    found = compare_spreads(values, others, level)
    assert found is not None
    return found


def spread_by(factor: float, values: list[float]) -> list[float]:
    """Return values whose logarithms are this many times as far apart."""
    return [value**factor for value in values]


@pytest.mark.parametrize("values", [NEOX, STABLE, LLAMA, [2.0, 3.0], [5.0, 1.0, 9.0, 9.0]])
def test_a_summary_matches_numpy_and_scipy(values: list[float]) -> None:
    found = summarize(values)
    assert (found.n, found.not_finite) == (len(values), 0)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.cv == pytest.approx(stats.variation(values, ddof=1))
    assert found.median == pytest.approx(np.median(values))
    assert found.mad == pytest.approx(stats.median_abs_deviation(values))
    assert (found.low, found.high) == (min(values), max(values))


def test_equal_values_have_exactly_no_spread() -> None:
    for value in (0.1, 3.567, 1e-300, 1e300):
        found = summarize([value] * 7)
        assert (found.mean, found.median, found.low, found.high) == (value,) * 4
        assert (found.sd, found.cv, found.mad) == (0, 0, 0)
        assert (found.sd_low, found.sd_high) == (None, None), "they say nothing of a true SD above 0"


def test_values_that_span_a_decade_have_no_interval_of_the_sd() -> None:
    assert summarize([1.0, 2.0, 3.0, 4.0, 9.9]).sd_low is not None
    assert summarize([1.0, 2.0, 3.0, 4.0, 10.1]).sd_low is None


def test_one_value_or_no_value_has_no_spread() -> None:
    one, none = summarize([3.5]), summarize([])
    assert (one.n, one.mean, one.median, one.low, one.high) == (1, 3.5, 3.5, 3.5, 3.5)
    assert (one.sd, one.sd_low, one.cv, one.mad) == (None,) * 4
    assert (none.n, none.not_finite) == (0, 0)
    assert (none.mean, none.sd, none.median, none.mad, none.low) == (None,) * 5


def test_values_that_are_not_finite_are_left_out_of_means_and_rank_highest() -> None:
    found = summarize([*STABLE, INF, NAN])
    finite = summarize(STABLE)
    assert (found.n, found.not_finite) == (7, 2)
    assert (found.mean, found.sd, found.sd_low, found.sd_high, found.cv) == (
        finite.mean, finite.sd, finite.sd_low, finite.sd_high, finite.cv,
    )  # fmt: skip
    assert (found.low, found.high) == (8.039, INF)
    assert found.median == statistics.median([*STABLE, 100, 200])
    mostly = summarize([1.0, 2.0, NAN, -INF, INF])
    assert (mostly.n, mostly.mean, mostly.median, mostly.mad, mostly.low) == (2, 1.5, INF, None, 1.0)
    nothing = summarize([NAN] * 7)
    assert (nothing.n, nothing.mean, nothing.sd, nothing.median) == (0, None, None, INF)


def test_values_that_are_not_finite_rank_highest() -> None:
    assert [rank(value) for value in (2.5, NAN, INF, -INF)] == [2.5, INF, INF, INF]


@pytest.mark.parametrize("values", [NEOX, STABLE, LLAMA, STABLE[:5], STABLE[:6], [*STABLE, *NEOX]])
def test_the_interval_of_a_standard_deviation_is_bonetts(values: list[float]) -> None:
    n = len(values)
    center = stats.trim_mean(values, 1 / (2 * math.sqrt(n - 4)))
    distances = np.array(values) - np.mean(values)
    kurtosis = n * np.sum((np.array(values) - center) ** 4) / np.sum(distances**2) ** 2
    z = stats.norm.ppf(0.975)
    c = n / (n - z)
    error = c * math.sqrt((kurtosis - (n - 3) / n) / (n - 1))
    variance = c * np.var(values, ddof=1)
    expected = [math.sqrt(variance * math.exp(sign * z * error)) for sign in (-1, 1)]
    assert deviation_interval(values) == pytest.approx(expected)


def test_fewer_than_five_values_have_no_interval() -> None:
    assert deviation_interval(STABLE[:4]) is None
    assert summarize(STABLE[:4]).sd is not None
    assert deviation_interval([]) is None


@given(SOME, st.floats(0.01, 100))
def test_the_interval_of_a_standard_deviation_scales_with_the_values(
    values: list[float], unit: float
) -> None:
    found = deviation_interval(values)
    again = deviation_interval([unit * value for value in reversed(values)])
    if statistics.stdev(values) > 1e-6 * statistics.mean(values):
        assert found is not None
        assert again is not None
        assert again == pytest.approx([unit * bound for bound in found], rel=1e-6)
        assert 0 < found[0] < found[1]


@pytest.mark.parametrize(
    ("draw", "deviation", "least"),
    [
        (lambda generator: generator.gauss(100, 1), 1.0, 0.955),
        (lambda generator: math.exp(generator.gauss(0, 0.3)), 0.3210032, 0.95),
        (lambda generator: generator.choice([13.0] * 3 + [17.0] * 4) + generator.gauss(0, 0.1), 1.982, 0.96),
    ],
)
def test_the_interval_of_a_standard_deviation_has_its_coverage(
    draw: Callable[[random.Random], float], deviation: float, least: float
) -> None:
    generator = random.Random(5)
    hits = 0
    for _ in range(1000):
        found = deviation_interval([draw(generator) for _ in range(7)])
        assert found is not None
        hits += found[0] <= deviation <= found[1]
    assert hits >= 1000 * least


def test_shares_have_the_exact_interval() -> None:
    for of in (1, 2, 7, 50):
        for count in range(of + 1):
            found = share(count, of)
            expected = stats.binomtest(count, of).proportion_ci(method="exact")
            assert found is not None
            assert (found.count, found.of) == (count, of)
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    none, every = share(0, 7), share(7, 7)
    assert none is not None
    assert every is not None
    assert (none.low, every.high) == (0, 1)
    assert share(0, 0) is None


def brute_force(values: list[float], others: list[float]) -> float:
    """Return the p-value of scipy's permutation test of the distances from the medians."""
    samples = []
    for sample in (values, others):
        logs = np.log(sample)
        samples.append(np.sort(np.abs(logs - np.median(logs)))[1:])
    return float(
        stats.permutation_test(
            samples, lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=np.inf, vectorized=True
        ).pvalue
    )


@pytest.mark.parametrize(
    ("values", "others"),
    [
        (NEOX, STABLE),
        (spread_by(0.1, NEOX), STABLE),
        (spread_by(0.05, NEOX), STABLE),
        (STABLE, spread_by(0.03, NEOX)),
        (NEOX[:5], STABLE[:5]),
        (spread_by(0.07, NEOX)[:6], STABLE[:6]),
        (LLAMA, NEOX),
    ],
)
def test_the_test_of_spread_matches_scipys_permutation_test(values: list[float], others: list[float]) -> None:
    assert compared(values, others).p == pytest.approx(brute_force(values, others), abs=1e-12)


def test_the_ratio_compares_mean_distances_from_the_median() -> None:
    values = [math.exp(each) for each in (1.0, 2.0, 4.0, 5.0, 9.0)]  # from the median: 3, 2, 0, 1, 5
    others = [math.exp(each) for each in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]  # 1.25, .75, .25, .25, .75, 1.25
    found = compared(values, others)
    assert (found.spread, found.other_spread) == pytest.approx((11 / 4, 4.25 / 5))
    assert found.ratio == pytest.approx((11 / 4) / (4.25 / 5))


def test_a_known_ratio_is_found_and_an_equal_spread_is_not() -> None:
    planted = compared(spread_by(40, STABLE), STABLE)
    assert planted.ratio == pytest.approx(40)
    assert planted.low is not None
    assert planted.high is not None
    assert 1 < planted.low < 40 < planted.high
    assert planted.p == pytest.approx(2 / math.comb(12, 6))
    same = compared(STABLE, [2 * value for value in STABLE])
    assert (same.ratio, same.p) == (pytest.approx(1), 1.0)
    assert same.low is not None
    assert same.high is not None
    assert same.low < 1 < same.high


@settings(deadline=None)
@given(SEVEN, SEVEN, st.floats(0.001, 1000))
@example(
    [1.0, 1.0, 1.0, 40073.0, 40073.0, 40073.0, 40131.0],
    [1.0, 1.0, 1.0, 40073.0, 40073.0, 40074.0, 40131.0],
    2.77734375,
)
def test_units_and_order_change_nothing_and_swapped_arms_invert_the_ratio(
    values: list[float], others: list[float], unit: float
) -> None:
    found = compared(values, others)
    if min(found.spread, found.other_spread) < 1e-6:
        return  # only rounding errors
    again = compared([unit * value for value in sorted(values)], others[::-1])
    swapped = compared(others, values)
    assert again.p == pytest.approx(found.p)
    assert swapped.p == pytest.approx(found.p)
    assert (again.ratio, again.low, again.high) == pytest.approx(
        (found.ratio, found.low, found.high), rel=1e-6
    )
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    assert swapped.low == pytest.approx(1 / found.high if found.high else INF)
    assert swapped.high == pytest.approx(1 / found.low if found.low else INF)


@settings(deadline=None)
@given(SEVEN, SEVEN, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_contains_the_ratios_that_the_test_does_not_reject(
    values: list[float], others: list[float], level: float
) -> None:
    found = compared(values, others, level)
    if found.ratio is None:
        return  # neither arm spreads
    assert found.p is not None
    assert found.low is not None
    assert found.high is not None
    if found.low != pytest.approx(1, rel=1e-6) and found.high != pytest.approx(1, rel=1e-6):
        assert (found.low <= 1 <= found.high) == (found.p > 1 - level)
    assert found.low * (1 - 1e-9) <= found.ratio <= found.high * (1 + 1e-9)
    narrower = compared(values, others, 0.5)
    assert narrower.low is not None
    assert narrower.high is not None
    assert found.low <= narrower.low
    assert narrower.high <= found.high


def test_p_is_at_the_level_after_division_by_a_bound() -> None:
    found = compared(NEOX, STABLE)
    assert found.low is not None
    assert found.high is not None
    for bound, outside in ((found.low, 0.99), (found.high, 1.01)):
        at, beyond = compared(spread_by(1 / bound, NEOX), STABLE), compared(
            spread_by(1 / (bound * outside), NEOX), STABLE
        )  # fmt: skip
        assert at.p is not None
        assert beyond.p is not None
        assert at.p > 0.05 >= beyond.p


def test_arms_that_do_not_spread_are_compared_without_a_crash() -> None:
    same = [3.567] * 7
    both = compared(same, [2.0] * 7)
    assert (both.spread, both.other_spread, both.ratio, both.low, both.high, both.p) == (
        0, 0, None, None, None, 1.0,
    )  # fmt: skip
    one, other = compared(STABLE, same), compared(same, STABLE)
    assert (one.ratio, one.low, one.high) == (INF, INF, INF)
    assert (other.ratio, other.low, other.high) == (0, 0, 0)
    assert one.p == other.p == pytest.approx(2 / math.comb(12, 6))


def test_too_few_values_have_a_ratio_but_no_test() -> None:
    few = compared(NEOX[:4], STABLE)
    assert few.ratio is not None
    assert few.ratio > 1
    assert (few.p, few.low, few.high) == (None, None, None)
    assert compare_spreads([3.5], STABLE) is None
    assert compare_spreads(STABLE, []) is None


def test_values_not_above_zero_are_refused() -> None:
    for value in (0.0, -1.0):
        assert compare_spreads([*NEOX, value], STABLE) is None
        assert compare_spreads(NEOX, [*STABLE, value]) is None


def test_values_that_are_not_finite_are_the_furthest() -> None:
    """Five close values, a NaN and an infinity: these two were left out, and the arm was called narrow."""
    diverged = [*STABLE[:5], NAN, INF]
    assert compared(diverged, NEOX).ratio == INF
    assert compared(NEOX, diverged).ratio == 0
    one, three = (compared([*[INF] * n, *STABLE[n:]], STABLE).p for n in (1, 3))
    assert one is not None and three is not None and one > 0.05 > three
    assert compare_spreads([INF] * 7, STABLE) is None, "an arm of diverged runs has no spread"


@given(SEVEN, SEVEN, st.integers(1, 3))
def test_infinite_values_are_compared_as_values_far_beyond_all_others(
    values: list[float], others: list[float], count: int
) -> None:
    far = [*values[count:], *[1e300] * count]
    found = compared([*values[count:], *[INF] * count], others)
    assert found.p == pytest.approx(compared(far, others).p)
    assert (found.ratio, found.low, found.high) == (INF, None, None)


def test_many_trials_are_compared_by_reproducible_random_assignments() -> None:
    generator = random.Random(1)
    wide = [math.exp(0.9 * generator.gauss(0, 1)) for _ in range(20)]
    narrow = [math.exp(0.3 * generator.gauss(0, 1)) for _ in range(25)]
    found = compared(wide, narrow)
    assert found == compared(wide, narrow)
    assert found.p is not None
    assert found.low is not None
    assert found.p < 0.005
    assert found.low > 1
    like = compared(wide, [value**3 for value in narrow])
    assert like.p is not None
    assert like.p > 0.05


def test_large_arms_are_compared_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(2)
    arms = [[math.exp(generator.gauss(0, width)) for _ in range(60)] for width in (1, 2)]
    found = compared(*arms), compare_ranks(*arms)
    for name, least in (("_MOST_DRAWN", 12_345), ("_FEW", 0)):
        monkeypatch.setattr(statistical_methods, name, least)
        assert (compared(*arms), compare_ranks(*arms)) == found
    monkeypatch.undo()
    tracemalloc.start()
    compared(arms[0] * 10, arms[1] * 10)
    compare_ranks(arms[0] * 10, arms[1] * 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000


def test_the_test_rejects_five_percent_of_equal_arms_and_more_than_brown_forsythe() -> None:
    generator = np.random.default_rng(6)
    arms = np.exp(0.1 * generator.normal(size=(1000, 2, 7)))
    p = np.array([compared(*pair).p for pair in arms.tolist()])
    theirs = stats.levene(np.log(arms[:, 0]).T, np.log(arms[:, 1]).T, center="median").pvalue
    assert 0.02 < np.mean(p <= 0.05) < 0.065
    assert np.mean(theirs <= 0.05) < np.mean(p <= 0.05)


@pytest.mark.parametrize("ratio", [5.0, 10.0])
def test_the_stated_number_of_trials_finds_a_ratio_in_four_of_five_cases(ratio: float) -> None:
    generator = np.random.default_rng(7)

    def power(n: int) -> float:
        ours = np.exp(0.02 * ratio * generator.normal(size=(500, n))).tolist()
        theirs = np.exp(0.02 * generator.normal(size=(500, n))).tolist()
        p = [compared(a, b).p for a, b in zip(ours, theirs, strict=True)]
        return statistics.mean(each is not None and each <= 0.05 for each in p)

    needed = TRIALS_NEEDED[ratio][0]
    assert power(needed) > 0.78
    assert power(needed - 1) < 0.8


@given(SEVEN, SOME)
@settings(deadline=None, max_examples=50)
def test_the_test_of_ranks_matches_wilcoxons(values: list[float], others: list[float]) -> None:
    exactly = math.comb(len(values + others), len(values)) <= MOST_ASSIGNMENTS
    if len(set(values + others)) == len(values + others) and exactly:
        exact = stats.mannwhitneyu(values, others, method="exact").pvalue
        assert compare_ranks(values, others) == pytest.approx(exact)
    assert compare_ranks(values, others) == compare_ranks(values[::-1], sorted(others))
    assert compare_ranks(values, others) == pytest.approx(
        compare_ranks(others, values), abs=1e-12 if exactly else 0.03
    )


def test_equal_values_share_ranks_and_values_that_are_not_finite_rank_highest() -> None:
    values, others = [1.0, 2.0, 2.0, 3.0, INF], [2.0, 3.0, 4.0, NAN, NAN]
    ranks = stats.rankdata([1, 2, 2, 3, 9, 2, 3, 4, 9, 9])
    away = [abs(sum(each) - 27.5) for each in itertools.combinations(ranks, 5)]
    expected = sum(each >= abs(sum(ranks[:5]) - 27.5) for each in away) / len(away)
    assert compare_ranks(values, others) == pytest.approx(expected)
    assert compare_ranks([3.0] * 7, [3.0] * 7) == 1
    assert compare_ranks([2.0] * 7, [3.0] * 7) == pytest.approx(2 / math.comb(14, 7))
    assert compare_ranks([1.0] * 4, [2.0] * 7) is None


def test_holm_adjusts_for_several_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_is_at_most_bonferronis(ps: list[float]) -> None:
    adjusted = holm(ps)
    for (p, q), (p2, q2) in itertools.product(zip(ps, adjusted, strict=True), repeat=2):
        assert p <= q <= min(1, len(ps) * p)
        assert p > p2 or q <= q2


def test_the_prediction_interval_is_students_with_half_the_degrees_of_freedom() -> None:
    for values, level in ((STABLE, 0.95), (NEOX, 0.99), (STABLE[:5], 0.5)):
        logs, n = np.log(values), len(values)
        half = stats.t.ppf((1 + level) / 2, (n - 1) / 2) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
        expected = (np.exp(logs.mean() - half), np.exp(logs.mean() + half))
        found = prediction_interval(values, level)
        assert found is not None
        assert found == pytest.approx((min(expected[0], min(values)), max(expected[1], max(values))))


@given(SOME, st.floats(0.001, 1000), st.sampled_from([0.5, 0.95, 0.99]))
def test_the_prediction_interval_contains_all_values_and_scales_with_them(
    values: list[float], unit: float, level: float
) -> None:
    found = prediction_interval(values, level)
    scaled = prediction_interval([unit * value for value in reversed(values)], level)
    assert found is not None
    assert scaled is not None
    assert found[0] <= min(values) <= max(values) <= found[1]
    assert scaled == pytest.approx([unit * bound for bound in found], rel=1e-6)


def test_equal_values_predict_themselves() -> None:
    assert prediction_interval([3.567] * 7) == (3.567, 3.567)


def test_after_a_diverged_trial_the_interval_has_no_upper_bound() -> None:
    plain = prediction_interval(STABLE)
    assert plain is not None
    for value in (INF, NAN):
        assert prediction_interval([*STABLE, value]) == (plain[0], INF)
    assert prediction_interval([*[3.567] * 5, NAN]) == (pytest.approx(3.567), INF)


def test_too_few_or_nonpositive_values_have_no_prediction_interval() -> None:
    assert prediction_interval(STABLE[:4]) is None
    assert prediction_interval([*STABLE[:4], INF, NAN]) is None
    assert prediction_interval([*STABLE, 0.0]) is None
    assert prediction_interval([]) is None


@pytest.mark.parametrize(
    ("draw", "least"),
    [
        (lambda generator, shape: np.exp(generator.normal(size=shape)), 0.97),
        (lambda generator, shape: 100 + generator.standard_t(3, size=shape), 0.95),
        (lambda generator, shape: np.where(generator.random(shape) < 4 / 7, 17e4, 13.0), 0.97),
        (lambda generator, shape: np.where(generator.random(shape) < 1 / 7, 17e4, 13.0), 0.93),
    ],
    ids=["lognormal", "heavy tails", "two modes", "a rare mode"],
)
def test_the_prediction_interval_has_its_coverage(
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], least: float
) -> None:
    drawn = draw(np.random.default_rng(8), (2000, 8)).tolist()
    hits = 0
    for *seen, further in drawn:
        found = prediction_interval(seen)
        assert found is not None
        hits += found[0] <= further <= found[1]
    assert hits >= 2000 * least


def test_the_import_loads_neither_numpy_nor_scipy() -> None:
    script = (
        "import sys, qlora_repeat.results.statistical_methods, qlora_repeat.render.tables.statistics\n"
        "assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
