"""Compare two arms: shift, probability of superiority and ratio of spreads, each with a 95 % interval.

Arms are paired if they share seeds; what the seeds have in common then cancels. ``benchmarks/coverage.py
pairs`` simulates the coverage of each interval: docs/explanation/statistics.md.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, median
from typing import TYPE_CHECKING, Literal

from qlora_repeat.results.statistical_methods import (
    FEWEST,
    LEVEL,
    MOST_ASSIGNMENTS,
    SpreadTest,
    compare_spreads,
    of_critical_ratios,
    rank,
    spans_a_decade,
)

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

FEWEST_PAIRS = 6
"""With five pairs, no sign of a difference can be significant: 2 of 32 assignments are 6 %."""
_TINY = 1e-12
"""At 0 and 1, the equation of an interval has a second solution there."""
_MOST_EXACT = 2_500
"""Differences, or means of two, up to which the exact distribution of a test is computed."""
Kind = Literal["equivalent", "different", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval; the interval is None if there are too few values."""

    value: float
    low: float | None
    high: float | None
    p: float | None = None
    """Of a test of equal spreads, two-sided."""


@dataclass(frozen=True)
class Comparison:
    """How the values of a second arm compare with those of a first."""

    n: int
    other_n: int
    is_paired: bool
    shift: Estimate
    """The second arm's values minus the first's: a median of differences, or of means of two of them."""
    superiority: Estimate
    """The probability that a value of the second arm is above one of the first (ties count half)."""
    spread: Estimate | None
    """The second arm's spread divided by the first's; None if neither has one."""
    is_on_log_scale: bool
    """Whether spreads are those of logarithms, because values span a decade."""


@dataclass(frozen=True)
class Decision:
    """Whether two arms are equivalent within a margin."""

    kind: Kind
    more: int | None = None
    """For an undecided comparison: about how many more trials each arm needs; None if that is unknown."""


def compare_arms(values: Sequence[float], others: Sequence[float], *, paired: bool = False) -> Comparison:
    """Compare the values of a second arm (`others`) with those of a first.

    Values that are not finite are above all others; no shift is then finite if they decide it.

    Args:
        paired: whether the values at the same place share a seed.

    Raises:
        ValueError: an arm has no value, or paired arms have different numbers of values.
    """
    ours, theirs = [rank(value) for value in values], [rank(value) for value in others]
    if not ours or not theirs or (paired and len(ours) != len(theirs)):
        raise ValueError("expected values in both arms, and as many in both if they are paired")
    on_log = spans_a_decade([value for value in ours + theirs if value < math.inf])
    spread = _paired_spreads(ours, theirs, on_log) if paired else _spreads(ours, theirs, on_log)
    return Comparison(
        n=len(ours),
        other_n=len(theirs),
        is_paired=paired,
        shift=_paired_shift(ours, theirs) if paired else _shift(ours, theirs),
        superiority=_paired_superiority(ours, theirs) if paired else _superiority(ours, theirs),
        spread=spread,
        is_on_log_scale=on_log,
    )


def compare_log_spreads(
    values: Sequence[float], others: Sequence[float], *, paired: bool = False
) -> SpreadTest | None:
    """Test whether two arms spread equally on the log scale, as `compare_spreads`; in pairs if they are.

    Of pairs, the test exchanges the two distances. A pair with a value that is not finite is not exchanged.
    """
    test = compare_spreads(values, others)
    if not paired or test is None or math.inf in (test.spread, test.other_spread):
        return test
    found = _paired_spreads([*others], [*values], on_log=True)
    return (
        test if found is None else replace(test, ratio=found.value, low=found.low, high=found.high, p=found.p)
    )


def in_pairs(
    ours: Mapping[str, float], theirs: Mapping[str, float]
) -> tuple[list[float], list[float]] | None:
    """Return values by seed in pairs, if all seeds of the smaller arm are in the other; else None."""
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) < max(FEWEST_PAIRS, min(len(ours), len(theirs))):
        return None
    return [ours[seed] for seed in shared], [theirs[seed] for seed in shared]


