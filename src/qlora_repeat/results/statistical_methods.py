"""Statistical methods for a few repeated values: summaries, intervals, tests and Holm's adjustment.

Each method was chosen by its simulated coverage or error rate with seven values; see
docs/explanation/statistics.md. Values that are not finite (diverged trials) are never hidden: they rank above
all others in methods that use ranks; other methods leave them out and count them.

scipy.stats takes a second to import, longer than making all tables, so this module uses scipy.special only;
tests compare its results with scipy.stats.
"""

import functools
import itertools
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64, int64
    from numpy.typing import NDArray

LEVEL = 0.95
"""The default level of all intervals."""
FEWEST = 5
"""The least number of values for an interval or a test; with four in each arm, no test can be significant."""
TRIALS_NEEDED = {1.5: (56, 79), 2.0: (23, 32), 3.0: (12, 17), 5.0: (8, 11), 10.0: (6, 8)}
"""For each ratio of spreads, the trials in each arm for which `compare_spreads` has a power of 80 %: with one
model (p at most 0.05), and with the first of four models by Holm (0.0125). For lognormal values, simulated
by ``benchmarks/coverage.py``."""

MOST_ASSIGNMENTS = 10_000
"""Permutation tests use up to this many assignments (eight values in each arm), else a random sample."""
_FEW = 100
"""Values of two arms whose assignments are kept for the next test."""
_MOST_DRAWN = 2_000_000
"""Numbers that are drawn at once, in 16 MB."""
_LARGEST_EXPONENT = math.log(sys.float_info.max)
_TIED = 1e-12
"""Tolerance for sums of the same numbers in another order, relative to them or to 1."""


@dataclass(frozen=True)
class Summary:
    """Summary of the values of one arm in one measure; None where there are too few values."""

    n: int
    """Number of finite values."""
    not_finite: int
    """Number of other values: left out of mean, SD and CV; above all others in median, MAD and range."""
    mean: float | None = None
    sd: float | None = None
    """Sample standard deviation (n - 1)."""
    sd_low: float | None = None
    sd_high: float | None = None
    """The interval of `deviation_interval`; None if values span a decade."""
    cv: float | None = None
    """SD / mean."""
    median: float | None = None
    mad: float | None = None
    """Median absolute deviation from the median, not scaled."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Share:
    """A count, its total, and the exact interval of the share."""

    count: int
    of: int
    low: float
    high: float


@dataclass(frozen=True)
class SpreadTest:
    """The comparison of the spreads of two arms on the log scale, independent of the unit."""

    spread: float
    """The mean distance of the logarithms from their median, without the smallest distance."""
    other_spread: float
    ratio: float | None
    """spread / other_spread; infinite if only the other is 0, None if both are, or both are infinite."""
    low: float | None
    high: float | None
    """The ratios that the test does not reject; None if a value is not finite."""
    p: float | None
    """Two-sided; None if an arm has fewer than `FEWEST` values."""


def summarize(values: Sequence[float]) -> Summary:
    """Return location and spread of an arm's values, in their unit."""
    finite = [value for value in values if math.isfinite(value)]
    ranked = [rank(value) for value in values]
    n, not_finite = len(finite), len(values) - len(finite)
    if not values:
        return Summary(n, not_finite)
    middle = median(ranked)
    center = mean(finite) if finite else None
    sd = stdev(finite) if n > 1 else None
    # Where values span a decade, the SD has no interval of known coverage; `compare_spreads` uses logarithms.
    bounds = None if spans_a_decade(finite) else deviation_interval(finite)
    sd_low, sd_high = bounds or (None, None)
    return Summary(
        n=n,
        not_finite=not_finite,
        mean=center,
        sd=sd,
        sd_low=sd_low,
        sd_high=sd_high,
        cv=sd / center if sd is not None and center else None,
        median=middle,
        mad=median(abs(value - middle) for value in ranked) if n > 1 and middle < math.inf else None,
        low=min(ranked),
        high=max(ranked),
    )


