"""Table S9 and Figure S9: trials beside averages of their adapters."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.made_results import arm, trial

from qlora_repeat.render.figures.write import render_figures
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.averages import averages, remaining
from qlora_repeat.results.trial_result import TrialResult

LOGS = [-0.3, 0.05, 0.2, -0.1, 0.45, -0.4, 0.1]
CURVE = [[0.0, 3.0], [1.0, 2.5]]


def rows(optimizer: str, logs: list[float], seeds: bool = True) -> list[TrialResult]:
    """Return an arm whose perplexities are around 20, with the seeds 0, 1, ... or none."""
    found = arm(optimizer, [20 * math.exp(each) for each in logs])
    return [
        replace(row, adapter_init_seed=place if seeds else None, loss_curve=CURVE, base_perplexity=40.0)
        for place, row in enumerate(found)
    ]


RESULTS = [
    *rows("adamw-32bit", LOGS),
    *rows("adamw-32bit~mean-of-3", [sum(LOGS[:3]) / 3, sum(LOGS[3:6]) / 3], seeds=False),
    *rows("adamw-32bit~last-8-steps", [each / 2 for each in LOGS]),
]


def table(results: list[TrialResult], number: str) -> Table:
    (found,) = (each for each in make_tables(group_arms(results)) if each.number == number)
    return found


def test_an_average_of_steps_is_compared_with_its_trial_in_pairs() -> None:
    steps = averages(group_arms(RESULTS))[1]
    assert steps.is_paired
    assert steps.spread is not None and steps.spread.ratio == pytest.approx(0.5, rel=0.02)
    assert steps.p_holm == pytest.approx(4 / 128), "the only test: two means are too few for another"
    assert steps.shift is not None and steps.shift.low is not None


def test_the_spread_that_is_left_is_pooled_over_arms() -> None:
    others = [replace(row, model="other", model_title="Other") for row in RESULTS]
    mean, steps = remaining(averages(group_arms(RESULTS + others)))
    assert (steps.average, steps.arms, steps.smaller) == ("last-8-steps", 2, 2)
    assert steps.ratio == pytest.approx(0.5)
    assert (mean.average, mean.arms) == ("mean-of-3", 2)


def test_the_table_has_a_row_for_the_trials_and_for_each_average() -> None:
    made = table(RESULTS, "S9")
    assert [row[:2] for row in made.rows] == [
        ["GPT-NeoX-20B 32-bit", "7"],
        ["GPT-NeoX-20B 32-bit, mean of 3", "2"],
        ["GPT-NeoX-20B 32-bit, last 8 steps", "7"],
    ]
    assert made.rows[1][5:8] == ["—"] * 3, "two values say nothing of a spread"
    assert made.rows[2][5] == "0.500"
    left = next(note for note in made.notes if note.startswith("The mean of the last 8 steps leaves 0.50 of"))
    assert "independent" not in left and left.endswith("averages spread less in 1 of 1 arms.")
    assert any("a mean has 1 / √3 = 0.58" in note for note in made.notes)
    assert not any("missing" in note for note in made.notes), "arms of averages have fewer trials"


def test_other_tables_have_no_averages() -> None:
    for made in make_tables(group_arms(RESULTS)):
        if made.number != "S9":
            text = repr((made.columns, made.rows, made.notes))
            assert "mean of 3" not in text and "last 8" not in text
    assert all(each.number != "S9" for each in make_tables(group_arms(RESULTS[:7])))


def test_a_collapsed_trial_is_shown_with_the_base(tmp_path: Path) -> None:
    results = [replace(row, perplexity=math.inf) if row.trial == 2 else row for row in RESULTS]
    made = table(results, "S9")
    assert made.rows[0][4] == "1 of 7"
    assert not any(" leaves " in note for note in made.notes), "an infinite spread has no share"
    written = render_figures(group_arms(results), tmp_path)
    assert tmp_path / "figure-S9.png" in written
    assert "figure-S9.png" not in [
        path.name for path in render_figures(group_arms([replace(trial(), loss_curve=CURVE)]), tmp_path)
    ]
    assert not (tmp_path / "figure-S9.png").exists()
