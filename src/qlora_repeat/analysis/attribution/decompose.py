"""Which source explains how much of the spread, from what an experiment measured. Pure: no files, no torch.

In each replicate, let D be the change from the baseline to ``joint``, where all sources have their second
levels, and e(s) the change where source s alone has. Then D = e(adapter_init) + e(data_order) + ... + rest,
and the rest is what sources do only together. As both levels are drawn alike, E[D^2] is twice the variance of
the outcome (kernels alone are not drawn: theirs is a change from one level to another), and over replicates

    total effect of s:  sum of e(s)^2 / sum of D^2     (Jansen 1999): alone and in all of its interactions
    share of s:         sum of D e(s) / sum of D^2     the mean of the total and the first-order effect

The shares and that of the rest add up to 1. Where no more than two sources interact at a time, a share is in
expectation the Shapley effect (Owen 2014), where an interaction counts half for each of the two, and the rest
has none. The sum of rest^2 over twice the sum of D^2 is then in expectation the share of the variance that is
due to interactions; it is exactly 0 if sources are additive. An interaction of three counts twice there, one
of four 3.5 times, so that it is never too small in expectation.
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
    variance_ratio,
)
from qlora_repeat.analysis.trial_diff import DivergenceKind

SMALL = 0.2
"""Interactions that are certain to have less than this share of the variance count as none."""
SIGNIFICANT = 0.01
"""Larger p-values are no evidence that there are interactions at all."""

MEASURES: dict[str, Callable[[Outcome], float]] = {
    "log perplexity": lambda outcome: outcome.log_perplexity,
    "late loss": lambda outcome: outcome.late_loss,
    "final loss": lambda outcome: outcome.final_loss,
}
MAIN = "log perplexity"
REST = "rest"


@dataclass(frozen=True)
class Change:
    """What a condition changes in a measure, from the baseline of the same replicate."""

    sd: float | None
    """The standard deviation that it gives the measure, by `paired.half_deviation`."""
    median: float | None
    """The median absolute change: what a replicate far off does not decide, as it does the deviation."""
    largest: float | None
    """The largest absolute change; not finite where an outcome is not."""


@dataclass(frozen=True)
class Effect:
    """What a condition does."""

    condition: str
    trials: int
    changed: int
    """Trials whose adapter is not that of their reference."""
    diverged: int
    """Trials with a loss that was not finite."""
    changes: dict[str, Change]
    """By measure."""
    distance: float | None
    """The median distance from the reference, in what the adapters add to the weights."""
    first_step: int | None
    """The first step at which any trial differs from its reference; None where none does."""
    first_kind: DivergenceKind | None
    """In what most of those differ that do so at that step."""


@dataclass(frozen=True)
class Decomposition:
    """The variance of a measure with all sources freed, by source."""

    replicates: int
    """Those in which all outcomes are finite: only they can be taken apart."""
    total: dict[str, Estimate]
    """The total effect of each source; of the nudge, the variance that it gives; relative to the variance."""
    shares: dict[str, Estimate]
    """Of each source and of the `REST`; they sum to 1."""
    interactions: Estimate
    """The share of the variance that is due to interactions, if these are of two sources at a time."""
    pairs: dict[str, Estimate]
    """Of these, what is due to each pair of sources that was freed together, and to larger ones with it."""
    interaction_sd: float | None
    """The root mean square of what sources do only together."""
    floor: float | None
    """What that would be if each fine-tuning had just a disturbance such as the nudge's of its own."""
    above_floor: float | None
    """The p-value of an F test of no more than that."""
    largest: str | None
    """The source with the largest share."""
    largest_in: float | None
    """In what share of bootstrap samples it is the largest."""
    additive: str
    """``additive``, ``not additive`` or ``cannot tell``."""


