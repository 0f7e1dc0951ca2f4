"""Apply the rules of claims that compare the 8-bit runs of a model with its 32-bit runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import mean, median

from qlora_repeat.analysis.claims.arm_rules import (
    RUN,
    RUN_PAPER,
    ClaimFinding,
    Value,
    answer,
    no_sample,
    response_to,
    too_few,
)
from qlora_repeat.results.arms import Arm, Measure, by_model, distinct
from qlora_repeat.results.number_format import number, rounded
from qlora_repeat.results.statistical_methods import FEWEST, LEVEL, compare_ranks, holm, rank
from qlora_repeat.results.study_statistics import compare_arm_spreads
from qlora_repeat.results.trial_result import Response, TrialResult

SLIGHTLY = 1.1
"""Our reading of *slightly more*: a factor of at most this."""
ALPHA = round(1 - LEVEL, 10)
"""A test is significant if p is at most this.

A claim on all models is supported only if each model's test is significant. Such an intersection-union test
has at most this error rate without an adjustment (Berger, Technometrics 24, 1982, 295-300). One model that
shows the opposite contradicts the claim, so for that, p is adjusted by Holm.
"""

_RUN_BOTH = "make all STUDY={file}, with both optimizers in its file"
_RUN_GPU = f"{RUN_PAPER}, on a GPU"

_Obstacle = Callable[[Arm, Sequence[Value]], ClaimFinding | None]
"""Returns an inconclusive finding if the values of an arm cannot be compared."""


@dataclass(frozen=True)
class _Pair:
    """An 8-bit arm and the 32-bit arm of the same model and optimizer, with their values of a measure."""

    name: str
    arm: Arm
    """The 8-bit arm."""
    other: Arm
    values: list[float]
    """Values that are not finite are above all others."""
    others: list[float]


def _pairs(
    arms: Sequence[Arm], measure: Measure, obstacle: _Obstacle
) -> tuple[list[_Pair], list[ClaimFinding]]:
    """Return the pairs that can be compared, and inconclusive findings for the other models."""
    pairs, found = [], []
    for own in by_model(arms).values():
        references = {arm.optimizer: arm for arm in own if arm.optimizer.bits == 32}
        eights = [arm for arm in own if arm.optimizer.bits == 8]
        if not eights:
            found.append(ClaimFinding(own[0].title, None, "no runs with an 8-bit optimizer", _RUN_BOTH))
        for arm in eights:
            if (other := references.get(arm.optimizer.in_32_bits)) is None:
                why = f"no runs with {arm.optimizer.in_32_bits.name} to compare {arm.optimizer.name} with"
                found.append(ClaimFinding(own[0].title, None, why, _RUN_BOTH))
                continue
            values, others = ([float(rank(value)) for value in each.values(measure)] for each in (arm, other))
            if (stopped := obstacle(arm, values) or obstacle(other, others)) is not None:
                found.append(stopped)
            else:
                name = arm.name if len(eights) > 1 else arm.title
                pairs.append(_Pair(name, arm, other, values, others))
    return pairs, found


def spread_wider(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that 8-bit perplexities spread more than 32-bit ones, by Table S1b's test."""
    pairs, found = _pairs(arms, lambda trial: trial.perplexity, no_sample)
    tests = [compare_arm_spreads(pair.arm, pair.other, attrgetter("perplexity"))[0] for pair in pairs]
    adjusted = holm([test.p if test else None for test in tests])
    for pair, test, p_holm in zip(pairs, tests, adjusted, strict=True):
        if test is None or (p := test.p) is None or p_holm is None:
            why = "an arm has no finite perplexity"
            found.append(ClaimFinding(pair.name, None, why, RUN))
            continue
        times = "no spread in either" if test.ratio is None else f"{rounded(test.ratio)} times as wide"
        bounds = "" if test.low is None else f" ({rounded(test.low)} to {rounded(test.high)})"
        is_wider, is_narrower = ((test.ratio or 1) > 1, test.ratio is not None and test.ratio < 1)
        words = f"{times}{bounds}, p {number(p)}"
        is_open = not (is_narrower and p_holm <= ALPHA)
        found.append(ClaimFinding(pair.name, is_wider and p <= ALPHA, words, is_open=is_open))
    return found


