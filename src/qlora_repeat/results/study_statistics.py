"""Compute the statistics of each arm, and compare its spread with that of a reference arm of the model."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.results.arms import Arm, Measure, reference_arm
from qlora_repeat.results.statistical_methods import (
    LEVEL,
    Share,
    SpreadTest,
    Summary,
    holm,
    share,
    summarize,
)
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.results.two_arms import compare_log_spreads, in_pairs
from qlora_repeat.study.scores import SCORES, ScoreName
from qlora_repeat.system.files import json_text, strict, write_text

MEASURES: dict[str, Measure] = {
    "perplexity": lambda trial: trial.perplexity,
    "final_loss": lambda trial: trial.final_loss,
    "train_seconds": lambda trial: trial.train_seconds,
    "test_seconds": lambda trial: trial.test_seconds,
}
"""The measures that have statistics, by field of `TrialResult`."""
SCORE_TITLES: dict[ScoreName, str] = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "without_label": "no label",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
"""The scores of answers in words."""


def score(name: ScoreName) -> Measure:
    """Return the measure of a score of answers."""
    return lambda trial: trial.scores.get(name)


def scores_of_others(task: str) -> set[str]:
    """Return the scores that only other tasks have."""
    return {name for other, names in SCORES.items() if other != task for name in names}


_SUMMARIZED = MEASURES | {name: score(name) for names in SCORES.values() for name in names}
METHODS = {
    "sd": "sample standard deviation (n - 1)",
    "sd_low, sd_high": "Bonett 2006; none for values that are equal or span a decade",
    "mad": "median absolute deviation from the median, not scaled",
    "not_finite": "left out of mean, sd and cv; above all others elsewhere",
    "low, high of shares": "Clopper and Pearson",
    "spread": "mean distance of the natural logarithms from their median, without the smallest",
    "p": "permutation of these distances, in pairs if arms share seeds, two-sided",
    "low, high of ratios": "the ratios that this test does not reject; not adjusted for several models",
    "p_holm": "Holm, over the comparisons of a measure",
}


@dataclass(frozen=True)
class ArmStatistics:
    """The statistics of one arm, over its measured trials."""

    model: str
    optimizer: str
    trials: int
    """Number of measured trials."""
    diverged: Share | None
    """The trials with a loss or a perplexity that is not finite."""
    worse_than_base: Share | None
    """The trials with a perplexity above the base model's, among trials that have both."""
    measures: dict[str, Summary]


@dataclass(frozen=True)
class SpreadComparison:
    """The comparison of an arm's spread with that of its reference (`reference_arm`), in one measure."""

    model: str
    optimizer: str
    reference: str
    """The optimizer of the other arm."""
    measure: str
    test: SpreadTest
    is_paired: bool
    """Whether the arms share seeds, so that the test exchanges the values of pairs."""
    p_holm: float | None
    """The p-value, adjusted over the comparisons of the measure."""


@dataclass(frozen=True)
class StudyStatistics:
    """The statistics of a study's results."""

    arms: list[ArmStatistics]
    comparisons: list[SpreadComparison]


def study_statistics(arms: Sequence[Arm]) -> StudyStatistics:
    """Return the statistics of each arm and of each pair of arms, in the arms' order."""
    return StudyStatistics(
        arms=arm_statistics(arms),
        comparisons=[found for measure in MEASURES for found in compare_with_references(arms, measure)],
    )


def arm_statistics(arms: Sequence[Arm]) -> list[ArmStatistics]:
    """Return the statistics of each arm, without measures that no trial has."""
    measures = {
        name: measure for name, measure in _SUMMARIZED.items() if any(arm.values(measure) for arm in arms)
    }
    return [
        ArmStatistics(
            *arm.key,
            trials=len(arm.done),
            diverged=share(sum(map(_has_diverged, arm.done)), len(arm.done)),
            worse_than_base=worse_than_base_share(arm.done),
            measures={name: summarize(arm.values(measure)) for name, measure in measures.items()},
        )
        for arm in arms
    ]


def write_statistics(arms: Sequence[Arm], path: Path) -> None:
    """Write the statistics of arms as JSON."""
    write_text(path, statistics_text(arms))


def statistics_text(arms: Sequence[Arm]) -> str:
    """Return the statistics as JSON; numbers that are not finite become text (`files.strict`)."""
    found = dataclasses.asdict(study_statistics(arms))
    return json_text(strict({"level": LEVEL, "methods": METHODS} | found))


def _has_diverged(trial: TrialResult) -> bool:
    measured = (trial.perplexity, trial.final_loss)
    return trial.diverged_at is not None or any(
        value is not None and not math.isfinite(value) for value in measured
    )


def worse_than_base_share(trials: Sequence[TrialResult]) -> Share | None:
    """Return the share of trials with a perplexity above the base model's, among trials that have both."""
    worse = [
        not trial.perplexity <= trial.base_perplexity  # NaN counts as worse
        for trial in trials
        if trial.perplexity is not None and trial.base_perplexity is not None
    ]
    return share(sum(worse), len(worse))


def compare_with_references(arms: Sequence[Arm], measure: str) -> list[SpreadComparison]:
    """Compare each arm with its reference arm, if both have two values."""
    found = []
    for arm in arms:
        if (other := reference_arm(arm, arms)) is None:
            continue
        test, is_paired = compare_arm_spreads(arm, other, MEASURES[measure])
        if test is not None:
            found.append(SpreadComparison(*arm.key, other.optimizer.name, measure, test, is_paired, None))
    adjusted = holm([each.test.p for each in found])
    return [dataclasses.replace(each, p_holm=p) for each, p in zip(found, adjusted, strict=True)]


def compare_arm_spreads(arm: Arm, other: Arm, measure: Measure) -> tuple[SpreadTest | None, bool]:
    """Return the test of equal spreads of two arms on the log scale, and whether it is in pairs."""
    pairs = in_pairs(arm.by_seed(measure), other.by_seed(measure))
    values = pairs or (arm.values(measure), other.values(measure))
    return compare_log_spreads(*values, paired=pairs is not None), pairs is not None
