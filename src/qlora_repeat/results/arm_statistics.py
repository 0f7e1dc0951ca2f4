"""The statistics of each arm of collected results, and of 8-bit arms beside the 32-bit arm of their model."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.results.statistics import (
    LEVEL,
    Share,
    SpreadTest,
    Summary,
    compare_spreads,
    holm,
    share,
    summarize,
)
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.system.files import json_text, strict, write_text

MEASURES: dict[str, Callable[[TrialResult], float | None]] = {
    "perplexity": lambda trial: trial.perplexity,
    "final_loss": lambda trial: trial.final_loss,
    "train_seconds": lambda trial: trial.train_seconds,
    "test_seconds": lambda trial: trial.test_seconds,
}
"""What spreads over the trials of an arm, by the name of its field."""
METHODS = {
    "sd": "sample standard deviation (n - 1)",
    "sd_low, sd_high": "Bonett 2006",
    "mad": "median absolute deviation from the median, not scaled",
    "not_finite": "left out of mean, sd, cv and comparisons; above all others in median, mad, low, high",
    "low, high of shares": "Wilson",
    "spread": "mean distance of the natural logarithms from their median, without the smallest",
    "p": "permutation of these distances, two-sided",
    "low, high of ratios": "the ratios that this test does not reject; not adjusted for several models",
    "p_holm": "Holm, over the comparisons of a measure",
}


@dataclass(frozen=True)
class ArmStatistics:
    """What the trials of one arm say together; only those whose values count."""

    model: str
    optimizer: str
    trials: int
    """Whose values count."""
    diverged: Share | None
    """Those with a loss or a perplexity that is not finite."""
    worse_than_base: Share | None
    """Those with a perplexity above their model's before fine-tuning, of those that have both."""
    measures: dict[str, Summary]


@dataclass(frozen=True)
class Comparison:
    """The spread of an 8-bit arm beside that of the 32-bit arm of its model, in one measure."""

    model: str
    optimizer: str
    reference: str
    """The optimizer of the other arm."""
    measure: str
    test: SpreadTest
    p_holm: float | None
    """The p-value, adjusted over the comparisons of the measure."""


@dataclass(frozen=True)
class StudyStatistics:
    """The statistics of a study's results."""

    arms: list[ArmStatistics]
    comparisons: list[Comparison]


def study_statistics(results: Sequence[TrialResult]) -> StudyStatistics:
    """The statistics of each arm and of each pair of arms, in the results' order."""
    return StudyStatistics(
        arms=arm_statistics(results),
        comparisons=[comparison for name in MEASURES for comparison in comparisons(results, name)],
    )


def arm_statistics(results: Sequence[TrialResult]) -> list[ArmStatistics]:
    """The statistics of each arm, in the results' order. A measure that no trial has is left out."""
    arms = _by_arm(results)
    measured = {
        name: {arm: _values(own, measure) for arm, own in arms.items()} for name, measure in MEASURES.items()
    }
    measured = {name: found for name, found in measured.items() if any(found.values())}
    return [
        ArmStatistics(
            model=model,
            optimizer=optimizer,
            trials=len(own),
            diverged=share(sum(map(_has_diverged, own)), len(own)),
            worse_than_base=worse_than_base(own),
            measures={name: summarize(found[model, optimizer]) for name, found in measured.items()},
        )
        for (model, optimizer), own in arms.items()
    ]


def _by_arm(results: Sequence[TrialResult]) -> dict[tuple[str, str], list[TrialResult]]:
    """The trials of each arm whose values count."""
    arms: dict[tuple[str, str], list[TrialResult]] = {}
    for row in results:
        arms.setdefault((row.model, row.optimizer), []).extend([row] if row.measured else [])
    return arms


def write_statistics(results: Sequence[TrialResult], path: Path) -> None:
    """Writes a file of statistics."""
    write_text(path, statistics_text(results))


def statistics_text(results: Sequence[TrialResult]) -> str:
    """The statistics as JSON, in which a number that is not finite is text (`files.strict`)."""
    found = study_statistics(results)
    return json_text(strict({"level": LEVEL, "methods": METHODS} | dataclasses.asdict(found)))


def reference_of(optimizer: str) -> str:
    """The optimizer that an 8-bit one, of whatever state map, is compared with; itself for any other."""
    return optimizer.partition("+")[0].replace("8bit", "32bit")


def _values(trials: list[TrialResult], measure: Callable[[TrialResult], float | None]) -> list[float]:
    return [value for value in map(measure, trials) if value is not None]


def _has_diverged(trial: TrialResult) -> bool:
    measured = (trial.perplexity, trial.final_loss)
    return trial.diverged_at is not None or any(
        value is not None and not math.isfinite(value) for value in measured
    )


def worse_than_base(trials: Sequence[TrialResult]) -> Share | None:
    """How many trials have a perplexity above their model's before fine-tuning, of those that have both."""
    # Written so that a perplexity of NaN is worse, too.
    worse = [
        not trial.perplexity <= trial.base_perplexity
        for trial in trials
        if trial.perplexity is not None and trial.base_perplexity is not None
    ]
    return share(sum(worse), len(worse))


def comparisons(results: Sequence[TrialResult], measure: str) -> list[Comparison]:
    """Each 8-bit arm beside the 32-bit arm of its model in one measure, where both have two finite values."""
    values = {arm: _values(own, MEASURES[measure]) for arm, own in _by_arm(results).items()}
    found = []
    for (model, optimizer), own in values.items():
        reference = reference_of(optimizer)
        if reference != optimizer and (model, reference) in values:
            test = compare_spreads(own, values[model, reference])
            if test is not None:
                found.append(Comparison(model, optimizer, reference, measure, test, None))
    tested = [(comparison, p) for comparison in found if (p := comparison.test.p) is not None]
    adjusted = {
        (comparison.model, comparison.optimizer): p
        for (comparison, _), p in zip(tested, holm([p for _, p in tested]), strict=True)
    }
    return [
        dataclasses.replace(comparison, p_holm=adjusted.get((comparison.model, comparison.optimizer)))
        for comparison in found
    ]