@dataclass(frozen=True)
class Amplification:
    """What becomes of one weight moved by one unit in the last place."""

    one_ulp: float
    """At most so large."""
    value_distance: float
    """The median distance of the nudged adapters from their references, at the end."""
    factor: float
    """At least so many times the disturbance has grown."""
    sd: float | None
    """The standard deviation that it gives the log perplexity."""


@dataclass(frozen=True)
class PrecisionEffect:
    """What the other optimizer's state changes in the log perplexity, over the same levels of all sources."""

    other: str
    mean: Estimate
    """The other less the arm's own: the mean, with its t interval."""
    spread: Estimate
    """The variance between replicates, relative to the arm's own; Pitman and Morgan's interval."""


@dataclass(frozen=True)
class Attribution:
    """What an experiment says."""

    problems: list[str]
    """Why it is not to be interpreted: what is not pinned that should be."""
    effects: list[Effect]
    decompositions: dict[str, Decomposition]
    """By measure; none with fewer than two sources."""
    amplification: Amplification | None
    precision: PrecisionEffect | None


def attribute(measured: Measurements) -> Attribution:
    """Takes an experiment apart."""
    return Attribution(
        problems=find_problems(measured),
        effects=[_effect(measured, name) for name in measured.conditions if name != BASELINE],
        decompositions={name: _decompose(measured, name) for name in MEASURES if len(measured.freed) > 1},
        amplification=_amplification(measured),
        precision=_precision(measured),
    )


def changes(measured: Measurements, condition: str, measure: str = MAIN) -> Values:
    """A measure in each replicate of a condition, less the baseline's of the same replicate."""
    values = _values(measured, condition, measure)
    with np.errstate(invalid="ignore"):
        found: Values = values - _values(measured, BASELINE, measure)[: len(values)]
    return found


def known_replicates(measured: Measurements, measure: str = MAIN) -> NDArray[np.bool_]:
    """Which replicates have a finite measure in the baseline and in every condition that frees sources."""
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
        changes={name: _change(changes(measured, condition, name)) for name in MEASURES},
        distance=float(np.median(apart)) if apart else None,
        first_step=step,
        first_kind=kinds.most_common(1)[0][0] if kinds else None,
    )


def _change(values: Values) -> Change:
    sizes = np.abs(values)
    return Change(half_deviation(values), float(np.median(sizes)), float(sizes.max()))


def _decompose(measured: Measurements, measure: str) -> Decomposition:
    known = known_replicates(measured, measure)
    joint = changes(measured, measured.together, measure)[known]
    single = {source: changes(measured, source, measure)[known] for source in measured.freed}
    both = {
        pair_name(pair): changes(measured, pair_name(pair), measure)[known]
        - single[pair[0]]
        - single[pair[1]]
        for pair in measured.pairs
    }
    rest = joint - np.sum([*single.values()], axis=0)
    nudged = changes(measured, NUDGE, measure)
    disturbed = nudged[np.isfinite(nudged)]
    interactions = _half(size(rest, joint))
    # The rest adds joint, takes each single one, and has the baseline (sources - 1) times; each of these
    # varies by half of a nudge's mean square.
    times = (1 + len(single) + (len(single) - 1) ** 2) / 2
    p = excess(rest, disturbed, times)
    largest, largest_in = largest_share(single, joint)
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
        largest=largest,
        largest_in=largest_in,
        additive=_verdict(interactions, p),
    )


def _half(found: Estimate) -> Estimate:
    return Estimate(*(None if each is None else each / 2 for each in (found.value, found.low, found.high)))


def _verdict(interactions: Estimate, p: float | None) -> str:
    if interactions.value is None:
        return "cannot tell"
    if interactions.value == 0:
        return "additive"
    if interactions.high is None:
        return "cannot tell"
    if interactions.high <= SMALL:
        return "additive"
    return "not additive" if p is not None and p <= SIGNIFICANT else "cannot tell"


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
    if not np.ptp(own):  # one observation, as often as there are replicates
        mean = Estimate(mean.value)
    return PrecisionEffect(measured.other, mean, variance_ratio(other, own))
