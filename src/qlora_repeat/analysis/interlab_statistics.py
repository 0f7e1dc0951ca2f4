"""Estimate repeatability within laboratories and reproducibility between them.

The terms are from ISO 5725-1, where another laboratory may have other equipment. The paper (section IV) asks
for the same hardware and software there too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from qlora_repeat.results.statistical_methods import LEVEL, deviation_interval

FEWEST_LABORATORIES = 3
"""With two laboratories, the interval of the SD between them spans a factor of 71."""


@dataclass(frozen=True)
class Reproducibility:
    """Standard deviations of values within and between laboratories, in the values' unit."""

    laboratories: int
    n: int
    """Number of values."""
    mean: float
    """Mean of all values."""
    repeatability: float
    """s_r, within a laboratory."""
    repeatability_low: float | None
    repeatability_high: float | None
    between: float
    """s_L, of the true means of laboratories; 0 if their means differ by no more than s_r explains."""
    reproducibility: float
    """s_R, of values from any laboratory."""
    reproducibility_low: float | None
    reproducibility_high: float | None
    p: float | None
    """F test of equal means; None if the values in each laboratory are equal."""


def reproducibility(laboratories: Sequence[Sequence[float]], level: float = LEVEL) -> Reproducibility | None:
    """Estimate both as in ISO 5725-2 (1994, 7.4.5), with a one-way random effects model.

    For N values in p laboratories, each with n values, their mean y and their SD s:

        s_r^2 = sum (n - 1) s^2 / (N - p)               s_d^2 = sum n (y - mean of all)^2 / (p - 1)
        s_L^2 = (s_d^2 - s_r^2) / n'  or 0              n' = (N - sum n^2 / N) / (p - 1)
        s_R^2 = s_r^2 + s_L^2

    Unlike ISO 5725-2, remove no outliers. The interval of s_r is `deviation_interval`'s with one kurtosis for
    all laboratories. The interval of s_R combines it with the interval of the means by Graybill and Wang
    (Journal of the American Statistical Association 75, 1980, 869-873), with unweighted means (Thomas and
    Hultquist, Annals of Statistics 6, 1978, 582-587), and needs `FEWEST_LABORATORIES`.

    None if there are fewer than two laboratories with values, or none has two.
    """
    groups = [list(values) for values in laboratories if values]
    p, n = len(groups), sum(map(len, groups))
    if p < 2 or n == p:
        return None
    center = mean(value for values in groups for value in values)  # exact where all are equal
    means = [mean(values) for values in groups]
    freedom, squares = n - p, math.fsum(math.fsum((v - mean(g)) ** 2 for v in g) for g in groups)
    within = squares / freedom
    apart = math.fsum(len(g) * (own - center) ** 2 for g, own in zip(groups, means, strict=True)) / (p - 1)
    size = (n - sum(len(g) ** 2 for g in groups) / n) / (p - 1)
    between = max(0.0, (apart - within) / size)
    low, high = deviation_interval(*groups, level=level) or (None, None)
    total_low, total_high = None, None
    if p >= FEWEST_LABORATORIES and low is not None and high is not None:
        from scipy.special import chdtri

        of_means, rest = stdev(means) ** 2, 1 - sum(1 / len(g) for g in groups) / p
        tails = ((1 - level) / 2, (1 + level) / 2)
        below, above = (of_means * (p - 1) / float(chdtri(p - 1, tail)) for tail in tails)
        joined = of_means + rest * within
        down = math.hypot(of_means - below, rest * (within - low**2))
        up = math.hypot(above - of_means, rest * (high**2 - within))
        total_low, total_high = math.sqrt(max(0.0, joined - down)), math.sqrt(joined + up)
    chance = None
    if within > 0:
        from scipy.special import fdtrc

        chance = float(fdtrc(p - 1, freedom, apart / within))
    return Reproducibility(
        laboratories=p,
        n=n,
        mean=center,
        repeatability=math.sqrt(within),
        repeatability_low=low,
        repeatability_high=high,
        between=math.sqrt(between),
        reproducibility=math.sqrt(within + between),
        reproducibility_low=total_low,
        reproducibility_high=total_high,
        p=chance,
    )
