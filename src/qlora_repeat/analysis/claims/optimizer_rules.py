"""What each model of collected results says of a claim that sets its 8-bit runs beside its 32-bit runs."""

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
"""What is slightly more is at most so many times as much: our reading."""
ALPHA = round(1 - LEVEL, 10)
"""A test finds a difference if p, after Holm, is at most this."""

_RUN_BOTH = "make all STUDY={file}, with both optimizers in its file"
_RUN_GPU = f"{RUN_PAPER}, on a GPU"

_Hindrance = Callable[[Arm, Sequence[Value]], ClaimFinding | None]


@dataclass(frozen=True)
class _OptimizerPair:
    """An 8-bit arm beside the 32-bit arm of its model."""

    name: str
    less: Arm
    more: Arm

    def values(self, measure: Measure) -> tuple[list[float], list[float]]:
        """Those of either arm; what is not finite is above all others."""
        less, more = ([rank(value) for value in arm.values(measure)] for arm in (self.less, self.more))
        return less, more


def _pairs(
    arms: Sequence[Arm], measure: Measure, hindrance: _Hindrance
) -> tuple[list[_OptimizerPair], list[ClaimFinding]]:
    """The pairs that can be compared, and of the other models why they can not."""
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
    """For each model: its 8-bit perplexities spread more widely than its 32-bit ones, by Table S1b's test."""
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
    """For each model: a measure is higher in 8-bit runs, or with `more_bits` in 32-bit ones.

    `measure` is a field of `TrialResult`; `slightly` bounds by how much. What is `timed` differs between runs
    that share all seeds, too.
    """
    hindrance = too_few if timed else no_sample
    return _above(arms, attrgetter(measure), hindrance, more_bits=more_bits, slightly=slightly)


def more_letters(arms: Sequence[Arm]) -> list[ClaimFinding]:
    """For each model that answers questions: its 32-bit runs give a letter for more of the instructions."""

    def unlike(arm: Arm, counts: Sequence[Value]) -> ClaimFinding | None:
        # Runs that answer as many instructions are not alike for that.
        return no_sample(arm, ["\n".join(map(answer, own)) for own in map(_answers, arm.done) if own])

    return _above(answering(arms), _letters, unlike, more_bits=True)


def _answers(trial: TrialResult) -> list[Response]:
    """A run's answer to each instruction, of those that Tables 8 and 9 show."""
    prompts = distinct(response.prompt for response in trial.responses)
    return [response for prompt in prompts if (response := said(trial, prompt, low=False)) is not None]


def _letters(trial: TrialResult) -> float | None:
    """How many instructions a run answers with a letter."""
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
    """For each model: the higher values are those of 8-bit runs, or with `more_bits` of 32-bit runs.

    By the rank-sum test; and their median is higher, by no more than `SLIGHTLY` if that is asked.
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
    """For each model: the mean share of the GPU's memory is slightly higher in 32-bit runs."""
    pairs, found = _pairs(arms, lambda trial: trial.peak_memory_share, _off_gpu)
    for pair in pairs:
        less_bits, more_bits = map(mean, pair.values(lambda trial: trial.peak_memory_share))
        holds = less_bits < more_bits <= SLIGHTLY * less_bits
        words = f"{100 * less_bits:.2f} % with 8 bits, {100 * more_bits:.2f} % with 32"
        found.append(ClaimFinding(pair.name, holds, words))
    return found


def _off_gpu(arm: Arm, shares: Sequence[Value]) -> ClaimFinding | None:
    """That an arm's memory was not that of a GPU, or too seldom."""
    few = too_few(arm, shares)
    if few is not None and len(arm.values(lambda trial: trial.peak_memory_bytes)) >= FEWEST:
        return ClaimFinding(few.of, None, "no GPU, whose memory the claim is about", _RUN_GPU)
    return few


OPTIMIZER_RULES: tuple[ClaimRule, ...] = (spread_wider, median_above, more_letters, memory_higher)
"""The rules that claims name."""
