"""Table S3 compares an old map of 8-bit state with today's map and 32-bit state; its study is `collapse`."""

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import binomtest
from support.checkout import ROOT
from support.made_results import trial
from support.places import NO_RUNS, at

from qlora_repeat.assets.datasets import data_folder
from qlora_repeat.render.tables.collapse import collapse_tables
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.study_statistics import worse_than_base_share
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import draw_seeds

OLD, TODAY, PLAIN = "adamw-8bit+bitsandbytes-0.41.0", "adamw-8bit", "adamw-32bit"
BASE = 94.0
STABLE = [50.0, 50.5, 51.0, 49.5, 52.0, 48.0, 50.2]


def arm(optimizer: str, perplexities: list[float], **changes: Any) -> list[TrialResult]:
    """Return trials with these perplexities and changes."""
    return [
        trial(
            **{
                "model": "rate",
                "model_title": "Rate",
                "optimizer": optimizer,
                "trial": number,
                "perplexity": perplexity,
                "base_perplexity": BASE,
                "base_perplexities": [BASE],
                "final_loss": 4.0 + number,
            }
            | changes
        )
        for number, perplexity in enumerate(perplexities, 1)
    ]


def study(old: list[float], today: list[float], plain: list[float]) -> list[TrialResult]:
    return [*arm(OLD, old), *arm(TODAY, today), *arm(PLAIN, plain)]


def table(results: list[TrialResult]) -> Table:
    (made,) = [made for made in make_tables(group_arms(results)) if made.number == "S3"]
    return made


def cells(results: list[TrialResult], optimizer: str) -> dict[str, str]:
    """Return the cells of an optimizer by the names of rows."""
    made = table(results)
    place = [headings[1] for headings in made.columns].index(optimizer)
    return {row[0]: row[1 + place] for row in made.rows}


def test_collapses_are_counted_with_their_interval() -> None:
    results = study([120.0, 93.9, 300.0, 94.1, 1200.0, 99.0, math.inf], STABLE, STABLE)
    old = cells(results, "8-bit, map of bitsandbytes 0.41.0")
    interval = binomtest(6, 7).proportion_ci(method="exact")
    assert (old["runs"], old["collapsed"]) == ("7", "6 of 7")
    assert old["collapsed: 95 % interval"] == f"{100 * interval.low:.0f} %–{100 * interval.high:.0f} %"
    assert (old["perplexity: median"], old["perplexity: range"]) == ("120", "93.9–inf")
    assert old["final loss: median"] == "8"
    assert [cells(results, name)["collapsed"] for name in ("8-bit", "32-bit")] == ["0 of 7"] * 2


@pytest.mark.parametrize(
    ("perplexity", "collapsed"),
    [(93.0, 0), (94.0, 0), (94.1, 1), (math.inf, 1), (math.nan, 1)],
)
def test_a_trial_above_its_base_or_not_finite_has_collapsed(perplexity: float, collapsed: int) -> None:
    (only,) = group_arms(arm(OLD, [perplexity]))
    found = worse_than_base_share(only.done)
    assert found and (found.count, found.of) == (collapsed, 1)


def test_a_trial_without_a_base_test_is_not_counted() -> None:
    alone = arm(OLD, STABLE[:2], base_perplexity=None)
    assert worse_than_base_share(group_arms(alone)[0].done) is None
    assert cells(alone, "8-bit, map of bitsandbytes 0.41.0")["collapsed"] == "—"


def test_a_note_states_the_rule() -> None:
    (rule,) = [note for note in table(study(STABLE, STABLE, STABLE)).notes if note.startswith("Collapsed")]
    assert "perplexity above that of the base before fine-tuning, or not finite" in rule
    assert "Clopper and Pearson" in rule


def test_an_old_map_is_compared_with_todays_and_that_with_32_bit_state() -> None:
    wild = [50 * math.exp(40 * (math.log(each) - math.log(50))) for each in STABLE]
    results = study(wild, STABLE, list(reversed(STABLE)))
    old, today, plain = (
        cells(results, name) for name in ("8-bit, map of bitsandbytes 0.41.0", "8-bit", "32-bit")
    )
    assert [each["spread compared with"] for each in (old, today, plain)] == ["8-bit", "32-bit", "—"]
    assert float(old["ratio of spreads"]) == pytest.approx(40, rel=1e-2)
    assert float(old["equal spread: p"]) < 0.05
    assert (today["ratio of spreads"], today["equal spread: p"]) == ("1.00", "1")
    assert plain["ratio of spreads"] == plain["equal spread: p"] == "—"
    low, high = map(float, old["ratio: 95 % interval"].split("–"))
    assert 1 < low < 40 < high


