"""How much spread is left in averages of adapters, and at which perplexity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from qlora_repeat.results.arms import Arm, reference_arm
from qlora_repeat.results.statistical_methods import SpreadTest, holm
from qlora_repeat.results.study_statistics import MEASURES, compare_arm_spreads
from qlora_repeat.results.two_arms import Estimate, compare_arms, in_pairs

_PERPLEXITY = MEASURES["perplexity"]


@dataclass(frozen=True)
class Averages:
    """An arm of averages, beside the arm whose trials they average."""

    arm: Arm
    source: Arm
    is_paired: bool
    """Whether each average has the seeds of one trial."""
    spread: SpreadTest | None
    """Of their perplexities on the log scale."""
    p_holm: float | None
    """The p-value of that test, adjusted over all arms of averages."""
    shift: Estimate | None
    """The perplexity of the averages minus that of the trials."""


@dataclass(frozen=True)
class Remaining:
    """The spread that is left over all arms with averages of one kind."""

    average: str
    """As `Optimizer.average`."""
    arms: int
    """Arms in which both spreads are known."""
    smaller: int
    """Arms in which averages spread less."""
    ratio: float
    """The root mean square of the SDs of log perplexity of the averages, divided by that of the trials."""


def averages(arms: Sequence[Arm]) -> list[Averages]:
    """Return the arms of averages that have results, each beside the arm that it averages."""
    found = []
    for arm in arms:
        source = reference_arm(arm, arms) if arm.optimizer.average else None
        if source is None or not arm.perplexities or not source.perplexities:
            continue
        test, is_paired = compare_arm_spreads(arm, source, _PERPLEXITY)
        pairs = in_pairs(source.by_seed(_PERPLEXITY), arm.by_seed(_PERPLEXITY))
        shift = compare_arms(*(pairs or (source.perplexities, arm.perplexities)), paired=is_paired).shift
        found.append(Averages(arm, source, is_paired, test, None, shift))
    adjusted = holm([each.spread.p if each.spread else None for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, adjusted, strict=True)]


def remaining(found: Sequence[Averages]) -> list[Remaining]:
    """Return the spread that is left in each kind of averages, pooled over arms."""
    kinds = dict.fromkeys(each.arm.optimizer.average or "" for each in found)
    pooled = []
    for kind in kinds:
        both = [
            (_log_variance(each.arm), _log_variance(each.source))
            for each in found
            if each.arm.optimizer.average == kind
        ]
        known = [(own, other) for own, other in both if own is not None and other is not None]
        if known and any(other for _, other in known):
            ratio = math.sqrt(fmean(own for own, _ in known) / fmean(other for _, other in known))
            pooled.append(Remaining(kind, len(known), sum(own < other for own, other in known), ratio))
    return pooled


def _log_variance(arm: Arm) -> float | None:
    """Return the variance of the logarithms of perplexity; None if fewer than two are known."""
    values = arm.perplexities
    if len(values) < 2 or not all(0 < value < math.inf for value in values):
        return None
    return variance(map(math.log, values))
