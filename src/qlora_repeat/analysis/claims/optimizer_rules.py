"""Apply the rules of claims that compare the 8-bit runs of a model with its 32-bit runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import mean, median

from qlora_repeat.analysis.claims.arm_rules import (
    RUN,
    RUN_PAPER,
    ClaimFinding,
    ClaimRule,
    Value,
    answer,
    answering,
    is_8_bit,
    no_sample,
    said,
    too_few,
)
from qlora_repeat.results.arms import Arm, Measure, by_model, distinct
from qlora_repeat.results.number_format import number, rounded
from qlora_repeat.results.statistical_methods import FEWEST, LEVEL, compare_ranks, holm, rank
from qlora_repeat.results.study_statistics import compare_with_32_bit
from qlora_repeat.results.trial_result import Response, TrialResult

SLIGHTLY = 1.1
"""Our reading of *slightly more*: a factor of at most this."""
ALPHA = round(1 - LEVEL, 10)
"""A test is significant if p, after Holm, is at most this."""

_RUN_BOTH = "make all STUDY={file}, with both optimizers in its file"
_RUN_GPU = f"{RUN_PAPER}, on a GPU"

_Hindrance = Callable[[Arm, Sequence[Value]], ClaimFinding | None]


@dataclass(frozen=True)
class _OptimizerPair:
    """An 8-bit arm and the 32-bit arm of the same model."""

    name: str
    less: Arm
    more: Arm

    def values(self, measure: Measure) -> tuple[list[float], list[float]]:
        """Return the values of both arms; those that are not finite are above all others."""
        less, more = ([rank(value) for value in arm.values(measure)] for arm in (self.less, self.more))
        return less, more


def _pairs(
    arms: Sequence[Arm], measure: Measure, hindrance: _Hindrance
) -> tuple[list[_OptimizerPair], list[ClaimFinding]]:
    """Return the pairs that can be compared, and inconclusive findings for the other models."""
    pairs, found = [], []
    for own in by_model(arms).values():
        less = [arm for arm in own if is_8_bit(arm)]
        more = next((arm for arm in own if not is_8_bit(arm)), None)
        if not less or more is None:
            found.append(ClaimFinding(own[0].title, None, "runs with one of the optimizers only", _RUN_BOTH))
            continue
        for arm in less:
            pair = _OptimizerPair(arm.name if len(less) > 1 else arm.title, arm, more)
            values, others = pair.values(measure)
            hindered = hindrance(arm, values) or hindrance(more, others)
            if hindered:
                found.append(hindered)
            else:
                pairs.append(pair)
    return pairs, found


def spread_wider(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that 8-bit perplexities spread more than 32-bit ones, by Table S1b's test."""
    pairs, found = _pairs(arms, lambda trial: trial.perplexity, no_sample)
    tests = {(each.model, each.optimizer): each for each in compare_with_32_bit(arms, "perplexity")}
    for pair in pairs:
        each = tests.get(pair.less.key)
        if each is None or each.p_holm is None:
            why = f"fewer than {FEWEST} finite perplexities in an arm"
            found.append(ClaimFinding(pair.name, None, why, RUN))
            continue
        test = each.test
        times = "no spread in either" if test.ratio is None else f"{rounded(test.ratio)} times as wide"
        bounds = "" if test.low is None else f" ({rounded(test.low)} to {rounded(test.high)})"
        holds = test.ratio is not None and test.ratio > 1 and each.p_holm <= ALPHA
        found.append(ClaimFinding(pair.name, holds, f"{times}{bounds}, p {number(each.p_holm)}"))
    return found


def median_above(
    arms: Sequence[Arm], measure: str, *, more_bits: bool = False, slightly: bool = False, timed: bool = False
) -> list[ClaimFinding]:
    """Check for each model that a measure is higher in 8-bit runs or, with `more_bits`, in 32-bit runs.

    Args:
        measure: a field of `TrialResult`.
        slightly: whether the medians may differ by a factor of at most `SLIGHTLY`.
        timed: whether the measure differs even between runs that share all seeds.
    """
    hindrance = too_few if timed else no_sample
    return _above(arms, attrgetter(measure), hindrance, more_bits=more_bits, slightly=slightly)


def more_letters(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each question-answering model that 32-bit runs answer more instructions with a letter."""

    def unlike(arm: Arm, counts: Sequence[Value]) -> ClaimFinding | None:
        # Compare answers, because runs with equal counts may still differ.
        return no_sample(arm, ["\n".join(map(answer, own)) for own in map(_answers, arm.done) if own])

    return _above(answering(arms), _letters, unlike, more_bits=True)


def _answers(trial: TrialResult) -> list[Response]:
    """Return a run's answers to the instructions of Tables 8 and 9."""
    prompts = distinct(response.prompt for response in trial.responses)
    return [response for prompt in prompts if (response := said(trial, prompt, low=False)) is not None]


def _letters(trial: TrialResult) -> float | None:
    """Return the number of instructions that a run answers with a letter."""
    answers = _answers(trial)
    return float(sum(response.answer is not None for response in answers)) if answers else None


def _above(
    arms: Sequence[Arm],
    measure: Measure,
    hindrance: _Hindrance,
    *,
    more_bits: bool = False,
    slightly: bool = False,
) -> list[ClaimFinding]:
    """Check for each model that 8-bit runs, or with `more_bits` 32-bit runs, have higher values.

    The rank-sum test must be significant and the median higher, with `slightly` by at most `SLIGHTLY`.
    """
    pairs, found = _pairs(arms, measure, hindrance)
    values = [pair.values(measure) for pair in pairs]
    ps = holm([p for own, others in values if (p := compare_ranks(own, others)) is not None])
    for pair, own, p in zip(pairs, values, ps, strict=True):
        medians = [median(values) for values in own]
        lower, higher = medians if more_bits else reversed(medians)
        holds = p <= ALPHA and higher > lower and not (slightly and higher > SLIGHTLY * lower)
        words = f"median {number(medians[0])} with 8 bits, {number(medians[1])} with 32, p {number(p)}"
        found.append(ClaimFinding(pair.name, holds, words))
    return found


def memory_higher(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """Check for each model that 32-bit runs use a slightly higher mean share of the GPU's memory."""
    pairs, found = _pairs(arms, lambda trial: trial.peak_memory_share, _off_gpu)
    for pair in pairs:
        less_bits, more_bits = map(mean, pair.values(lambda trial: trial.peak_memory_share))
        holds = less_bits < more_bits <= SLIGHTLY * less_bits
        words = f"{100 * less_bits:.2f} % with 8 bits, {100 * more_bits:.2f} % with 32"
        found.append(ClaimFinding(pair.name, holds, words))
    return found


def _off_gpu(arm: Arm, shares: Sequence[Value]) -> ClaimFinding | None:
    """Return an inconclusive finding if too few runs have a value of GPU memory."""
    few = too_few(arm, shares)
    if few is not None and len(arm.values(lambda trial: trial.peak_memory_bytes)) >= FEWEST:
        return ClaimFinding(few.of, None, "no GPU, whose memory the claim is about", _RUN_GPU)
    return few


OPTIMIZER_RULES: tuple[ClaimRule, ...] = (spread_wider, median_above, more_letters, memory_higher)
"""The rules that claims name."""
