"""Standard deviations within and between laboratories, checked by textbook data, formulas and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qlora_repeat.analysis.interlab import Reproducibility, reproducibility
from qlora_repeat.results.statistical_methods import deviation_interval

DYESTUFF = [
    [1545.0, 1440.0, 1440.0, 1520.0, 1580.0],
    [1540.0, 1555.0, 1490.0, 1560.0, 1495.0],
    [1595.0, 1550.0, 1605.0, 1510.0, 1560.0],
    [1445.0, 1440.0, 1595.0, 1465.0, 1545.0],
    [1595.0, 1630.0, 1515.0, 1635.0, 1625.0],
    [1520.0, 1455.0, 1450.0, 1480.0, 1445.0],
]
"""Yields of six batches (Davies, Statistical Methods in Research and Production, 1947)."""
RESISTIVITY = [
    [196.3052, 196.1240, 196.1890, 196.2569, 196.3403],
    [196.3042, 196.3825, 196.1669, 196.3257, 196.0422],
    [196.1303, 196.2005, 196.2889, 196.0343, 196.1811],
    [196.2795, 196.1748, 196.1494, 196.1485, 195.9885],
    [196.2119, 196.1051, 196.1850, 196.0052, 196.2090],
]
"""Resistivities of silicon by five instruments (SiRstv of NIST's Statistical Reference Datasets)."""
UNEQUAL = [[3.1, 3.5, 2.9], [4.0, 4.4, 3.9, 4.1, 4.6, 4.2, 4.3], [3.6], [2.5, 3.4, 3.3, 2.8, 3.0]]

LABS = st.lists(
    st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=7),
    min_size=2,
    max_size=6,
)


def of(laboratories: list[list[float]], level: float = 0.95) -> Reproducibility:
    found = reproducibility(laboratories, level)
    assert found is not None
    return found


def test_variance_components_of_dyestuff_match_the_textbooks() -> None:
    found = of(DYESTUFF)
    assert found.repeatability**2 == pytest.approx(2451.25)
    assert found.between**2 == pytest.approx(1764.05)
    assert found.reproducibility**2 == pytest.approx(2451.25 + 1764.05)
    assert (found.laboratories, found.n, found.mean) == (6, 30, 1527.5)


def test_resistivities_have_the_certified_values() -> None:
    """Check the residual SD and the mean square between instruments, both certified to 15 digits."""
    found = of(RESISTIVITY)
    assert found.repeatability == pytest.approx(1.04076068334656e-01, rel=1e-9)
    assert 5 * found.between**2 + found.repeatability**2 == pytest.approx(1.27865654000000e-02, rel=1e-9)


@pytest.mark.parametrize("laboratories", [DYESTUFF, RESISTIVITY, UNEQUAL])
def test_the_test_matches_scipy(laboratories: list[list[float]]) -> None:
    found, f = of(laboratories), stats.f_oneway(*laboratories)
    assert found.p == pytest.approx(f.pvalue)
    sizes = np.array([len(values) for values in laboratories])
    size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1)
    if f.statistic > 1:
        assert found.between**2 == pytest.approx((f.statistic - 1) * found.repeatability**2 / size)


@pytest.mark.parametrize("laboratories", [DYESTUFF, RESISTIVITY, UNEQUAL])
def test_the_hand_calculation_gives_the_same(laboratories: list[list[float]]) -> None:
    """Compute them from sums over laboratories, the standard's form for hand calculation."""
    own = [
        (len(each), np.mean(each), np.var(each, ddof=1) if len(each) > 1 else 0.0) for each in laboratories
    ]
    p = len(own)
    first = sum(n * y for n, y, _ in own)
    second = sum(n * y**2 for n, y, _ in own)
    third = sum(n for n, _, _ in own)
    fourth = sum(n**2 for n, _, _ in own)
    fifth = sum((n - 1) * variance for n, _, variance in own)
    within = fifth / (third - p)
    apart = (second * third - first**2) / (third * (p - 1)) - within
    between = apart * third * (p - 1) / (third**2 - fourth)
    found = of(laboratories)
    assert found.repeatability**2 == pytest.approx(within)
    assert found.between**2 == pytest.approx(max(between, 0), abs=1e-9)
    assert found.reproducibility**2 == pytest.approx(within + max(between, 0))