def rank(value: float) -> float:
    """Return the value for comparisons: infinity if it is not finite, so that it is above all others."""
    return value if math.isfinite(value) else math.inf


def spans_a_decade(values: Sequence[float]) -> bool:
    """Return whether values belong on a log scale: all above 0, the largest over 10 times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def deviation_interval(*groups: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return a confidence interval of the standard deviation; None for fewer than `FEWEST` or equal values.

    For several groups, it is the interval of their common standard deviation about their own means.

    Bonett's interval (Computational Statistics & Data Analysis 50, 2006, 775-782) is on the logarithm of the
    variance, with a kurtosis about a trimmed mean. For strongly skewed values or a rare second mode, compare
    logarithms instead (`compare_spreads`). Equal values have no interval: they say nothing of a true SD above
    0.
    """
    spread = [values for values in groups if len(values) > 1]
    n = sum(map(len, spread))
    freedom = n - len(spread)
    if freedom < FEWEST - 1:
        return None
    unit = max(map(stdev, spread))
    if unit == 0:
        return None
    squares = math.fsum((len(own) - 1) * (stdev(own) / unit) ** 2 for own in spread)
    kurtosis = n * math.fsum(_fourth_powers(own, unit) for own in spread) / squares**2
    variance = sum((len(own) - 1) * (kurtosis - (len(own) - 3) / len(own)) for own in spread) / freedom**2
    z = _normal_quantile(level)
    c = n / (n - z)
    half = z * c * math.sqrt(variance) / 2
    center = unit * math.sqrt(squares / freedom * c)
    return center * math.exp(-half), center * math.exp(half)


def _fourth_powers(values: Sequence[float], unit: float) -> float:
    """Return the sum of fourth powers of the distances from a trimmed mean, in this unit."""
    cut = int(len(values) / (2 * math.sqrt(len(values) - 4))) if len(values) > 4 else 0
    trimmed = mean(sorted(values)[cut : len(values) - cut])
    return math.fsum(((value - trimmed) / unit) ** 4 for value in values)


def share(count: int, of: int) -> Share | None:
    """Return a share with Clopper and Pearson's exact interval; None if `of` is 0.

    At every true share, it covers at least as often as it says, however few values there are. Wilson's covers
    in 83 % of cases at worst with seven.
    """
    if of == 0:
        return None
    return Share(count, of, _least_share(count, of), 1 - _least_share(of - count, of))


def _least_share(count: int, of: int) -> float:
    """Return the share at which this count or a larger one is as unlikely as the end of an interval."""
    low, high = 0.0, 1.0
    while count and high - low > 1e-15 and low < (middle := (low + high) / 2) < high:
        logs = [
            math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
            + k * math.log(middle) + (of - k) * math.log1p(-middle)
            for k in range(count, of + 1)
        ]  # fmt: skip
        is_likely = math.fsum(map(math.exp, logs)) > (1 - LEVEL) / 2
        low, high = (low, middle) if is_likely else (middle, high)
    return low


def prediction_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return a prediction interval for one more value of the same arm.

    It is Student's interval on the log scale with half the degrees of freedom, extended to the range of the
    values if necessary (never with seven values). It is also valid for two modes that were both observed, but
    cannot foresee another.

    If a value is not finite, the upper end is infinity. Equal values give that value twice.
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
    above = math.exp(center + half) if center + half < _LARGEST_EXPONENT else math.inf
    return min(low, math.exp(center - half)), max(high, above)


