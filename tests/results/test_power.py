"""How many trials an effect needs, and which effect trials find, against other software and by simulation."""

import pytest
from scipy import stats

from qlora_repeat.results.power import Effect, Of, assurance, power_of, smallest_found, trials_needed


def test_a_difference_of_one_standard_deviation_needs_seventeen_trials() -> None:
    """As R's power.t.test says (16.7)."""
    assert trials_needed(Effect("mean", 1)) == 17
    assert trials_needed(Effect("median", 1)) in (17, 18)


@pytest.mark.parametrize(("size", "n"), [(0.5, 10), (1.0, 7), (2.0, 5)])
def test_the_power_of_means_is_that_of_simulated_tests(size: float, n: int) -> None:
    draws = stats.norm.rvs(size=(20_000, 2, n), random_state=1)
    ps = stats.ttest_ind(draws[:, 0], draws[:, 1] + size, axis=1).pvalue
    assert power_of(Effect("mean", size), n) == pytest.approx((ps <= 0.05).mean(), abs=0.012)


@pytest.mark.parametrize(("rates", "n"), [((0.0, 0.5), 8), ((0.2, 0.9), 7), ((0.0, 1.0), 4)])
def test_the_power_of_rates_is_that_of_simulated_tests(rates: tuple[float, float], n: int) -> None:
    first, second = (
        stats.binom.rvs(n, rate, size=4_000, random_state=seed).tolist() for seed, rate in enumerate(rates)
    )
    known = {
        pair: stats.fisher_exact([[each, n - each] for each in pair]).pvalue
        for pair in set(zip(first, second, strict=True))
    }
    found = sum(known[pair] <= 0.05 for pair in zip(first, second, strict=True)) / 4_000
    assert power_of(Effect("collapse", rates[1], rates[0]), n) == pytest.approx(found, abs=0.025)


def test_ratios_of_spreads_need_as_many_trials_as_the_document_says() -> None:
    assert trials_needed(Effect("spread", 10)) in (6, 7)
    assert trials_needed(Effect("spread", 3)) in (11, 12, 13)


def test_too_small_an_effect_needs_more_trials_than_there_can_be() -> None:
    assert trials_needed(Effect("mean", 0.01)) is None


def test_more_comparisons_need_more_trials() -> None:
    one, four = (trials_needed(Effect("mean", 1, comparisons=count)) for count in (1, 4))
    assert one is not None and four is not None and four > one


@pytest.mark.parametrize("of", ["mean", "median", "collapse"])
def test_the_smallest_effect_is_found_and_a_smaller_one_is_not(of: Of) -> None:
    smallest = smallest_found(Effect(of, 0), 7)
    assert smallest is not None
    assert power_of(Effect(of, smallest), 7) >= 0.8
    assert power_of(Effect(of, 0.95 * smallest), 7) < 0.8
    assert smallest_found(Effect(of, 0), 3) is None or of == "mean"


def test_a_small_pilot_leaves_more_open() -> None:
    effect = Effect("mean", 1)
    few, many = assurance(effect, 17, 4), assurance(effect, 17, 400)
    assert few < 0.75 < many < power_of(effect, 17) + 0.01