def test_small_differences_between_laboratories_give_no_between_spread() -> None:
    found = of([[1.0, 5.0, 3.0], [3.0, 1.0, 5.0]])
    assert (found.between, found.reproducibility) == (0.0, found.repeatability)
    assert found.p == pytest.approx(1.0)


def test_identical_values_have_no_spread() -> None:
    found = of([[math.log(71.2)] * 7] * 3)
    assert (found.repeatability, found.between, found.reproducibility) == (0.0, 0.0, 0.0)
    assert (found.repeatability_high, found.reproducibility_high, found.p) == (None, None, None)
    apart = of([[1.0] * 7, [2.0] * 7, [4.0] * 7])
    assert apart.repeatability == 0.0
    assert apart.between == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_too_few_values_or_laboratories_have_no_interval() -> None:
    assert reproducibility([[1.0, 2.0, 3.0]]) is None
    assert reproducibility([[1.0, 2.0], []]) is None
    assert reproducibility([[1.0], [2.0], [3.0]]) is None
    few = of([[1.0, 2.0], [2.0, 4.0]])
    assert (few.repeatability_low, few.reproducibility_low) == (None, None)
    two = of(DYESTUFF[:2])
    assert two.repeatability_low is not None
    assert two.reproducibility_low is None
    assert of(DYESTUFF[:3]).reproducibility_low is not None


def test_one_laboratory_with_several_values_has_the_interval_of_an_arm() -> None:
    found = of([DYESTUFF[0], [1500.0]])
    assert (found.repeatability_low, found.repeatability_high) == pytest.approx(
        deviation_interval(DYESTUFF[0])
    )


@given(LABS, st.floats(-50, 50), st.sampled_from([0.25, 2.0, 64.0]))
@settings(max_examples=50, deadline=None)
def test_unit_origin_and_order_do_not_matter(labs: list[list[float]], shift: float, factor: float) -> None:
    found = of(labs)
    other = of([[factor * value + shift for value in reversed(values)] for values in reversed(labs)])
    close = {"rel": 1e-6, "abs": 1e-6 * factor}
    for name in ("repeatability", "between", "reproducibility"):
        assert getattr(other, name) == pytest.approx(factor * getattr(found, name), **close)
    for ends in ("repeatability", "reproducibility"):
        for end in ("low", "high"):
            value = getattr(found, f"{ends}_{end}")
            scaled = None if value is None else pytest.approx(factor * value, **close)
            assert getattr(other, f"{ends}_{end}") == scaled
    if found.repeatability_low is not None and found.repeatability_high is not None:
        assert found.repeatability_low <= found.repeatability_high
    assert found.reproducibility >= max(found.repeatability, found.between)


@pytest.mark.parametrize("sizes", [[7] * 5, [3, 5, 7, 7, 12]])
def test_intervals_cover_the_true_spreads(sizes: list[int]) -> None:
    """Check for at least 95 % coverage with normal values; 600 studies give the share to 2 %."""
    generator = np.random.default_rng(1)
    covered = np.zeros(2)
    estimates = []
    studies = 600
    for _ in range(studies):
        laboratories = [(0.8 * generator.normal() + generator.normal(size=size)).tolist() for size in sizes]
        found = of(laboratories)
        for place, (name, truth) in enumerate(
            (("repeatability", 1.0), ("reproducibility", math.hypot(1, 0.8)))
        ):
            covered[place] += getattr(found, f"{name}_low") <= truth <= getattr(found, f"{name}_high")
        estimates.append((found.repeatability**2, found.reproducibility**2))
    assert (covered / studies > 0.93).all()
    assert np.mean(estimates, axis=0) == pytest.approx([1.0, 1.64], rel=0.1)
