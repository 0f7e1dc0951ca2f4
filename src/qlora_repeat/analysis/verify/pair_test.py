"""Whether the perplexities of a recorded trial and its re-run differ by more than trials of an arm do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, variance

from qlora_repeat.results.statistical_methods import FEWEST

ERROR_RATE = 0.05
"""The probability of any false *different* if all trials of a study are run again (normal logarithms)."""
POWER = 0.8
_LIMIT = 2.8
"""Of the difference of two single outcomes in SDs: 1.96 times the root of 2, rounded as in the standard."""
LARGEST_SHIFT = 0.25
"""The largest `PairTest.found_shift` with which agreement still says something."""


@dataclass(frozen=True)
class PairTest:
    """A test of the pair, with the spread of the arm's other trials."""

    interval: tuple[float, float]
    """The perplexities of a re-run that do not contradict the recorded one; at least 1, as all are.

    With several re-runs, of their geometric mean.
    """
    found_shift: float
    """The smallest relative shift of the perplexity that the test finds with a probability of 80 %."""
    level: float
    """The probability of the interval, for normal logarithms."""
    source: str
    """What gives the spread, in words."""
    is_given: bool = False
    """Whether the spread was given, and not measured on this arm."""

    def contains(self, perplexity: float) -> bool:
        return self.interval[0] <= perplexity <= self.interval[1]


def make_pair_test(
    recorded: float,
    others: Sequence[float],
    trials: int,
    *,
    earlier: Sequence[float] = (),
    looks: int = 1,
    reproducibility: float | None = None,
) -> PairTest | None:
    """Return a test of a re-run of a trial with this perplexity.

    The difference of two logarithms from one arm has twice the variance of the arm, whether the re-run has
    other seeds or only another machine: noise that has grown as far as it can gives another trial of the arm,
    so this includes the variance between machines. So an outlier that repeats agrees with itself. The
    variance comes from the other trials, by Student's t. With several re-runs, their geometric mean is
    tested, and they add to what is known of the variance.

    Args:
        recorded: the perplexity of the recorded trial.
        others: perplexities of the other recorded trials of its arm; those that are not finite are left out.
        trials: the number of trials of the study, among which `ERROR_RATE` is divided (Bonferroni).
        earlier: perplexities of earlier re-runs of the trial, each with new seeds.
        looks: how often at most the test is made as re-runs are added; they divide the error rate too.
        reproducibility: the known SD of single trials in different laboratories, s_R of ISO 5725-2, in
            perplexity; the limit is then 2.8 s_R (ISO 5725-6, 4.1.4), and the other trials do not count.

    Returns:
        None if fewer than `FEWEST` others are finite, or if they do not vary.
    """
    if reproducibility is not None:
        limit = _LIMIT * reproducibility
        shift = (limit + NormalDist().inv_cdf(POWER) * math.sqrt(2) * reproducibility) / recorded
        source = f"the reproducibility limit of ISO 5725-6, 2.8 s_R with s_R = {reproducibility:g}"
        return PairTest((max(1.0, recorded - limit), recorded + limit), shift, 0.95, source, is_given=True)
    groups = [[math.log(value) for value in values if 0 < value < math.inf] for values in (others, earlier)]
    if len(groups[0]) < FEWEST:
        return None
    squares = sum((len(logs) - 1) * variance(logs) for logs in groups if len(logs) > 1)
    freedom = sum(max(len(logs) - 1, 0) for logs in groups)
    if squares == 0:
        return None
    from scipy.special import nctdtrinc, stdtrit

    level = 1 - ERROR_RATE / (max(trials, 1) * looks)
    scale = math.sqrt(squares / freedom * (1 + 1 / (len(groups[1]) + 1)))
    limit = float(stdtrit(freedom, (1 + level) / 2))
    low, high = (_exp(math.log(recorded) + sign * limit * scale) for sign in (-1, 1))
    shift = float(nctdtrinc(freedom, 1 - POWER, limit)) * scale
    source = f"{len(groups[0])} other trials of the arm"
    return PairTest((max(1.0, low), high), _exp(shift) - 1, level, source)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
