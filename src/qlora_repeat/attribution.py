"""Which source explains how much of the spread, from what an experiment measured. Pure: no files, no torch.

With j the outcome of the joint condition and e(s) what source s alone does to the baseline f0, replicate by
replicate and with the same levels, there is always j = f0 + e(adapter_init) + e(data_order) + ... + rest.
What sources do only together is in the rest (with pairs freed, it is split further in the same way). So

    Var(j) = Cov(j, e(adapter_init)) + Cov(j, e(data_order)) + ... + Cov(j, rest)

and a part's share of the joint variance, Cov(j, part) / Var(j), is the slope of a straight-line fit of that
part on j, with its t interval. In expectation it is the first-order index of a sensitivity analysis (Sobol),
by the method known as pick-freeze.

Var(e(s)) / Var(j), the variance alone, is in expectation the total index, which counts each interaction to
all of its sources; its interval is that of Pitman and Morgan, for paired values.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qlora_repeat.divergence import MEANINGS, Kind
from qlora_repeat.outcomes import (
    BASELINE,
    JOINT,
    JOINT_OTHER,
    NUDGE,
    OTHER,
    Measured,
    Outcome,
    pair_name,
)
from qlora_repeat.paired import (
    Estimate,
    Values,
    deviation,
    excess,
    largest_share,
    mean_difference,
    share,
    sum_of_variances,
    variance_ratio,
)
from qlora_repeat.statistics import deviation_interval

SMALL = 0.2
"""Interactions that are certain to have less than this share of the joint variance count as none."""

MEASURES: dict[str, Callable[[Outcome], float]] = {
    "log perplexity": lambda outcome: outcome.log_perplexity,
    "late loss": lambda outcome: outcome.late_loss,
    "final loss": lambda outcome: outcome.final_loss,
}
MAIN = "log perplexity"
REST = "interactions"

_EXPECTED: dict[str, set[Kind]] = {
    "adapter_init": {"init"},
    "data_order": {"data"},
    "split": {"data", "loss"},  # rows of the same length may come first
    "dropout": {"loss", "gradient"},  # as B begins at zero, it first shows in the gradient
    "kernels": {"loss", "gradient", "update"},
    NUDGE: {"init"},
    OTHER: {"update", "loss", "gradient"},  # later ones where the adapter has no digest after each step
}
"""What may differ first between a trial and its reference, by what is freed or changed between them."""


@dataclass(frozen=True)
class Spread:
    """The values of a measure in a condition."""

    sd: float | None
    """The sample standard deviation (n - 1); not finite where a value is not."""
    sd_low: float | None
    sd_high: float | None
    """Its interval, by `statistics.deviation_interval`; None of fewer than five trials."""
    shift: float | None
    """The mean difference from the baseline."""
    largest: float | None
    """The largest absolute difference from the baseline."""


@dataclass(frozen=True)
class Effect:
    """What a condition does."""

    condition: str
    trials: int
    distinct: int
    """Different adapters among them."""
    diverged: int
    """Trials with a loss that was not finite."""
    spreads: dict[str, Spread]
    """By measure."""
    apart: float | None
    """The median distance between replicates, two by two, in what the adapters add to the weights."""
    first_step: int | None
    """The first step at which any trial differs from its reference; None where none does."""
    first_kind: Kind | None
    """In what most of those differ that do so at that step."""


@dataclass(frozen=True)
class Decomposition:
    """The variance of a measure in the joint condition, by source."""

    shares: dict[str, Estimate]
    """Of each source, each pair and the `REST`, by the covariance with the joint outcome; they sum to 1."""
    interactions: Estimate
    """The share of all that is not a single source's: pairs and rest."""
    alone: dict[str, Estimate]
    """The variance with one source freed alone, relative to the joint one."""
    sum_alone: Estimate
    """Their sum; its interval is a percentile bootstrap over replicates. 1 if the sources are additive, more
    with interactions, which are counted repeatedly."""
    predicted: Estimate
    """The variance of the sums of single effects, replicate by replicate, relative to the joint one."""
    interaction_sd: float | None
    """The standard deviation of the joint outcome from the sum of single effects."""
    floor: float | None
    """What that would be if each trial had no more than a disturbance such as the nudge's of its own."""
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
    """The median distance of the nudged adapters from the baseline's, at the end."""
    factor: float
    """At least so many times the disturbance has grown."""
    sd: float | None
    """Of the log perplexity."""
    of_joint: float | None
    """The same, relative to that of the joint condition."""


