"""How many trials an effect needs, and which effect the present trials can find.

A difference of means is tested by Student's t test, of medians by the rank-sum test, a ratio of spreads by
`compare_spreads`, and two rates of collapse by Fisher's exact test; all two-sided. For means and rates the
power is computed; for medians and spreads it is simulated for normal and lognormal values, from a fixed seed.
``benchmarks/coverage.py power`` checks all of them.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qlora_repeat.results.statistical_methods import FEWEST, LEVEL, compare_ranks, compare_spreads

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

POWER = 0.8
"""The usual chance to find an effect."""
MOST_TRIALS = 1_000
_STUDIES = 1_000
"""Simulated studies for each number of trials."""
_QUANTILES = 50
"""Of what is not known about the SD."""
Of = Literal["mean", "median", "spread", "collapse"]


@dataclass(frozen=True)
class Effect:
    """What to find in a comparison of two arms."""

    of: Of
    size: float
    """The difference of means or medians in SDs, the ratio of spreads, or the second rate of collapse."""
    rate: float = 0.0
    """The first rate of collapse."""
    comparisons: int = 1
    """The number of comparisons; this one may have the smallest p (Holm's first step)."""

    @property
    def alpha(self) -> float:
        """The level of the test."""
        return (1 - LEVEL) / self.comparisons


@dataclass(frozen=True)
class PlannedEffect:
    """What was found about an effect."""

    effect: Effect
    needed: int | None = None
    """The trials that each arm needs; None if not asked, or more than `MOST_TRIALS`."""
    power: float | None = None
    """The chance that the present trials find it."""
    smallest: float | None = None
    """The smallest size that the present trials find."""
    assurance: float | None = None
    """The power of the needed trials, over what the pilot leaves unknown of the SD."""


def power_of(effect: Effect, n: int) -> float:
    """Return the chance that `n` trials in each arm find an effect."""
    if n < 2:
        return 0.0
    powers: dict[Of, Callable[[Effect, int], float]] = {
        "mean": _of_means, "median": _of_medians, "spread": _of_spreads, "collapse": _of_rates,
    }  # fmt: skip
    return powers[effect.of](effect, n)


def trials_needed(effect: Effect, power: float = POWER) -> int | None:
    """Return the fewest trials in each arm that find an effect with this power; None above `MOST_TRIALS`."""
    return _least(lambda n: power_of(effect, n) >= power, _guess(effect))


def smallest_found(effect: Effect, n: int, power: float = POWER) -> float | None:
    """Return the smallest size of such an effect that `n` trials find; None if they find none.

    The size that `effect` has is not used.
    """
    ranges: dict[Of, tuple[float, float]] = {"spread": (1.0, 1e4), "collapse": (effect.rate, 1.0)}
    low, high = ranges.get(effect.of, (0.0, 50.0))

    def is_found(size: float) -> bool:
        return power_of(replace(effect, size=size), n) >= power

    if not is_found(high):
        return None
    while high - low > 1e-3 * high:
        middle = math.sqrt(low * high) if effect.of == "spread" else (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return high


def assurance(effect: Effect, n: int, pilot: int) -> float:
    """Return the chance to find a difference, over what a pilot of so many values leaves unknown of the SD.

    The variance of normal values, given theirs, is theirs times (pilot - 1) / chi-square. `effect` is in SDs
    of the pilot.
    """
    from scipy.special import chdtri

    found = 0.0
    for place in range(_QUANTILES):
        chi = float(chdtri(pilot - 1, 1 - (place + 0.5) / _QUANTILES))
        found += power_of(replace(effect, size=effect.size * math.sqrt(chi / (pilot - 1))), n)
    return found / _QUANTILES


def _least(holds: Callable[[int], bool], guess: int) -> int | None:
    """Return the smallest number for which a condition holds, which holds for all larger ones."""
    low, high = 1, max(2, guess)
    while not holds(high):
        if high >= MOST_TRIALS:
            return None
        low, high = high, min(MOST_TRIALS, high + max(1, high // 4))
    while high - low > 1:
        middle = max(low + 1, high - max(1, (high - low) // 4)) if high - low > 8 else high - 1
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _guess(effect: Effect) -> int:
    """Return about the number of trials, where the search begins."""
    z = 2.8 if effect.comparisons == 1 else 3.4
    if effect.of in ("mean", "median"):
        return min(MOST_TRIALS, math.ceil(2 * (z / max(effect.size, 1e-6)) ** 2) + 1)
    if effect.of == "spread":
        return min(MOST_TRIALS, math.ceil(5 + 1.05 * (z / math.log(max(effect.size, 1.01))) ** 2))
    spread = effect.rate * (1 - effect.rate) + effect.size * (1 - effect.size)
    return min(MOST_TRIALS, math.ceil(spread * (z / max(abs(effect.size - effect.rate), 1e-3)) ** 2) + 4)


def _of_means(effect: Effect, n: int) -> float:
    from scipy.special import nctdtr, stdtrit

    freedom, shift = 2 * n - 2, effect.size * math.sqrt(n / 2)
    limit = float(stdtrit(freedom, 1 - effect.alpha / 2))
    above = 1 - float(nctdtr(freedom, shift, limit))
    below = float(nctdtr(freedom, shift, -limit))
    return above + (below if math.isfinite(below) else 0.0)


@functools.lru_cache(maxsize=4096)
def _of_medians(effect: Effect, n: int) -> float:
    if n < FEWEST:
        return 0.0
    import numpy as np

    draws = np.random.default_rng(0).normal(size=(_STUDIES, 2, n))
    draws[:, 1] += effect.size
    ps = [compare_ranks(*arms) or 1.0 for arms in draws.tolist()] if n <= 12 else _rank_sum_ps(draws, n)
    return sum(p <= effect.alpha for p in ps) / _STUDIES


def _rank_sum_ps(draws: "NDArray[float64]", n: int) -> list[float]:
    """Return the p-values of the rank-sum test by the normal distribution, for many values."""
    from scipy.special import ndtr

    ranks = draws.reshape(len(draws), 2 * n).argsort(axis=1).argsort(axis=1)[:, n:].sum(axis=1) + n
    away = abs(ranks - n * (2 * n + 1) / 2) - 0.5
    ps: list[float] = (2 * ndtr(-away / math.sqrt(n * n * (2 * n + 1) / 12))).tolist()
    return ps


@functools.lru_cache(maxsize=4096)
def _of_spreads(effect: Effect, n: int) -> float:
    if n < FEWEST:
        return 0.0
    import numpy as np

    logs = np.random.default_rng(0).normal(size=(_STUDIES, 2, n)) * min(0.02, 20 / effect.size)
    logs[:, 0] *= effect.size
    found = 0
    for ours, theirs in np.exp(logs).tolist():
        test = compare_spreads(ours, theirs)
        found += test is not None and test.p is not None and test.p <= effect.alpha
    return found / _STUDIES


def _of_rates(effect: Effect, n: int) -> float:
    """Return the power of Fisher's exact test of two rates, over all outcomes."""
    import numpy as np
    from scipy.special import gammaln, xlog1py, xlogy

    counts = np.arange(n + 1)
    choose = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)

    def chances(rate: float) -> "NDArray[float64]":
        found: NDArray[float64] = np.exp(choose + xlogy(counts, rate) + xlog1py(n - counts, -rate))
        return found

    first, second = chances(effect.rate), chances(effect.size)
    power = 0.0
    for total in range(2 * n + 1):
        ours = counts[(counts <= total) & (total - counts <= n)]
        logs = choose[ours] + choose[total - ours]
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        ranked = np.sort(weights)
        as_likely = ranked.searchsorted(weights * (1 + 1e-9), side="right")
        ps = ranked.cumsum()[as_likely - 1]
        likely = first[ours] * second[total - ours]
        power += float(likely[ps <= effect.alpha].sum())
    return power
