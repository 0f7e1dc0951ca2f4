"""Table S6: benchmarks, their spread between trials, and how often examples agree."""

from typing import Any

import pytest
from support.made_results import table, trial

from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.benchmark_statistics import benchmark_statistics
from qlora_repeat.results.trial_result import Benchmark, TrialResult


def runs(*outcomes: list[float], **changes: Any) -> list[TrialResult]:
    return [
        trial(
            trial=number, benchmarks=[Benchmark("colors", "acc", sum(own) / len(own), "same", own)], **changes
        )
        for number, own in enumerate(outcomes, 1)
    ]


def test_agreement_is_the_mean_over_pairs_and_the_error_is_that_of_one_score() -> None:
    # Each pair agrees on 2 of 4 examples; outcomes have a sample variance of 1/4 in each run.
    (arm,) = group_arms(runs([1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0]))
    (found,) = benchmark_statistics(arm)
    assert (found.trials, found.examples) == (3, 4)
    assert found.mean == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert found.sd == pytest.approx(12**-0.5)
    assert found.standard_error == pytest.approx(0.5 / 2)
    assert found.agreement == pytest.approx(0.5)


def test_the_table_has_a_row_for_each_arm_task_and_metric() -> None:
    found = table(runs([1, 1, 1, 0], [1, 1, 1, 0]), "S6")
    (row,) = found.rows
    assert row[0].endswith("colors, acc")
    assert row[1:] == ["2", "4", "0.750", "0", "0.250", "0 %", "100 %"]


def test_outcomes_of_other_examples_are_not_compared() -> None:
    first, second = runs([1, 0], [1, 0])
    other = [Benchmark("colors", "acc", 0.5, "other", [1, 0])]
    found = table([first, trial(trial=2, benchmarks=other)], "S6")
    assert found.rows[0][-1] == "—"
    assert any("different examples" in note for note in found.notes)
    assert second.benchmarks[0].examples == "same"


def test_a_score_without_outcomes_has_a_mean_and_a_spread() -> None:
    scores = [Benchmark("text", "word_perplexity", value, "same") for value in (20.0, 22.0)]
    found = table([trial(trial=number, benchmarks=[each]) for number, each in enumerate(scores, 1)], "S6")
    assert found.rows[0][1:] == ["2", "—", "21.00", "1.41", "—", "—", "—"]
