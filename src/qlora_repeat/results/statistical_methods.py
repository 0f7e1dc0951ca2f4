"""What a few repeated trials support: statistics over lists of numbers, with intervals that seven can bear.

Each method was chosen by its simulated coverage or error rate at seven values; ``benchmarks/coverage.py``
prints them. Values that are not finite (diverged trials) are never hidden: they rank above all others where
ranks suffice, and are left out, and counted, where they do not.

scipy.stats takes a second to import, more than all of the tables, so only scipy.special is used here; the
tests hold what is written out to scipy.stats where it has the same.
"""

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

LEVEL = 0.95
"""Of all intervals, unless another is asked for."""
FEWEST = 5
"""An interval or a test has at least so many values; with four in each arm, no test could be significant."""
TRIALS_NEEDED = {1.5: (56, 79), 2.0: (23, 32), 3.0: (12, 17), 5.0: (8, 11), 10.0: (6, 8)}
"""For a ratio of spreads, the trials in each arm with which `compare_spreads` finds it in four of five cases:
of one model (p at most 0.05), and of the first of four by Holm (0.0125). For lognormal values, simulated by
``benchmarks/coverage.py``."""

MOST_ASSIGNMENTS = 10_000
"""Up to so many are all looked at (eight values in each arm); of more, this many are drawn."""
_TIED = 1e-12
"""Sums of the same numbers in another order differ by less, as a share."""


@dataclass(frozen=True)
class Summary:
    """The values of one arm in one measure. What there are too few values for is None."""

    n: int
    """Values that are finite."""
    not_finite: int
    """Values that are not: left out of mean, SD and CV; above all others in median, MAD and range."""
    mean: float | None = None
    sd: float | None = None
    """With n - 1 below the line."""
    sd_low: float | None = None
    sd_high: float | None = None
    """The interval of `deviation_interval`."""
    cv: float | None = None
    """SD / mean."""
    median: float | None = None
    mad: float | None = None
    """The median distance from the median, as it is: not scaled to be an SD's equal under a normal law."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Share:
    """So many of so many, with the Wilson interval of the share."""

    count: int
    of: int
    low: float
    high: float


@dataclass(frozen=True)
class SpreadTest:
    """The spread of one arm beside another's, on the log scale: as factors, whatever the unit."""

    spread: float
    """The mean distance of the logarithms from their median, its own zero left out."""
    other_spread: float
    ratio: float | None
    """spread / other_spread; infinite if only the other is 0, None if both are."""
    low: float | None
    high: float | None
    """The ratios that the test does not reject."""
    p: float | None
    """Two-sided; None where an arm has fewer than `FEWEST` values."""