def decide(found: Comparison, margin: float, of: Literal["shift", "spread"] = "shift") -> Decision:
    """Judge a shift by a margin around 0, or a ratio of spreads by a factor around 1.

    *equivalent* if the interval lies within the margin; otherwise *different* if it excludes no difference;
    otherwise *undecided*. The number of more trials supposes the same estimate and an interval that shrinks
    with the root of the number.
    """
    estimate = found.shift if of == "shift" else found.spread
    if estimate is None or estimate.low is None or estimate.high is None:
        return Decision("undecided")
    if of == "spread":
        if estimate.low <= 0 or math.inf in (estimate.value, estimate.high):
            kind: Kind = "different" if estimate.low > 1 or estimate.high < 1 else "undecided"
            return Decision(kind)
        value, low, high = (math.log(each) for each in (estimate.value, estimate.low, estimate.high))
        limit = math.log(margin)
    else:
        value, low, high, limit = estimate.value, estimate.low, estimate.high, margin
    if -limit < low and high < limit:
        return Decision("equivalent")
    if low > 0 or high < 0:
        return Decision("different")
    half = max(high - value, value - low)
    distance = max(abs(value), limit - abs(value))
    if not 0 < distance < math.inf or not math.isfinite(half):
        return Decision("undecided")
    n = min(found.n, found.other_n)
    return Decision("undecided", max(1, math.ceil(n * (half / distance) ** 2) - n))


def _shift(ours: list[float], theirs: list[float]) -> Estimate:
    """Return Hodges and Lehmann's estimate, with the interval that inverts the exact rank-sum test."""
    differences = sorted(_minus(b, a) for a in ours for b in theirs)
    if min(len(ours), len(theirs)) < FEWEST:
        return Estimate(median(differences), None, None)
    pairs, total = len(differences), len(ours) + len(theirs) + 1
    exact = _rank_sums(len(ours), len(theirs)) if pairs <= _MOST_EXACT else None
    cut = _cut(exact) if exact else _normal_cut(pairs / 2, pairs * total / 12)
    return Estimate(median(differences), differences[cut], differences[-1 - cut])


def _paired_shift(ours: list[float], theirs: list[float]) -> Estimate:
    """Return the median of the means of two differences, with the interval of the signed-rank test."""
    differences = [_minus(b, a) for a, b in zip(ours, theirs, strict=True)]
    twos = itertools.combinations_with_replacement(differences, 2)
    means = sorted(0.0 if one == -other else (one + other) / 2 for one, other in twos)
    if len(differences) < FEWEST_PAIRS:
        return Estimate(median(means), None, None)
    n, pairs = len(differences), len(means)
    exact = _signed_ranks(n) if pairs <= _MOST_EXACT else None
    cut = _cut(exact) if exact else _normal_cut(pairs / 2, pairs * (2 * n + 1) / 12)
    return Estimate(median(means), means[cut], means[-1 - cut])


def _minus(one: float, other: float) -> float:
    return 0.0 if one == other else one - other


def _cut(counts: Sequence[float]) -> int:
    """Return how many of the sorted values to leave out at each end, by a statistic's null distribution."""
    total, below = sum(counts), 0.0
    for cut, count in enumerate(counts):
        below += count
        if below > (1 - LEVEL) / 2 * total:
            return cut - 1
    raise AssertionError("the whole distribution is above any level")


def _normal_cut(center: float, variance: float) -> int:
    """Return the same for a statistic that is about normal."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return max(0, math.floor(center - z * math.sqrt(variance) - 0.5))


def _rank_sums(ours: int, theirs: int) -> list[float]:
    """Return the number of assignments for each value of Mann and Whitney's statistic, relative to all."""
    import numpy as np

    counts = np.zeros(ours * theirs + 1)
    counts[0] = 1.0
    for place in range(1, ours + 1):  # the Gaussian binomial coefficient, as a quotient of polynomials
        up, down = theirs + place, place
        shifted = counts.copy()
        shifted[up:] -= counts[: len(counts) - up] if up < len(counts) else 0.0
        for first in range(down):
            shifted[first::down] = shifted[first::down].cumsum()
        counts = shifted / shifted.max()
    found: list[float] = counts.tolist()
    return found


