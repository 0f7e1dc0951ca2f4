"""Comparisons of values that are paired, replicate by replicate, and their intervals. None needs many."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qlora_repeat.statistics import FEWEST, LEVEL

RESAMPLES, SEED = 9999, 0
"""Of the bootstrap, which draws whole replicates."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None where there are too few replicates, or one is not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None


def share(part: Values, whole: Values) -> Estimate:
    """Cov(whole, part) / Var(whole), with the t interval of a straight-line fit of the part on the whole.

    Shares of parts that add up to the whole sum to 1. The interval is exact where both are normal.
    """
    count = len(whole)
    if not _comparable(part, whole):
        return Estimate(None)
    across, along = whole - whole.mean(), part - part.mean()
    squares = float(across @ across)
    value = float(across @ along) / squares
    if count < 3:
        return Estimate(value)
    residuals = along - value * across
    reach = _t(count - 2) * math.sqrt(float(residuals @ residuals) / (count - 2) / squares)
    return Estimate(value, value - reach, value + reach)


def variance_ratio(part: Values, whole: Values) -> Estimate:
    """Var(part) / Var(whole), with the interval of Pitman and Morgan (1939): exact where both are normal.

    The closer the two follow each other, the narrower it is; an F interval takes them as independent.
    """
    count = len(whole)
    if not _comparable(part, whole):
        return Estimate(None)
    ratio = float(np.var(part, ddof=1) / np.var(whole, ddof=1))
    if count < 3 or ratio == 0:
        return Estimate(ratio)
    correlation = float(np.corrcoef(part, whole)[0, 1])
    k = 1 + 2 * (1 - min(correlation**2, 1)) * _t(count - 2) ** 2 / (count - 2)
    reach = math.sqrt(k**2 - 1)
    return Estimate(ratio, ratio * (k - reach), ratio * (k + reach))


def sum_of_variances(parts: list[Values], whole: Values) -> Estimate:
    """The sum of the variances of parts, relative to that of the whole, with a percentile bootstrap interval.

    With seven replicates it covers the truth in about 88 to 93 of 100 cases, not in 95.
    """
    stacked = np.array([whole, *parts])
    if not _comparable(stacked.ravel(), whole):
        return Estimate(None)
    variances = stacked.var(axis=1, ddof=1)
    value = float(variances[1:].sum() / variances[0])
    if len(whole) < FEWEST:
        return Estimate(value)
    variances = stacked[:, _resamples(len(whole))].var(axis=2, ddof=1)
    ratios = variances[1:, variances[0] > 0].sum(axis=0) / variances[0, variances[0] > 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def largest_share(parts: dict[str, Values], whole: Values) -> tuple[str | None, float | None]:
    """The part with the largest share, and in what share of bootstrap samples it has the largest."""
    shares = {name: share(part, whole).value for name, part in parts.items()}
    known = {name: value for name, value in shares.items() if value is not None}
    if not known or len(known) < len(parts):
        return None, None
    winner = max(known, key=lambda name: known[name])
    if len(whole) < FEWEST:
        return winner, None
    drawn = _resamples(len(whole))
    across = whole[drawn] - whole[drawn].mean(axis=1, keepdims=True)
    covariances = np.array([(across * part[drawn]).sum(axis=1) for part in parts.values()])
    return winner, float((covariances.argmax(axis=0) == list(parts).index(winner)).mean())


def mean_difference(values: Values) -> Estimate:
    """The mean of paired differences, with its t interval."""
    mean, sd = float(values.mean()), deviation(values)
    if sd is None or not math.isfinite(sd):
        return Estimate(mean if math.isfinite(mean) else None)
    reach = _t(len(values) - 1) * sd / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach)


def excess(values: Values, noise: Values, times: int) -> float | None:
    """The p-value of an F test: that values vary by no more than the sum of so many such noises."""
    one, other = deviation(values), deviation(noise)
    if one is None or not other or not math.isfinite(one * other):
        return None
    return float(stats.f.sf((one / other) ** 2 / times, len(values) - 1, len(noise) - 1))


def deviation(values: Values) -> float | None:
    """The sample standard deviation (n - 1); None of fewer than two."""
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _comparable(part: Values, whole: Values) -> bool:
    """Whether all values are finite, and those of the whole differ."""
    finite = bool(np.isfinite(part).all() and np.isfinite(whole).all())
    return finite and len(whole) > 1 and bool(np.ptp(whole) > 0)


@functools.cache
def _t(freedom: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _resamples(count: int) -> NDArray[np.int64]:
    """Which replicates each bootstrap sample has, without samples of one replicate alone."""
    drawn = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
    kept: NDArray[np.int64] = drawn[np.ptp(drawn, axis=1) > 0]
    return kept