@dataclass(frozen=True)
class Precision:
    """What the other optimizer's state changes in the log perplexity."""

    other: str
    pinned: float | None
    """With all sources pinned: the other less the arm's own."""
    paired: Estimate
    """The same with all sources freed: the mean over replicates of the same seeds, with its t interval."""
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
    precision: Precision | None

    @property
    def interpretable(self) -> bool:
        """Whether what was to be pinned was."""
        return not self.problems


def attribute(measured: Measured) -> Attribution:
    """Takes an experiment apart."""
    return Attribution(
        problems=find_problems(measured),
        effects=[_effect(measured, name) for name in measured.conditions],
        decompositions={
            name: _decompose(measured, name) for name in MEASURES if JOINT in measured.conditions
        },
        amplification=_amplification(measured),
        precision=_precision(measured),
    )


def find_problems(measured: Measured) -> list[str]:
    """What differs that should not: trials of the baseline, seeds, or what a trial first differs in."""
    first, *others = measured.of(BASELINE)
    problems = []
    for other in others:
        if other.first_kind is not None:
            problems.append(
                f"Trials 1 and {other.replicate} of the baseline, where everything is pinned, differ: first "
                f"at step {other.first_step}, in {other.first_kind}. {MEANINGS[other.first_kind]}"
            )
        elif (other.adapter_digest, other.perplexity) != (first.adapter_digest, first.perplexity):
            what = "adapters" if other.adapter_digest != first.adapter_digest else "perplexities"
            problems.append(
                f"Trials 1 and {other.replicate} of the baseline have other {what} after one trace."
            )
    for outcome in measured.outcomes:
        name, freed = f"{outcome.condition} {outcome.replicate}", _freed(measured, outcome.condition)
        problems += [
            f"{name} has another seed of {source} than the baseline, where it should be pinned."
            for source in ("split", "adapter_init", "data_order", "dropout")
            if source not in freed and outcome.seeds.get(source) != first.seeds.get(source)
        ]
        changed = [OTHER] if outcome.condition in (OTHER, JOINT_OTHER) else freed
        expected = {kind for source in changed for kind in _EXPECTED[source]}
        if outcome.condition != BASELINE and outcome.first_kind not in {None, *expected}:
            problems.append(
                f"{name} first differs in {outcome.first_kind}, at step {outcome.first_step}, where only "
                f"{', '.join(changed)} differs, which shows first in {' or '.join(sorted(expected))}: "
                "something else is not pinned."
            )
    for what in ("device", "software"):
        if len(found := {getattr(outcome, what) for outcome in measured.outcomes}) > 1:
            problems.append(f"Trials ran on {len(found)} kinds of {what}: {'; '.join(sorted(found))}.")
    return problems


def _freed(measured: Measured, condition: str) -> list[str]:
    """What is freed or changed in a condition."""
    if condition in (JOINT, JOINT_OTHER):
        return measured.freed
    for pair in measured.pairs:
        if condition == pair_name(pair):
            return pair
    return [] if condition in (BASELINE, OTHER) else [condition]


def _effect(measured: Measured, condition: str) -> Effect:
    outcomes = measured.of(condition)
    parted = [outcome for outcome in outcomes if outcome.first_step is not None]
    step = min((outcome.first_step for outcome in parted if outcome.first_step is not None), default=None)
    kinds = Counter(outcome.first_kind for outcome in parted if outcome.first_step == step)
    apart = [distance for distance in measured.apart.get(condition, []) if distance is not None]
    return Effect(
        condition=condition,
        trials=len(outcomes),
        distinct=len({outcome.adapter_digest for outcome in outcomes}),
        diverged=sum(outcome.diverged_at is not None for outcome in outcomes),
        spreads={name: _spread(measured, condition, name) for name in MEASURES},
        apart=float(np.median(apart)) if apart else None,
        first_step=step,
        first_kind=kinds.most_common(1)[0][0] if kinds else None,
    )