def median_above(
    arms: Sequence[Arm], *, measure: str, more_bits: bool = False, slightly: bool = False, timed: bool = False
) -> list[ClaimFinding]:
    """Check for each model that a measure is higher in 8-bit runs or, with `more_bits`, in 32-bit runs.

    Args:
        measure: a field of `TrialResult`.
        slightly: whether the medians may differ, over all models, by a factor of at most `SLIGHTLY`.
        timed: whether the measure differs even between runs that share all seeds.
    """
    obstacle = too_few if timed else no_sample
    return _above(arms, attrgetter(measure), obstacle, more_bits=more_bits, slightly=slightly)


def more_letters(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that 32-bit runs answer more instructions of Tables 8 and 9 with a letter."""

    def letters(trial: TrialResult) -> float | None:
        answers = _answers(trial)
        return float(sum(response.answer is not None for response in answers)) if answers else None

    def equal_answers(arm: Arm, counts: Sequence[Value]) -> ClaimFinding | None:
        # Compare answers, because runs with equal counts may still differ.
        return no_sample(arm, ["\n".join(map(answer, own)) for own in map(_answers, arm.done) if own])

    return _above(arms, letters, equal_answers, more_bits=True)


def _answers(trial: TrialResult) -> list[Response]:
    prompts = distinct(response.prompt for response in trial.responses)
    return [each for prompt in prompts if (each := response_to(trial, prompt, low=False)) is not None]


def _above(
    arms: Sequence[Arm], measure: Measure, obstacle: _Obstacle, *, more_bits: bool, slightly: bool = False
) -> list[ClaimFinding]:
    """Check the median and the rank-sum test for each model, as `median_above`."""
    pairs, found = _pairs(arms, measure, obstacle)
    ps = [compare_ranks(pair.values, pair.others) for pair in pairs]
    total = [0.0, 0.0]
    for pair, p, adjusted in zip(pairs, ps, holm(ps), strict=True):
        medians = median(pair.values), median(pair.others)
        lower, higher = medians if more_bits else reversed(medians)
        total = [total[0] + lower, total[1] + higher]
        words = f"median {number(medians[0])} with 8 bits, {number(medians[1])} with 32, p {number(p)}"
        is_found, is_opposite = (each is not None and each <= ALPHA for each in (p, adjusted))
        is_open = not (is_opposite and higher < lower)
        found.append(ClaimFinding(pair.name, higher > lower and is_found, words, is_open=is_open))
    if slightly and pairs:
        factor = total[1] / total[0] if total[0] else math.inf
        words = f"{rounded(factor)} times as much, summed over the models"
        found.append(ClaimFinding("all models together", factor <= SLIGHTLY, words))
    return found


def memory_higher(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that 32-bit runs use a slightly higher mean share of the GPU's memory."""
    pairs, found = _pairs(arms, lambda trial: trial.peak_memory_share, _no_gpu)
    for pair in pairs:
        less, more = mean(pair.values), mean(pair.others)
        words = f"{100 * less:.2f} % with 8 bits, {100 * more:.2f} % with 32"
        found.append(ClaimFinding(pair.name, less < more <= SLIGHTLY * less, words))
    return found


def _no_gpu(arm: Arm, shares: Sequence[Value]) -> ClaimFinding | None:
    """Return an inconclusive finding if too few runs have a value of GPU memory."""
    few = too_few(arm, shares)
    if few is not None and len(arm.values(lambda trial: trial.peak_memory_bytes)) >= FEWEST:
        return ClaimFinding(few.of, None, "no GPU, whose memory the claim is about", _RUN_GPU)
    return few
