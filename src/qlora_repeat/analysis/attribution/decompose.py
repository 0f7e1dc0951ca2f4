"""Decompose the variance of an experiment's outcomes by source. Pure functions: no files, no torch.

In each replicate, let D be the change from the baseline to ``joint``, where all sources have their second
levels, and e(s) the change where only source s has. Then D = e(adapter_init) + e(data_order) + ... + rest,
where the rest is due to interactions. Both levels have the same distribution, so E[D^2] is twice the variance
of the outcome (except for kernels, which change from one fixed level to another). Over replicates,

    total effect of s:  sum of e(s)^2 / sum of D^2     (Jansen 1999): alone and in all of its interactions
    share of s:         sum of D e(s) / sum of D^2     the mean of the total and the first-order effect

The shares of the sources and of the rest add up to 1. If at most two sources interact at a time, the expected
share is the Shapley effect (Owen 2014), which assigns half of an interaction to each source, and the expected
share of the rest is zero. Then sum of rest^2 / (2 sum of D^2) estimates the share of the variance that is due
to interactions; it is exactly 0 for additive sources. It counts an interaction of three sources twice and one
of four 3.5 times, so its expectation is never too small.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlora_repeat.analysis.attribution.control_checks import find_problems
from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    NUDGE,
    OTHER,
    Measurements,
    Outcome,
    pair_name,
)
from qlora_repeat.analysis.attribution.paired_statistics import (
    Estimate,
    Values,
    excess,
    half_deviation,
    largest_share,
    mean_difference,
    root_mean_square,
    share,
    size,
    size_bounds,
)
from qlora_repeat.analysis.trial_diff import DivergenceKind
from qlora_repeat.results.two_arms import compare_arms

SMALL = 0.2
"""Sources are additive if the interactions' share of the variance is shown to be below this, and not additive
if it is shown to be above."""
BELOW, ABOVE = 0.999, 0.95
"""The levels of the one-sided bounds that show it. In simulations with a share of exactly `SMALL`, each
verdict is wrong in at most 5 % of experiments with normal effects (``benchmarks/coverage.py
attribution``)."""
SIGNIFICANT = 0.01
"""Larger p-values are no evidence of interactions."""

MEASURES: dict[str, Callable[[Outcome], float]] = {
    "log perplexity": lambda outcome: outcome.log_perplexity,
    "late loss": lambda outcome: outcome.late_loss,
    "final loss": lambda outcome: outcome.final_loss,
}
MAIN = "log perplexity"
REST = "rest"


@dataclass(frozen=True)
class Change:
    """The change of a measure by a condition, from the baseline of the same replicate."""

    sd: float | None
    """The standard deviation that it causes, by `paired_statistics.half_deviation`."""
    median: float | None
    """The median absolute change, which is robust against outliers."""
    largest: float | None
    """The largest absolute change; not finite if an outcome is not."""


@dataclass(frozen=True)
class Effect:
    """The effect of a condition."""

    condition: str
    trials: int
    changed: int
    """Number of trials whose adapter differs from their reference's."""
    diverged: int
    """Number of trials with a loss that was not finite."""
    changes: dict[str, Change]
    """By measure."""
    distance: float | None
    """The median `update_distance` from the reference."""
    first_step: int | None
    """The first step at which any trial differs from its reference, if any."""
    first_kind: DivergenceKind | None
    """The most frequent kind of difference at that step."""


@dataclass(frozen=True)
class Decomposition:
    """The variance of a measure with all sources freed, by source."""

    replicates: int
    """Number of replicates in which all outcomes are finite; only these are decomposed."""
    total: dict[str, Estimate]
    """Total effect of each source, and the variance due to the nudge, relative to the variance."""
    shares: dict[str, Estimate]
    """Shares of each source and of the `REST`, which sum to 1."""
    interactions: Estimate
    """Share of the variance that is due to interactions, if at most two sources interact at a time."""
    pairs: dict[str, Estimate]
    """The same for each pair of sources that was freed together, including larger interactions with it."""
    interaction_sd: float | None
    """Root mean square of the rest."""
    floor: float | None
    """Its expectation if each fine-tuning had only an independent disturbance like the nudge's."""
    above_floor: float | None
    """p-value of an F test that it is at most the floor."""
    largest: str | None
    """The source that is shown to have the largest share; None if none is."""
    additive: str
    """``additive``, ``not additive`` or ``cannot tell``."""


@dataclass(frozen=True)
class Amplification:
    """The growth of a disturbance: one weight moved by one unit in the last place."""

    one_ulp: float
    """Upper bound of the disturbance."""
    value_distance: float
    """The median final distance of the nudged adapters from their references."""
    factor: float
    """Lower bound of the growth: `value_distance` / `one_ulp`."""
    sd: float | None
    """The standard deviation of the log perplexity that it causes."""


@dataclass(frozen=True)
class PrecisionEffect:
    """The effect of the other optimizer on the log perplexity, with the same levels of all sources."""

    other: str
    mean: Estimate
    """The mean difference (other - own), with its t interval."""
    spread: Estimate
    """The spread over replicates, relative to the arm's own, as `compare_arms` gives it in pairs."""


@dataclass(frozen=True)
class Attribution:
    """The analysis of an experiment."""

    problems: list[str]
    """Why it cannot be interpreted: failed control checks."""
    effects: list[Effect]
    decompositions: dict[str, Decomposition]
    """By measure; empty with fewer than two sources."""
    amplification: Amplification | None
    precision: PrecisionEffect | None


