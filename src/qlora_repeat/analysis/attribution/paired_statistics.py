"""Estimate how much of a total change its parts explain, from values paired by replicate.

A change is the difference of two outcomes whose levels have the same distribution, so its expectation is
zero; squares are therefore taken about zero, not about the mean. Intervals were chosen by their simulated
coverage with seven replicates (``benchmarks/coverage.py attribution``).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlora_repeat.results.statistical_methods import FEWEST, LEVEL

RESAMPLES, SEED = 9999, 0
"""The bootstrap resamples whole replicates."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None if there are too few replicates, or a single one determines it."""

    value: float | None
    low: float | None = None
    high: float | None = None


def share(part: Values, whole: Values) -> Estimate:
    """Return sum(part * whole) / sum(whole^2), the slope of a line through zero.

    Shares of parts that add up to the whole sum to 1. The interval is t times the standard error HC3
    (MacKinnon and White 1985), which allows for heteroscedasticity and is large if one replicate determines
    the slope.
    """
    if not _comparable(part, whole):
        return Estimate(None)
    squares = float(whole @ whole)
    value = float(part @ whole) / squares
    count, left = len(whole), 1 - whole**2 / squares
    if count < FEWEST or not left.all():
        return Estimate(value)
    error = float(np.linalg.norm(whole * (part - value * whole) / left)) / squares
    return Estimate(value, value - _t(count - 1) * error, value + _t(count - 1) * error)


def size(part: Values, whole: Values) -> Estimate:
    """Return sum(part^2) / sum(whole^2), with an interval from a jackknife of its logarithm."""
    if not _comparable(part, whole):
        return Estimate(None)
    above, below = float(part @ part), float(whole @ whole)
    left_above, left_below = above - part**2, below - whole**2
    enough = len(whole) >= FEWEST and (left_above > 1e-12 * above).all() and (left_below > 0).all()
    if not above or not enough:
        return Estimate(above / below)
    logs = np.log(left_above / left_below)
    count = len(whole)
    reach = _t(count - 1) * math.sqrt((count - 1) / count) * float(np.linalg.norm(logs - logs.mean()))
    with np.errstate(over="ignore"):
        high = float(np.exp(reach))
    return Estimate(above / below, above / below * math.exp(-reach), above / below * high)


def variance_ratio(part: Values, whole: Values) -> Estimate:
    """Return Var(part) / Var(whole), with the interval of Pitman and Morgan (1939), exact for normal values.

    The stronger the correlation, the narrower the interval; an F interval would assume independence.
    """
    count = len(whole)
    if not _comparable(part, whole) or not np.ptp(whole):
        return Estimate(None)
    ratio = float(np.var(part, ddof=1) / np.var(whole, ddof=1))
    if count < FEWEST or ratio == 0:
        return Estimate(ratio)
    correlation = float(np.corrcoef(part, whole)[0, 1])
    k = 1 + 2 * (1 - min(correlation**2, 1)) * _t(count - 2) ** 2 / (count - 2)
    reach = math.sqrt(k**2 - 1)
    return Estimate(ratio, ratio * (k - reach), ratio * (k + reach))


def largest_share(parts: dict[str, Values], whole: Values) -> tuple[str | None, float | None]:
    """Return the part with the largest share, and the share of bootstrap samples in which it is largest."""
    shares = {name: share(part, whole).value for name, part in parts.items()}
    known = {name: value for name, value in shares.items() if value is not None}
    if not known or len(known) < len(parts):
        return None, None
    winner = max(known, key=lambda name: known[name])
    if len(whole) < FEWEST:
        return winner, None
    drawn = np.random.default_rng(SEED).integers(len(whole), size=(RESAMPLES, len(whole)))
    products = np.array([(whole * part)[drawn].sum(axis=1) for part in parts.values()])
    return winner, float((products.argmax(axis=0) == list(parts).index(winner)).mean())


def mean_difference(values: Values) -> Estimate:
    """Return the mean of paired differences, with its t interval."""
    if not len(values) or not np.isfinite(values).all():
        return Estimate(None)
    mean, count = float(values.mean()), len(values)
    if count < FEWEST:
        return Estimate(mean)
    reach = _t(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - reach, mean + reach)


def excess(values: Values, noise: Values, times: float) -> float | None:
    """Return the p-value of an F test that the mean square of values is at most `times` that of noise."""
    known = len(values) and len(noise) and np.isfinite(values).all() and np.isfinite(noise).all()
    if not known or not noise.any():
        return None
    from scipy.special import fdtrc

    ratio = float(np.mean(values**2) / np.mean(noise**2))
    return float(fdtrc(len(values), len(noise), ratio / times))


def root_mean_square(values: Values) -> float:
    """Return the root mean square; NaN without values."""
    with np.errstate(invalid="ignore", over="ignore"):
        return math.sqrt(float(np.mean(values**2))) if len(values) else math.nan


def half_deviation(changes: Values) -> float | None:
    """Return the standard deviation of outcomes from changes between two draws: sqrt(mean square / 2)."""
    return root_mean_square(changes) / math.sqrt(2) if len(changes) else None


def _comparable(part: Values, whole: Values) -> bool:
    """Return whether all values are finite and the whole has a sum of squares to divide by."""
    finite = bool(np.isfinite(part).all() and np.isfinite(whole).all())
    return finite and len(whole) > 1 and float(whole @ whole) > 0


@functools.cache
def _t(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