def test_arms_with_the_same_seeds_are_compared_in_pairs() -> None:
    """Half as wide again, and correlated with the others: hidden, unless pairs are compared."""
    wider = [50 + 1.5 * (each - 50) + place / 1000 for place, each in enumerate(STABLE)]
    results = study(wider, STABLE, STABLE)
    seeded = [replace(row, adapter_init_seed=row.trial) for row in results]
    apart, paired = (
        cells(rows, "8-bit, map of bitsandbytes 0.41.0")["ratio: 95 % interval"].split("–")
        for rows in (results, seeded)
    )
    assert float(apart[0]) < 1 < float(paired[0]) < 1.5 < float(paired[1])


def test_p_values_are_adjusted_for_the_tests_of_all_models() -> None:
    wild = [50 * math.exp(5 * (math.log(each) - math.log(50))) for each in STABLE]
    one = study(wild, STABLE, STABLE)
    three = [
        replace(row, model=f"rate-{place}", model_title=f"Rate {place}") for place in range(3) for row in one
    ]
    alone, among = (
        float(cells(results, "8-bit, map of bitsandbytes 0.41.0")["equal spread: p"])
        for results in (one, three)
    )
    assert among == pytest.approx(min(1, 3 * alone), rel=0.05), (
        "six tests instead of two, of which three are the same"
    )


def test_missing_and_stale_trials_are_noted() -> None:
    results = study(STABLE, STABLE, STABLE)
    results[0] = replace(results[0], status="failed", perplexity=None)
    results[1] = replace(results[1], diverged_at=12)
    results[2] = replace(results[2], status="stale", stale_inputs=["code"])
    results[7:12] = [replace(row, status="missing") for row in results[7:12]]
    old, today = (cells(results, name) for name in ("8-bit, map of bitsandbytes 0.41.0", "8-bit"))
    assert (old["runs"], old["diverged"], old["collapsed"]) == ("6", "1 of 6", "0 of 6")
    assert (today["runs"], old["equal spread: p"]) == ("2", "—"), "two trials are too few for a test"
    notes = table(results).notes
    assert any("changed since: code" in note and "map of bitsandbytes 0.41.0 run 3" in note for note in notes)
    assert any(note.startswith("No value (—) from 6 of 21 trials: 1 failed, 5 missing") for note in notes)


def test_an_old_map_alone_has_a_table_without_comparison() -> None:
    old = cells(arm(OLD, STABLE), "8-bit, map of bitsandbytes 0.41.0")
    assert old["collapsed"] == "0 of 7"
    assert old["ratio of spreads"] == "—"


def test_by_this_rule_only_the_papers_8_bit_trials_collapsed() -> None:
    arms = group_arms(read_published(ROOT / "paper" / "published"))
    shares = {(arm.model, arm.heading): worse_than_base_share(arm.done) for arm in arms}
    counts = {key: share and (share.count, share.of) for key, share in shares.items()}
    for model in {arm.model for arm in arms}:
        assert counts[model, "8-bit"] == ((5, 7) if model == "llama2-chat-7b" else (7, 7))
        assert counts[model, "32-bit"] == (0, 7)


def test_only_models_with_an_old_map_are_in_the_table() -> None:
    other = arm(TODAY, STABLE, model="other", model_title="Other")
    assert {headings[0] for headings in table([*other, *arm(OLD, STABLE)]).columns} == {"Rate"}
    assert collapse_tables(group_arms([*other, *arm(PLAIN, STABLE)])) == []
    assert collapse_tables(group_arms(read_published(ROOT / "paper" / "published"))) == []


def test_arms_of_the_study_differ_only_in_learning_rate_and_optimizer() -> None:
    collapse, pocket = load_study("collapse"), load_study("pocket")
    assert collapse.optimizers == [OLD, TODAY, PLAIN]
    assert len(at(collapse, ROOT).trials()) == 3 * 3 * 7
    models = list(collapse.models.values())
    assert [model.training.learning_rate for model in models] == [2e-4, 5e-4, 1e-3]
    alike = {
        repr(replace(model, title="", training=replace(model.training, learning_rate=1.0)))
        for model in models
    }
    assert len(alike) == 1
    seeds = {
        optimizer: [draw_seeds(collapse.randomness, n) for n in (1, 2)] for optimizer in collapse.optimizers
    }
    assert seeds[OLD] == seeds[TODAY] == seeds[PLAIN], "trial i of every arm starts from the same adapter"
    assert seeds[OLD][0]["adapter_init"] != seeds[OLD][1]["adapter_init"]
    for model in models:
        assert data_folder(at(collapse, NO_RUNS, ROOT), model.data) == data_folder(
            at(pocket, NO_RUNS, ROOT), "quotes"
        )
        assert collapse.bases[model.base] == pocket.bases[model.base]


def test_the_papers_study_can_be_run_with_the_old_map() -> None:
    study_file = (ROOT / "studies" / "paper.toml").read_text(encoding="utf-8")
    assert f"qlora-repeat run paper@{OLD}" in study_file
    paper = load_study(f"paper@{OLD}")
    assert {trial.optimizer for trial in at(paper, ROOT).trials()} == {OLD}