def summarize(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Location and spread of an arm's values, in their own unit."""
    finite = [value for value in values if math.isfinite(value)]
    ranked = [rank(value) for value in values]
    n, not_finite = len(finite), len(values) - len(finite)
    if not values:
        return Summary(n, not_finite)
    middle = median(ranked)
    center = mean(finite) if finite else None
    sd = stdev(finite) if n > 1 else None
    interval = deviation_interval(finite, level=level)
    return Summary(
        n=n,
        not_finite=not_finite,
        mean=center,
        sd=sd,
        sd_low=interval[0] if interval else None,
        sd_high=interval[1] if interval else None,
        cv=sd / center if sd is not None and center else None,
        median=middle,
        mad=median(abs(value - middle) for value in ranked) if n > 1 and middle < math.inf else None,
        low=min(ranked),
        high=max(ranked),
    )


def rank(value: float) -> float:
    """The value for comparing with others: one that is not finite is above all that are."""
    return value if math.isfinite(value) else math.inf


def spans_a_decade(values: Sequence[float]) -> bool:
    """Return whether values belong on a log scale: all above 0, the largest over 10 times the least."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def deviation_interval(*groups: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval for the standard deviation of what values are drawn from; None below `FEWEST`.

    Of several groups, it is for the deviation that they have in common, about their own means.

    Bonett's (Computational Statistics & Data Analysis 50, 2006, 775-782): on the logarithm of the variance,
    with a kurtosis about a trimmed mean. At seven values, the bootstrap (BCa) covers the true deviation of
    normal values in 76 % of cases where it promises 95 %, and of t values with three degrees of freedom in
    51 %; this one in 97 % and 92 %. Of strongly skewed values, and of a rare second mode that was not seen,
    no interval covers it: for such arms, compare logarithms (`compare_spreads`). Equal values: (0, 0).
    """
    spread = [values for values in groups if len(values) > 1]
    n = sum(map(len, spread))
    freedom = n - len(spread)
    if freedom < FEWEST - 1:
        return None
    unit = max(map(stdev, spread))
    if unit == 0:
        return 0.0, 0.0
    squares = math.fsum((len(own) - 1) * (stdev(own) / unit) ** 2 for own in spread)
    kurtosis = n * math.fsum(_fourth_powers(own, unit) for own in spread) / squares**2
    variance = sum((len(own) - 1) * (kurtosis - (len(own) - 3) / len(own)) for own in spread) / freedom**2
    z = normal_quantile(level)
    c = n / (n - z)
    half = z * c * math.sqrt(variance) / 2
    center = unit * math.sqrt(squares / freedom * c)
    return center * math.exp(-half), center * math.exp(half)


def _fourth_powers(values: Sequence[float], unit: float) -> float:
    """The sum of fourth powers of the distances from a trimmed mean, in this unit."""
    cut = int(len(values) / (2 * math.sqrt(len(values) - 4))) if len(values) > 4 else 0
    trimmed = mean(sorted(values)[cut : len(values) - cut])
    return math.fsum(((value - trimmed) / unit) ** 4 for value in values)


def share(count: int, of: int, level: float = LEVEL) -> Share | None:
    """A share with its Wilson interval; None of none."""
    if of == 0:
        return None
    z = normal_quantile(level)
    center = (count + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * math.sqrt(count * (of - count) / of + z * z / 4)
    # A bound is exact where none or all are counted, but for rounding.
    low = 0.0 if count == 0 else center - half
    high = 1.0 if count == of else center + half
    return Share(count, of, low, high)


def prediction_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Where one further value of the same arm is to be expected, with probability `level`.

    Student's interval for one more value, on the log scale and with half the degrees of freedom; widened to
    all that was seen, where it is not as wide already (of seven values it always is). Student's own covers
    92.7 % of t values with three degrees of freedom where it promises 95 %: halved, the degrees leave
    room for tails of which seven values show little, and it is 96.0 %, and 98.0 % of normal ones. It holds
    for two modes that were both seen. One that was not cannot be foreseen: if a share q of trials falls
    into it, a further one does, and none of n before, in q (1 - q)^n of cases; of seven, at most 4.9 %.

    If a value is not finite, there is no upper end (infinity). Equal values give that value twice.
    None if fewer than `FEWEST` values are finite, or one is not above 0.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < FEWEST or min(finite) <= 0:
        return None
    low, high = min(finite), max(map(rank, values))
    if low == high:
        return low, high
    from scipy.special import stdtrit

    logs = [math.log(value) for value in finite]
    n, center = len(logs), mean(logs)
    half = float(stdtrit((n - 1) / 2, (1 + level) / 2)) * stdev(logs) * math.sqrt(1 + 1 / n)
    return min(low, math.exp(center - half)), max(high, _exp(center + half))


def compare_spreads(
    values: Sequence[float], others: Sequence[float], level: float = LEVEL
) -> SpreadTest | None:
    """Whether two arms spread equally on the log scale: a permutation test, with the ratio and its interval.

    Brown and Forsythe's distances from the median, without the one that is 0 by construction in an odd
    number of values (of an even number, one of two that are always equal; Hines and Hines, Biometrics 56,
    2000, 451-454), over all ways to assign them to the two arms. Of arms of seven that spread equally, Brown
    and Forsythe's own test rejects 1.6 % where it promises 5 %, this one 4.4 %; a ratio of 3 they find in
    28 % and 47 % of cases. The interval has the ratios by which the first arm's distances can be divided
    so that the test does not reject: it excludes 1 exactly where p is at most 1 - level.

    Values that are not finite are left out. None if an arm has fewer than two values, or one not above 0.
    """
    ours, theirs = _distances(values), _distances(others)
    if ours is None or theirs is None:
        return None
    spread, other = mean(ours), mean(theirs)
    ratio = spread / other if other else math.inf if spread else None
    if min(len(ours), len(theirs)) < FEWEST - 1:
        return SpreadTest(spread, other, ratio, None, None, None)
    if ratio is None:
        return SpreadTest(spread, other, None, None, None, 1.0)
    ties, ratios = _critical_ratios(ours, theirs)
    count = ties + len(ratios)
    as_wide = ties + int((ratios <= 1 + _TIED).sum())
    as_narrow = ties + int((ratios >= 1 - _TIED).sum())
    # Dividing by a ratio below the k-th smallest leaves fewer than half of 1 - level of assignments as wide.
    k = math.floor((1 - level) / 2 * count * (1 + _TIED)) + 1 - ties
    low = float(ratios[k - 1]) if 0 < k <= len(ratios) else 0.0
    high = float(ratios[-k]) if 0 < k <= len(ratios) else math.inf
    return SpreadTest(spread, other, ratio, low, high, min(1.0, 2 * min(as_wide, as_narrow) / count))


def compare_ranks(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Whether one arm's values lie above or below another's: p of the rank-sum test, two-sided.

    Wilcoxon's, exact: over all ways to assign the ranks to the two arms, or `MOST_ASSIGNMENTS` of them that
    are drawn where there are more (of seven values, beside nine or more). Equal values have the mean of their
    ranks, and those that are not finite are above all others. None if an arm has fewer than `FEWEST` values.
    """
    if min(len(values), len(others)) < FEWEST:
        return None
    import numpy as np

    ranked = sorted(map(rank, values)), sorted(map(rank, others))
    pooled = sorted(ranked[0] + ranked[1])
    # Twice the mean rank of equal values, which is whole; and how far it is from the middle.
    ours, theirs = (
        np.array([bisect_left(pooled, each) + bisect_right(pooled, each) - len(pooled) for each in arm])
        for arm in ranked
    )
    leaving, joining = _assignments(len(ours), len(theirs))
    sums = ours.sum() - np.einsum("ij,j->i", leaving, ours) + np.einsum("ij,j->i", joining, theirs)
    return float((abs(sums) >= abs(ours.sum())).mean())


def holm_known(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust those p-values that there are, as `holm` does; None stays None."""
    adjusted = iter(holm([p for p in ps if p is not None]))
    return [None if p is None else next(adjusted) for p in ps]


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of several tests, so adjusted that 5 % is the chance of any false one among them."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = largest
    return adjusted


def _distances(values: Sequence[float]) -> list[float] | None:
    """The distances of the logarithms from their median, without the smallest."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2 or min(finite) <= 0:
        return None
    logs = [math.log(value) for value in finite]
    middle = median(logs)
    return sorted(abs(value - middle) for value in logs)[1:]


def _critical_ratios(ours: list[float], theirs: list[float]) -> "tuple[int, NDArray[float64]]":
    """For each assignment, the ratio by which ours must be divided to make it as wide as what was observed.

    An assignment takes some of ours out and as many of theirs in; it is as wide if what comes in has the
    sum of what goes out. Those where both are 0 are tied at any ratio, and counted apart.
    """
    import numpy as np

    leaving, joining = _assignments(len(ours), len(theirs))
    out = np.einsum("ij,j->i", leaving, np.array(ours))
    into = np.einsum("ij,j->i", joining, np.array(theirs))
    tied = (out == 0) & (into == 0)
    with np.errstate(divide="ignore", over="ignore"):
        ratios = out[~tied] / into[~tied]
    return int(tied.sum()), np.sort(ratios)


@functools.cache
def _assignments(ours: int, theirs: int) -> "tuple[NDArray[float64], NDArray[float64]]":
    """Which of ours leave the first arm (1) and which of theirs join it: a row each, the observed first."""
    import numpy as np

    total = ours + theirs
    if math.comb(total, ours) <= MOST_ASSIGNMENTS:
        chosen = np.array(list(itertools.combinations(range(total), ours)))
    else:
        drawn = np.random.default_rng(0).random((MOST_ASSIGNMENTS - 1, total)).argsort(axis=1)[:, :ours]
        chosen = np.vstack([np.arange(ours), drawn])
    members = np.zeros((len(chosen), total))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return np.ascontiguousarray(1 - members[:, :ours]), np.ascontiguousarray(members[:, ours:])


def normal_quantile(level: float) -> float:
    """How many standard deviations from its mean a normal value is, with this probability, at most."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