def compare_spreads(
    values: Sequence[float], others: Sequence[float], level: float = LEVEL
) -> SpreadTest | None:
    """Test whether two arms spread equally on the log scale; return the ratio, its interval and p.

    The test permutes Brown and Forsythe's distances from the median over all assignments to the two arms. It
    leaves out the distance that is 0 by construction in an odd number of values (in an even number, one of
    two that are always equal; Hines and Hines, Biometrics 56, 2000, 451-454). The interval has the ratios by
    which the first arm's distances can be divided so that the test does not reject: it excludes 1 exactly if
    p is at most 1 - level.

    A value that is not finite is further away than all others: an arm that has one has an infinite spread,
    and assignments with more such distances are wider.

    None if an arm has fewer than two values, one not above 0, or none that is finite.
    """
    ours, theirs = _distances(values), _distances(others)
    if ours is None or theirs is None:
        return None
    spread, other = mean(ours), mean(theirs)
    if math.inf in (spread, other):
        ratio = None if spread == other else spread / other if other else math.inf
        p = _p_of_infinite(ours, theirs) if min(len(ours), len(theirs)) >= FEWEST - 1 else None
        return SpreadTest(spread, other, ratio, None, None, p)
    ratio = spread / other if other else math.inf if spread else None
    if min(len(ours), len(theirs)) < FEWEST - 1:
        return SpreadTest(spread, other, ratio, None, None, None)
    if ratio is None:
        return SpreadTest(spread, other, None, None, None, 1.0)
    return SpreadTest(spread, other, ratio, *of_critical_ratios(*_critical_ratios(ours, theirs), level))


def of_critical_ratios(
    ties: int, ratios: "NDArray[float64]", level: float = LEVEL
) -> tuple[float, float, float]:
    """Return the interval of a ratio of spreads, and the two-sided p of its test.

    Args:
        ties: the number of assignments that are as wide as the observed one, whatever the ratio.
        ratios: of each other assignment, the ratio by which the first arm's distances are divided to make it
            as wide as the observed one; sorted.
        level: of the interval.
    """
    count = ties + len(ratios)
    as_wide = ties + int((ratios <= 1 + _TIED).sum())
    as_narrow = ties + int((ratios >= 1 - _TIED).sum())
    # Divided by a ratio below the k-th smallest, fewer than (1 - level) / 2 of assignments are as wide.
    k = math.floor((1 - level) / 2 * count * (1 + _TIED)) + 1 - ties
    low = float(ratios[k - 1]) if 0 < k <= len(ratios) else 0.0
    high = float(ratios[-k]) if 0 < k <= len(ratios) else math.inf
    return low, high, min(1.0, 2 * min(as_wide, as_narrow) / count)