def differences(measured: Measured, condition: str, measure: str = MAIN) -> Values:
    """A measure in each replicate of a condition, less the baseline's mean."""
    with np.errstate(invalid="ignore"):
        found: Values = _values(measured, condition, measure) - _values(measured, BASELINE, measure).mean()
    return found


def _values(measured: Measured, condition: str, measure: str) -> Values:
    return np.array([MEASURES[measure](outcome) for outcome in measured.of(condition)], dtype=np.float64)


def _spread(measured: Measured, condition: str, measure: str) -> Spread:
    values = differences(measured, condition, measure)
    interval = deviation_interval(values.tolist()) if np.isfinite(values).all() else None
    low, high = interval or (None, None)
    with np.errstate(invalid="ignore"):
        return Spread(
            sd=deviation(values),
            sd_low=low,
            sd_high=high,
            shift=float(values.mean()),
            largest=float(np.abs(values).max()),
        )


def _decompose(measured: Measured, measure: str) -> Decomposition:
    joint = differences(measured, JOINT, measure)
    single = {source: differences(measured, source, measure) for source in measured.freed}
    both = {
        pair_name(pair): differences(measured, pair_name(pair), measure) - single[pair[0]] - single[pair[1]]
        for pair in measured.pairs
    }
    with np.errstate(invalid="ignore"):
        predicted = np.sum([*single.values()], axis=0)
        together = joint - predicted
        rest = together - np.sum([np.zeros(len(joint)), *both.values()], axis=0)
    nudged, trials = _values(measured, NUDGE, measure), 1 + len(single)
    noise = deviation(nudged)
    interactions = share(together, joint)
    largest, largest_in = largest_share(single, joint)
    return Decomposition(
        shares={name: share(part, joint) for name, part in {**single, **both, REST: rest}.items()},
        interactions=interactions,
        alone={name: variance_ratio(part, joint) for name, part in single.items()},
        sum_alone=sum_of_variances([*single.values()], joint),
        predicted=variance_ratio(predicted, joint),
        interaction_sd=deviation(together),
        floor=None if noise is None else math.sqrt(trials) * noise,
        above_floor=excess(together, nudged, trials),
        largest=largest,
        largest_in=largest_in,
        additive=_verdict(interactions),
    )


def _verdict(interactions: Estimate) -> str:
    low, high = interactions.low, interactions.high
    if low is None or high is None:
        return "cannot tell"
    if max(-low, high) <= SMALL:
        return "additive"
    return "not additive" if low > 0 or high < 0 else "cannot tell"


def _amplification(measured: Measured) -> Amplification | None:
    if not (nudged := measured.of(NUDGE)):
        return None
    distance = float(np.median([outcome.value_distance for outcome in nudged]))
    sd = _spread(measured, NUDGE, MAIN).sd
    joint = _spread(measured, _together(measured), MAIN).sd if measured.freed else None
    return Amplification(
        one_ulp=measured.one_ulp,
        value_distance=distance,
        factor=distance / measured.one_ulp,
        sd=sd,
        of_joint=sd / joint if sd is not None and joint else None,
    )


def _precision(measured: Measured) -> Precision | None:
    if not measured.of(OTHER):
        return None
    paired, spread = Estimate(None), Estimate(None)
    if measured.of(JOINT_OTHER):
        other, own = (differences(measured, name) for name in (JOINT_OTHER, _together(measured)))
        spread = variance_ratio(other, own)
        with np.errstate(invalid="ignore"):
            paired = mean_difference(other - own)
    return Precision(measured.other, _spread(measured, OTHER, MAIN).shift, paired, spread)


def _together(measured: Measured) -> str:
    """The condition in which all sources are freed."""
    return JOINT if JOINT in measured.conditions else measured.freed[0]