def _signed_ranks(n: int) -> list[float]:
    """Return the number of signs for each sum of positive ranks, relative to all."""
    import numpy as np

    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1.0
    for number in range(1, n + 1):
        counts[number:] = (counts[number:] + counts[:-number]) / 2
        counts[:number] /= 2
    found: list[float] = counts.tolist()
    return found


def _superiority(ours: list[float], theirs: list[float]) -> Estimate:
    """Return the probability, with Newcombe's interval (Statistics in Medicine 25, 2006, 559-573)."""
    wins = sum((b > a) + (b == a) / 2 for a in ours for b in theirs)
    pairs = len(ours) * len(theirs)
    value = wins / pairs
    if min(len(ours), len(theirs)) < FEWEST:
        return Estimate(value, None, None)
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    weight = (len(ours) + len(theirs)) / 2 - 1

    def beyond(true: float) -> float:
        variance = true * (1 - true) / pairs * (1 + weight * ((1 - true) / (2 - true) + true / (1 + true)))
        return (value - true) ** 2 - z * z * variance

    low = 0.0 if value == 0 else float(brentq(beyond, 0.0, min(value, 1 - _TINY)))
    high = 1.0 if value == 1 else float(brentq(beyond, max(value, _TINY), 1.0))
    return Estimate(value, low, high)


def _paired_superiority(ours: list[float], theirs: list[float]) -> Estimate:
    """Return the share of pairs, with Clopper and Pearson's exact interval; ties count half."""
    n = len(ours)
    wins = sum((b > a) + (b == a) / 2 for a, b in zip(ours, theirs, strict=True))
    if n < FEWEST:
        return Estimate(wins / n, None, None)
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = 0.0 if wins == 0 else float(betaincinv(wins, n - wins + 1, tail))
    high = 1.0 if wins == n else float(betaincinv(wins + 1, n - wins, 1 - tail))
    return Estimate(wins / n, low, high)


def _spreads(ours: list[float], theirs: list[float], on_log: bool) -> Estimate | None:
    """Return the ratio of spreads by `compare_spreads`; exponents of values give it on the plain scale."""
    first, second = (values if on_log else _exponents(values, ours + theirs) for values in (ours, theirs))
    test = compare_spreads(second, first)
    if test is None or test.ratio is None:
        return None
    return Estimate(test.ratio, test.low, test.high, test.p)


def _exponents(values: list[float], pooled: list[float]) -> list[float]:
    """Return numbers whose logarithms are the values, in a unit that keeps them small."""
    finite = [value for value in pooled if value < math.inf]
    middle, unit = median(finite), max(map(abs, finite)) or 1.0
    return [value if value == math.inf else math.exp((value - middle) / unit) for value in values]


def _paired_spreads(ours: list[float], theirs: list[float], on_log: bool) -> Estimate | None:
    """Return the ratio of the mean distances from the medians, with the interval of a sign-flip test.

    The test exchanges the two distances of pairs. As for arms that are not paired, the interval has the
    ratios by which the second arm's distances can be divided so that the test does not reject.
    """
    import numpy as np

    if math.inf in (*ours, *theirs):
        return _spreads(ours, theirs, on_log)
    scaled = [[math.log(value) for value in values] if on_log else values for values in (ours, theirs)]
    first, second = (np.array([abs(value - median(values)) for value in values]) for values in scaled)
    if not second.any() and not first.any():
        return None
    value = float(second.sum() / first.sum()) if first.any() else math.inf
    if len(ours) < FEWEST_PAIRS:
        return Estimate(value, None, None)
    flips = _flips(len(ours))
    out, into = flips @ second, flips @ first
    tied = (out == 0) & (into == 0)
    with np.errstate(divide="ignore"):
        ratios = np.sort(out[~tied] / into[~tied])
    return Estimate(value, *of_critical_ratios(int(tied.sum()), ratios))


def _flips(n: int) -> "NDArray[float64]":
    """Return which pairs are exchanged (1), a row for each assignment; the first one is the observed."""
    import numpy as np

    if 2**n <= MOST_ASSIGNMENTS:
        return np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    drawn = np.random.default_rng(0).integers(0, 2, (MOST_ASSIGNMENTS - 1, n))
    return np.vstack([np.zeros(n), drawn]).astype(float)