def compare_ranks(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Wilcoxon's rank-sum test.

    The test is exact, over all assignments of ranks to the two arms; if there are more than
    `MOST_ASSIGNMENTS` (seven values and nine or more), over a random sample of them. Equal values have their
    mean rank; values that are not finite are above all others. None if an arm has fewer than `FEWEST` values.
    """
    if min(len(values), len(others)) < FEWEST:
        return None
    import numpy as np

    ranked = sorted(map(rank, values)), sorted(map(rank, others))
    pooled = sorted(ranked[0] + ranked[1])
    # Twice the mean rank, a whole number, relative to the middle rank.
    ours, theirs = (
        np.array([bisect_left(pooled, each) + bisect_right(pooled, each) - len(pooled) for each in arm])
        for arm in ranked
    )
    out, into = _exchanged(ours, theirs)
    return float((abs(ours.sum() - out + into) >= abs(ours.sum())).mean())


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values with Holm's adjustment, which controls the family-wise error rate; None stays."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted, largest = list(ps), 0.0
    for rest, (p, place) in zip(range(len(known), 0, -1), known, strict=True):
        adjusted[place] = largest = max(largest, min(1.0, rest * p))
    return adjusted


def _distances(values: Sequence[float]) -> list[float] | None:
    """Return the sorted distances of the logarithms from their median, without the smallest; or None.

    A distance is infinite if only one of value and median is; see `compare_spreads`.
    """
    ranked = [rank(value) for value in values]
    if len(ranked) < 2 or min(ranked) <= 0 or min(ranked) == math.inf:
        return None
    logs = [math.log(value) if value < math.inf else math.inf for value in ranked]
    middle = median(logs)
    return sorted(0.0 if value == middle else abs(value - middle) for value in logs)[1:]


def _p_of_infinite(ours: list[float], theirs: list[float]) -> float:
    """Return the p-value if distances are infinite: their number decides, then the sum of the others."""
    import numpy as np

    arms = np.array(ours), np.array(theirs)
    out, into = _exchanged(*(np.isinf(arm).astype(float) for arm in arms))
    more = into - out
    out, into = _exchanged(*(np.where(np.isinf(arm), 0.0, arm) for arm in arms))
    rest, tied = into - out, _TIED * (out + into).max()
    as_wide = int(((more > 0) | ((more == 0) & (rest >= -tied))).sum())
    as_narrow = int(((more < 0) | ((more == 0) & (rest <= tied))).sum())
    return min(1.0, 2 * min(as_wide, as_narrow) / len(more))


def _critical_ratios(ours: list[float], theirs: list[float]) -> "tuple[int, NDArray[float64]]":
    """Return, for each assignment, the ratio by which to divide ours to make it as wide as the observed one.

    An assignment replaces some of our distances by as many of theirs; it is as wide if both have the same
    sum. Return first the number of assignments where both sums are 0, which are tied at any ratio.
    """
    import numpy as np

    out, into = _exchanged(np.array(ours), np.array(theirs))
    tied = (out == 0) & (into == 0)
    out, into = out[~tied], into[~tied]
    with np.errstate(divide="ignore", over="ignore"):
        ratios = out / into
    # Differences of logarithms have about the same rounding errors, however small they are.
    ratios[abs(out - into) <= _TIED * np.maximum(1, out + into)] = 1
    return int(tied.sum()), np.sort(ratios)


def _exchanged(
    ours: "NDArray[float64]", theirs: "NDArray[float64]"
) -> "tuple[NDArray[float64], NDArray[float64]]":
    """Return the sums of ours that leave the first arm, and of theirs that join it, in each assignment."""
    import numpy as np

    few = len(ours) + len(theirs) <= _FEW
    assignments = _few_assignments if few else _assignments
    found = [
        (np.einsum("ij,j->i", leaving, ours), np.einsum("ij,j->i", joining, theirs))
        for leaving, joining in assignments(len(ours), len(theirs))
    ]
    out, into = (np.concatenate(sums) for sums in zip(*found, strict=True))
    return out, into


@functools.lru_cache(maxsize=4)
def _few_assignments(ours: int, theirs: int) -> "list[tuple[NDArray[float64], NDArray[float64]]]":
    return list(_assignments(ours, theirs))


def _assignments(ours: int, theirs: int) -> "Iterator[tuple[NDArray[float64], NDArray[float64]]]":
    """Yield which of ours leave the first arm (1) and which of theirs join it: a row for each assignment.

    The first row is the observed assignment. Large arms need too much memory for all rows at once.
    """
    import numpy as np

    total = ours + theirs

    def members(chosen: "NDArray[int64]") -> "tuple[NDArray[float64], NDArray[float64]]":
        found = np.zeros((len(chosen), total))
        np.put_along_axis(found, chosen, 1.0, axis=1)
        return np.ascontiguousarray(1 - found[:, :ours]), np.ascontiguousarray(found[:, ours:])

    if math.comb(total, ours) <= MOST_ASSIGNMENTS:
        yield members(np.array(list(itertools.combinations(range(total), ours))))
        return
    draws, left, observed = np.random.default_rng(0), MOST_ASSIGNMENTS - 1, np.arange(ours)[None]
    while left:
        count = min(left, max(1, _MOST_DRAWN // total))
        drawn = draws.random((count, total)).argsort(axis=1)[:, :ours]
        yield members(np.vstack([observed, drawn]))
        left, observed = left - count, observed[:0]


def _normal_quantile(level: float) -> float:
    """Return the half-width, in standard deviations, of the central normal interval at this level."""
    return NormalDist().inv_cdf((1 + level) / 2)
