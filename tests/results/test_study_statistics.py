"""Collected results become statistics of arms, in a file."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.made_results import PERPLEXITIES, arm, missing, study, trial

from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.statistical_methods import compare_spreads, holm, share, summarize
from qlora_repeat.results.study_statistics import (
    SpreadComparison,
    study_statistics,
    write_statistics,
)
from qlora_repeat.results.trial_result import TrialResult


def comparison(results: list[TrialResult], measure: str = "perplexity") -> SpreadComparison:
    (found,) = [each for each in study_statistics(group_arms(results)).comparisons if each.measure == measure]
    return found


def test_each_arm_has_the_statistics_of_its_own_trials() -> None:
    results = arm("adamw-8bit", PERPLEXITIES) + arm("adamw-32bit", [7.0, 8.0])
    first, second = study_statistics(group_arms(results)).arms
    assert (first.optimizer, first.trials, second.optimizer, second.trials) == (
        "adamw-8bit", 7, "adamw-32bit", 2,
    )  # fmt: skip
    assert first.measures["perplexity"] == summarize(PERPLEXITIES)
    assert second.measures["perplexity"] == summarize([7.0, 8.0])
    assert first.measures["train_seconds"] == summarize([1319.09] * 7)
    assert "final_loss" not in first.measures  # no trial has it


def test_only_values_of_done_or_requested_stale_trials_are_used() -> None:
    results = arm("adamw-8bit", PERPLEXITIES)
    results[0] = replace(results[0], status="stale")
    results[1] = replace(results[1], status="stale", stale_inputs=["code"])  # collected on request
    results[2] = missing(trial=3)
    (found,) = study_statistics(group_arms(results)).arms
    assert found.trials == 5
    assert found.measures["perplexity"] == summarize(PERPLEXITIES[1:2] + PERPLEXITIES[3:])
    (none,) = study_statistics(group_arms([missing()])).arms
    assert (none.trials, none.diverged, none.worse_than_base, none.measures) == (0, None, None, {})


def test_trials_with_values_that_are_not_finite_count_as_diverged() -> None:
    results = arm("adamw-8bit", [3.0, math.nan, 3.0, 3.0, 3.0])
    results[2] = replace(results[2], diverged_at=5)
    results[3] = replace(results[3], final_loss=math.inf)
    (found,) = study_statistics(group_arms(results)).arms
    assert found.diverged == share(3, 5)


def test_trials_worse_than_their_base_are_counted() -> None:
    results = arm("adamw-8bit", [3.0, 7.04, 7.05, math.nan, 9.0], base_perplexity=7.04)
    results[4] = replace(results[4], base_perplexity=None)
    (found,) = study_statistics(group_arms(results)).arms
    assert found.worse_than_base == share(2, 4)
    (unknown,) = study_statistics(group_arms([trial(base_perplexity=None)])).arms
    assert unknown.worse_than_base is None


def test_an_8_bit_arm_is_compared_with_the_32_bit_arm_of_its_model() -> None:
    wide = [value**3 for value in PERPLEXITIES]
    found = comparison(arm("adamw-8bit", wide) + arm("adamw-32bit", PERPLEXITIES))
    assert (found.model, found.optimizer, found.reference) == ("gpt-neox-20b", "adamw-8bit", "adamw-32bit")
    assert found.test == compare_spreads(wide, PERPLEXITIES)
    assert found.test.ratio == pytest.approx(3)
    assert found.p_holm == found.test.p
    assert study_statistics(group_arms(arm("adamw-8bit", wide))).comparisons == []
    assert study_statistics(group_arms(arm("adamw-8bit", wide) + arm("adamw-32bit", [3.0]))).comparisons == []


def test_an_old_state_map_is_compared_with_todays() -> None:
    old = "adamw-8bit+bitsandbytes-0.41.0"
    results = [row for name in (old, "adamw-8bit", "adamw-32bit") for row in arm(name, PERPLEXITIES)]
    found = [
        each for each in study_statistics(group_arms(results)).comparisons if each.measure == "perplexity"
    ]
    assert [(each.optimizer, each.reference) for each in found] == [
        (old, "adamw-8bit"), ("adamw-8bit", "adamw-32bit"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("optimizers", "expected"),
    [
        (["lion-32bit", "adamw-32bit"], {"adamw-32bit": "lion-32bit"}),
        (["adamw-8bit", "lion-8bit"], {"lion-8bit": "adamw-8bit"}),
        (
            ["adamw-8bit", "adamw-32bit", "lion-32bit", "adamw-8bit~mean-of-3"],
            {
                "adamw-8bit": "adamw-32bit",
                "lion-32bit": "adamw-32bit",
                "adamw-8bit~mean-of-3": "adamw-8bit",
            },
        ),
    ],
)
def test_any_arm_is_compared_with_another_of_its_model(
    optimizers: list[str], expected: dict[str, str]
) -> None:
    results = [row for name in optimizers for row in arm(name, PERPLEXITIES)]
    found = study_statistics(group_arms(results)).comparisons
    assert {each.optimizer: each.reference for each in found} == expected


def test_arms_with_the_same_seeds_are_compared_in_pairs() -> None:
    """Two arms whose values move together: the ratio of 1.5 is found, which is lost in unpaired arms."""
    logs = [-0.5, 0.1, 0.4, -0.2, 0.9, -0.8, 0.05]
    both = [
        replace(row, adapter_init_seed=place)
        for name, times in (("adamw-8bit", 1.5), ("adamw-32bit", 1.0))
        for place, row in enumerate(arm(name, [math.exp(times * each) for each in logs]))
    ]
    found = comparison(both)
    assert found.is_paired
    assert found.test.ratio == pytest.approx(1.5, rel=0.05)
    assert found.test.p == pytest.approx(4 / 128), "one pair has no distance in either"
    unpaired = comparison([replace(row, adapter_init_seed=None) for row in both])
    assert not unpaired.is_paired
    assert unpaired.test.p is not None and unpaired.test.p > 0.3


def test_p_values_are_adjusted_over_the_models_of_a_measure() -> None:
    results = []
    for place, factor in enumerate((1.0, 4.0, 9.0)):
        own = {"model": f"model-{place}", "model_title": f"Model {place}"}
        results += arm("adamw-8bit", [value**factor for value in PERPLEXITIES], **own)
        results += arm("adamw-32bit", PERPLEXITIES, **own)
    comparisons = study_statistics(group_arms(results)).comparisons
    for measure in ("perplexity", "train_seconds"):
        found = [each for each in comparisons if each.measure == measure]
        ps = [each.test.p for each in found]
        assert [each.p_holm for each in found] == holm([p for p in ps if p is not None])
    assert [each.p_holm for each in comparisons if each.measure == "train_seconds"] == [1, 1, 1]
    few = results[:4] + results[7:]  # four trials of the first arm are too few for a test
    adjusted = [
        each.p_holm for each in study_statistics(group_arms(few)).comparisons if each.measure == "perplexity"
    ]
    assert adjusted[0] is None
    assert adjusted[1:] == holm([each.test.p or 0 for each in comparisons[1:3]])


def refuse(text: str) -> float:
    raise AssertionError(text)


def test_the_file_is_strict_and_reproducible_json(tmp_path: Path) -> None:
    results = [
        *study(),
        *arm("adamw-8bit", [math.inf, math.nan, 3.0], model="odd", final_loss=math.nan),
        *arm("adamw-32bit", [3.567] * 7, model="odd"),
        missing(model="none"),
    ]
    write_statistics(group_arms(results), tmp_path / "one.json")
    write_statistics(group_arms(results), tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    found = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert list(found) == ["arms", "comparisons", "level", "methods"]
    odd = next(each for each in found["arms"] if each["model"] == "odd")
    assert odd["diverged"]["count"] == 3
    assert (
        odd["measures"]["perplexity"] | {"n": 1, "not_finite": 2, "mean": 3.0, "high": "inf"}
        == (odd["measures"]["perplexity"])
    )
    assert float(odd["measures"]["perplexity"]["high"]) == math.inf
    same = next(
        each for each in found["arms"] if each["model"] == "odd" and each["optimizer"] == "adamw-32bit"
    )
    assert (same["measures"]["perplexity"]["sd"], same["measures"]["perplexity"]["cv"]) == (0, 0)
    tested = [each for each in found["comparisons"] if each["measure"] == "perplexity"]
    assert [each["model"] for each in tested] == [*dict.fromkeys(row.model for row in study()), "odd"]
    assert (tested[-1]["test"]["ratio"], tested[-1]["test"]["low"]) == ("inf", None)
