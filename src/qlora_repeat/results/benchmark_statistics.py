"""Statistics of an arm's benchmarks: scores, their spread between trials, and how often examples agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_repeat.results.arms import Arm
from qlora_repeat.results.number_format import computable, deviation, mean
from qlora_repeat.results.seeds_and_examples import agreement, decomposed
from qlora_repeat.results.trial_result import Benchmark


@dataclass(frozen=True)
class BenchmarkStatistics:
    """The statistics of one arm in one metric of one task; None where there is nothing to compute."""

    task: str
    metric: str
    trials: int
    examples: int | None
    """None if the score is not a mean of outcomes of examples, or the examples differ between trials."""
    mean: float | None
    sd: float | None
    """Sample standard deviation of the scores between trials."""
    standard_error: float | None
    """Of one trial's score, because another test set would have other examples; mean over the trials."""
    agreement: float | None
    """The share of examples with the same outcome in two trials; mean over all pairs of trials."""
    seeds: float | None
    """The share of the variance of the mean score that is due to seeds, not to the examples."""
    other_examples: bool
    """Whether trials were asked different examples."""


def benchmark_statistics(arm: Arm) -> list[BenchmarkStatistics]:
    """Return the statistics for each task and metric, in the order in which trials have them."""
    found: dict[tuple[str, str], list[Benchmark]] = {}
    for trial in arm.done:
        for each in trial.benchmarks:
            found.setdefault((each.task, each.metric), []).append(each)
    return [_statistics(task, metric, own) for (task, metric), own in found.items()]


def _statistics(task: str, metric: str, own: Sequence[Benchmark]) -> BenchmarkStatistics:
    scores = [computable(each.score) for each in own]
    outcomes = [list(map(computable, each.outcomes)) for each in own]
    same = len({(each.examples, len(each.outcomes)) for each in own}) == 1
    errors = [error for each in outcomes if (error := _standard_error(each)) is not None]
    return BenchmarkStatistics(
        task=task,
        metric=metric,
        trials=len(own),
        examples=len(outcomes[0]) or None if same else None,
        mean=mean(scores),
        sd=deviation(scores),
        standard_error=mean(errors),
        agreement=agreement(outcomes) if same else None,
        seeds=found.share_of_seeds if (found := decomposed(outcomes) if same else None) else None,
        other_examples=len({each.examples for each in own}) > 1,
    )


def _standard_error(outcomes: Sequence[float]) -> float | None:
    """Return the standard error of the mean of outcomes: sample standard deviation / sqrt(examples)."""
    sd = deviation(outcomes)
    return None if sd is None else sd / math.sqrt(len(outcomes))