def attribute(measured: Measurements) -> Attribution:
    """Analyze an experiment."""
    return Attribution(
        problems=find_problems(measured),
        effects=[_effect(measured, name) for name in measured.conditions if name != BASELINE],
        decompositions={name: _decompose(measured, name) for name in MEASURES if len(measured.freed) > 1},
        amplification=_amplification(measured),
        precision=_precision(measured),
    )


def changes(measured: Measurements, condition: str, measure: str = MAIN) -> Values:
    """Return the change of a measure in each replicate of a condition, from the baseline."""
    values = _values(measured, condition, measure)
    with np.errstate(invalid="ignore"):
        found: Values = values - _values(measured, BASELINE, measure)[: len(values)]
    return found


def known_replicates(measured: Measurements, measure: str = MAIN) -> NDArray[np.bool_]:
    """Return which replicates have a finite measure in the baseline and all conditions that free sources."""
    names = [BASELINE, measured.together, *measured.freed, *map(pair_name, measured.pairs)]
    values = np.array([_values(measured, name, measure) for name in names])
    found: NDArray[np.bool_] = np.all(np.isfinite(values), axis=0)
    return found


def _values(measured: Measurements, condition: str, measure: str) -> Values:
    return np.array([MEASURES[measure](outcome) for outcome in measured.of(condition)], dtype=np.float64)


def _effect(measured: Measurements, condition: str) -> Effect:
    outcomes = measured.of(condition)
    references = {outcome.replicate: outcome for outcome in measured.of(BASELINE)}
    step = min((each.first_step for each in outcomes if each.first_step is not None), default=None)
    kinds = Counter(each.first_kind for each in outcomes if step is not None and each.first_step == step)
    apart = [each.update_distance for each in outcomes if each.update_distance is not None]
    return Effect(
        condition=condition,
        trials=len(outcomes),
        changed=sum(each.adapter_digest != references[each.replicate].adapter_digest for each in outcomes),
        diverged=sum(each.diverged_at is not None for each in outcomes),
        changes={
            name: Change(half_deviation(found), float(np.median(abs(found))), float(abs(found).max()))
            for name in MEASURES
            for found in [changes(measured, condition, name)]
        },
        distance=float(np.median(apart)) if apart else None,
        first_step=step,
        first_kind=kinds.most_common(1)[0][0] if kinds else None,
    )


def _decompose(measured: Measurements, measure: str) -> Decomposition:
    known = known_replicates(measured, measure)
    joint = changes(measured, measured.together, measure)[known]
    single: dict[str, Values] = {
        source: changes(measured, source, measure)[known] for source in measured.freed
    }
    both = {
        pair_name([one, other]): changes(measured, pair_name([one, other]), measure)[known]
        - (single[one] + single[other])
        for one, other in measured.pairs
    }
    rest = joint - np.sum([*single.values()], axis=0)
    nudged = changes(measured, NUDGE, measure)
    disturbed = nudged[np.isfinite(nudged)]
    interactions = _half(size(rest, joint))
    # rest = joint - sum of single outcomes + (sources - 1) * baseline; each of these outcomes has a variance
    # of half the nudge's mean square.
    times = (1 + len(single) + (len(single) - 1) ** 2) / 2
    p = excess(rest, disturbed, times)
    total = {name: size(part, joint) for name, part in single.items()}
    if len(nudged):
        total[NUDGE] = size(nudged[known], joint)
    return Decomposition(
        replicates=int(known.sum()),
        total=total,
        shares={name: share(part, joint) for name, part in {**single, REST: rest}.items()},
        interactions=interactions,
        pairs={name: _half(size(part, joint)) for name, part in both.items()},
        interaction_sd=root_mean_square(rest),
        floor=math.sqrt(times) * root_mean_square(disturbed) if len(disturbed) else None,
        above_floor=p,
        largest=largest_share(single, joint),
        additive=additivity(rest, joint, p),
    )


def _half(found: Estimate) -> Estimate:
    return Estimate(*(None if each is None else each / 2 for each in (found.value, found.low, found.high)))


def additivity(rest: Values, joint: Values, p: float | None) -> str:
    """Return ``additive``, ``not additive`` or ``cannot tell``.

    Args:
        rest: the part of the `joint` changes that is due to interactions.
        p: of the test that the rest is no more than a disturbance.
    """
    value, low, high = size_bounds(rest, joint, ABOVE, BELOW)
    if value == 0 or (high is not None and high / 2 <= SMALL):
        return "additive"
    is_above = low is not None and low / 2 >= SMALL and p is not None and p <= SIGNIFICANT
    return "not additive" if is_above else "cannot tell"


def _amplification(measured: Measurements) -> Amplification | None:
    if not (nudged := measured.of(NUDGE)):
        return None
    distance = float(np.median([outcome.value_distance for outcome in nudged]))
    return Amplification(
        one_ulp=measured.one_ulp,
        value_distance=distance,
        factor=distance / measured.one_ulp,
        sd=half_deviation(changes(measured, NUDGE)),
    )


def _precision(measured: Measurements) -> PrecisionEffect | None:
    if not measured.of(OTHER):
        return None
    other, own = (_values(measured, name, MAIN) for name in (OTHER, BASELINE))
    mean = mean_difference(changes(measured, OTHER))
    if not np.ptp(own):  # all replicates repeat a single observation
        mean = Estimate(mean.value)
    return PrecisionEffect(measured.other, mean, _spread(own, other))


def _spread(own: Values, other: Values) -> Estimate:
    if len(own) < 2 or not np.isfinite([own, other]).all() or not (np.ptp(own) and np.ptp(other)):
        return Estimate(None)
    found = compare_arms(own.tolist(), other.tolist(), paired=True)
    if found.spread is None or found.is_on_log_scale:  # another measure than that of the effects
        return Estimate(None)
    return Estimate(found.spread.value, found.spread.low, found.spread.high)
