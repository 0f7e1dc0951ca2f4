"""Compare the results of several laboratories: repeatability within and reproducibility between them.

The terms are from ISO 5725-1, where another laboratory may have other equipment. The paper (section IV) asks
for the same hardware and software there too.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from qlora_repeat.errors import UsageError
from qlora_repeat.results.arms import Arm, ArmKey, group_arms
from qlora_repeat.results.statistical_methods import LEVEL, deviation_interval, spans_a_decade
from qlora_repeat.results.trial_result import TrialResult

Conditions = dict[str, set[str]]
"""The conditions of an arm's trials: each name with all values that occur, as JSON."""
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


@dataclass(frozen=True)
class Laboratory:
    """A laboratory and its collected results."""

    name: str
    arms: list[Arm]
    conditions: dict[ArmKey, Conditions] = field(default_factory=dict)
    """Conditions from records; empty if there is only a results file."""


@dataclass(frozen=True)
class LaboratoryArm:
    """The results of an arm in one laboratory."""

    laboratory: str
    n: int
    """Number of finite perplexities."""
    not_finite: int
    adapters: int | None
    """Number of distinct adapters, by digest; None if results have no digests."""
    mean: float | None
    """Arithmetic mean of the perplexities; on the log scale, the geometric mean."""
    sd: float | None
    """Standard deviation of the perplexities, or of their natural logarithms."""


@dataclass(frozen=True)
class SharedArm:
    """An arm that several laboratories have run."""

    model: str
    optimizer: str
    logarithmic: bool
    """Whether it is compared on the log scale."""
    laboratories: list[LaboratoryArm]
    common_adapters: int | None
    """Number of adapters that more than one laboratory has; None if fewer than two have digests."""
    common_seeds: int
    """Number of seeds of the initial adapter that more than one has. Such trials are not independent."""
    unlike: list[str]
    """Conditions that differ between laboratories; then nothing is pooled."""
    pooled: Reproducibility | None
    """In the unit of the SDs."""


def laboratory(
    name: str, results: Sequence[TrialResult], conditions: dict[ArmKey, Conditions] | None = None
) -> Laboratory:
    """Return the laboratory that collected these results.

    Raises:
        UsageError: two rows have the same trial.
    """
    return Laboratory(name, group_arms(results, where=name), conditions or {})


def compare_laboratories(laboratories: Sequence[Laboratory]) -> list[SharedArm]:
    """Compare the arms that at least two laboratories have measured.

    Raises:
        UsageError: there are fewer than two laboratories, two have the same name, or none share an arm.
    """
    names = Counter(each.name for each in laboratories)
    if len(laboratories) < 2:
        raise UsageError("give the results of at least two laboratories to compare")
    twice, count = names.most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} laboratories are named {twice!r}; give each its own name with NAME=FILE")
    measured = {each.name: {arm.key: arm for arm in each.arms if arm.perplexities} for each in laboratories}
    shared = []
    for key in dict.fromkeys(key for own in measured.values() for key in own):
        having = [each for each in laboratories if key in measured[each.name]]
        if len(having) > 1:
            shared.append(_shared(key, having, {each.name: measured[each.name][key] for each in having}))
    if not shared:
        found = "; ".join(
            f"{name} has {', '.join(map('/'.join, own)) or 'none'}" for name, own in measured.items()
        )
        raise UsageError(f"no model and optimizer with results of two laboratories: {found}")
    return shared


def _shared(key: ArmKey, having: list[Laboratory], arms: dict[str, Arm]) -> SharedArm:
    rows = {name: [row for row in arm.done if row.perplexity is not None] for name, arm in arms.items()}
    finite = {name: list(filter(math.isfinite, arm.perplexities)) for name, arm in arms.items()}
    logarithmic = spans_a_decade([value for own in finite.values() for value in own])
    scaled = {name: list(map(math.log, own)) if logarithmic else own for name, own in finite.items()}
    adapters = {name: {row.adapter_digest for row in own} - {None} for name, own in rows.items()}
    seeds = [{row.adapter_init_seed for row in own} - {None} for own in rows.values()]
    unlike = list(_unlike([_conditions(each, key, rows[each.name]) for each in having]))
    return SharedArm(
        *key,
        logarithmic=logarithmic,
        laboratories=[
            LaboratoryArm(
                laboratory=name,
                n=len(own),
                not_finite=len(rows[name]) - len(own),
                adapters=len(adapters[name]) or None,
                mean=_center(own, logarithmic),
                sd=stdev(own) if len(own) > 1 else None,
            )
            for name, own in scaled.items()
        ],
        common_adapters=_common(adapters.values()) if sum(map(bool, adapters.values())) > 1 else None,
        common_seeds=_common(seeds),
        unlike=unlike,
        pooled=None if unlike else reproducibility(list(scaled.values())),
    )


def _center(values: list[float], logarithmic: bool) -> float | None:
    if not values:
        return None
    return math.exp(mean(values)) if logarithmic else mean(values)


def _common(own: Iterable[set[Any]]) -> int:
    """Return the number of elements that more than one set has."""
    return sum(count > 1 for count in Counter(each for found in own for each in found).values())


def _conditions(laboratory: Laboratory, key: ArmKey, rows: list[TrialResult]) -> Conditions:
    """Return the conditions of an arm in a laboratory, from results and, if there are any, from records."""
    found: dict[str, set[Any]] = {
        "randomness profile": {row.randomness for row in rows},
        "number of test examples": {row.test_examples for row in rows},
        "miniature": {row.miniature for row in rows},
    }
    known = {name: {json.dumps(each) for each in own if each is not None} for name, own in found.items()}
    return known | laboratory.conditions.get(key, {})


def _unlike(conditions: list[Conditions]) -> Iterator[str]:
    """Yield the names of known conditions that differ."""
    for name in dict.fromkeys(name for own in conditions for name in own):
        values = [own[name] for own in conditions if own.get(name)]
        if any(each != values[0] for each in values):
            yield name


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
