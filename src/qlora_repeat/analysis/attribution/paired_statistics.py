"""Estimate how much of a total change its parts explain, from values paired by replicate.

A change is the difference of two outcomes whose levels have the same distribution, so its expectation is
zero; squares are therefore taken about zero, not about the mean. Intervals were chosen by their simulated
coverage with seven replicates (``benchmarks/coverage.py attribution``).
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlora_repeat.results.statistical_methods import FEWEST, LEVEL, MOST_ASSIGNMENTS

SEED = 0
ALPHA = 0.05
"""The largest p-value with which one source is named as the largest."""

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
    reach = _quantile(count - 1, (1 + LEVEL) / 2) * error
    return Estimate(value, value - reach, value + reach)


def size(part: Values, whole: Values) -> Estimate:
    """Return sum(part^2) / sum(whole^2), with an interval from a jackknife of its logarithm."""
    return Estimate(*size_bounds(part, whole, (1 + LEVEL) / 2, (1 + LEVEL) / 2))


def size_bounds(
    part: Values, whole: Values, lower: float, upper: float
) -> tuple[float | None, float | None, float | None]:
    """Return a `size` between one-sided bounds at these levels; None for what cannot be known."""
    if not _comparable(part, whole):
        return None, None, None
    above, below = float(part @ part), float(whole @ whole)
    left_above, left_below = above - part**2, below - whole**2
    enough = len(whole) >= FEWEST and (left_above > 1e-12 * above).all() and (left_below > 0).all()
    if not above or not enough:
        return above / below, None, None
    logs = np.log(left_above / left_below)
    count = len(whole)
    error = math.sqrt((count - 1) / count) * float(np.linalg.norm(logs - logs.mean()))
    low, high = (sign * _quantile(count - 1, level) * error for sign, level in ((-1, lower), (1, upper)))
    with np.errstate(over="ignore"):
        return above / below, above / below * math.exp(low), above / below * float(np.exp(high))


def largest_share(parts: dict[str, Values], whole: Values) -> str | None:
    """Return the part whose share is shown to be larger than each other's; None if none is.

    Two sources whose effects have one distribution can be exchanged in each replicate without a change of the
    whole. So the differences of their products with the whole have random signs, and a test that flips these
    signs is exact. It is not if only their shares are equal. The largest must be significant against every
    other, at `ALPHA`.
    """
    if len(parts) < 2 or not all(_comparable(part, whole) for part in parts.values()):
        return None
    products = {name: whole * part for name, part in parts.items()}
    winner = max(products, key=lambda name: float(products[name].sum()))
    others = [each for name, each in products.items() if name != winner]
    return winner if all(_sign_flip_p(products[winner] - each) <= ALPHA for each in others) else None


def _sign_flip_p(differences: Values) -> float:
    """Return the two-sided p-value of a sum, over all signs of its parts or a random sample of them."""
    count = len(differences)
    if 2**count <= MOST_ASSIGNMENTS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(SEED).choice([-1.0, 1.0], (MOST_ASSIGNMENTS - 1, count))
        signs = np.vstack([np.ones(count), drawn])
    return float((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-12)).mean())


def mean_difference(values: Values) -> Estimate:
    """Return the mean of paired differences, with its t interval."""
    if not len(values) or not np.isfinite(values).all():
        return Estimate(None)
    mean, count = float(values.mean()), len(values)
    if count < FEWEST:
        return Estimate(mean)
    reach = _quantile(count - 1, (1 + LEVEL) / 2) * float(np.std(values, ddof=1)) / math.sqrt(count)
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
def _quantile(freedom: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
