"""Attributions of made-up outcomes with known causes."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT, kit, needs_latex
from support.made_attribution import FREED, Levels, additive, changed, interacting, made, outcome
from support.made_results import TEMPLATES, render_tables

from qlora_repeat.analysis.attribution.control_checks import find_problems
from qlora_repeat.analysis.attribution.decompose import (
    MAIN,
    MEASURES,
    SIGNIFICANT,
    additivity,
    attribute,
)
from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    JOINT,
    NUDGE,
    OTHER,
    REPEAT,
    Measurements,
    read_experiments,
    read_measured,
    write_attribution,
)
from qlora_repeat.analysis.attribution.paired_statistics import Estimate
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.render.figures.attribution import render_attribution_figure
from qlora_repeat.render.pdf import compile_paper
from qlora_repeat.render.tables.attribution import attribution_table
from qlora_repeat.render.tables.write import table_texts
from qlora_repeat.render.text.attribution import sentences
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.number_format import percent
from qlora_repeat.results.published import read_published


def test_planted_variances_are_recovered() -> None:
    found = attribute(made(additive, replicates=1000)).decompositions[MAIN]
    assert [found.shares[source].value for source in FREED] == pytest.approx([0.9, 0.09, 0.01], abs=0.03)
    assert [found.total[source].value for source in FREED] == pytest.approx([0.9, 0.09, 0.01], abs=0.05)
    assert found.interactions.value == pytest.approx(0, abs=1e-6)


def test_interactions_are_in_both_total_effects_and_half_in_each_share() -> None:
    experiment = made(interacting, replicates=1000, draw=lambda generator: generator.uniform(-1.7, 1.7))
    found = attribute(experiment).decompositions[MAIN]
    for source, total, share in (
        ("adapter_init", 0.99, 0.5),
        ("data_order", 0.99, 0.5),
        ("dropout", 0.01, 0.01),
    ):
        assert found.total[source].value == pytest.approx(total, abs=0.1)
        assert found.shares[source].value == pytest.approx(share, abs=0.05)
    assert found.interactions.value == pytest.approx(0.99, abs=0.1)
    assert found.additive == "not additive"


def test_seven_replicates_name_the_largest_source_and_find_the_sources_additive() -> None:
    measured = made(additive)
    found = attribute(measured)
    decomposition = found.decompositions[MAIN]
    assert (decomposition.largest, decomposition.additive) == ("adapter_init", "additive")
    assert found.problems == []
    sizes, first, second, third, fourth = sentences(measured, found)
    assert sizes.startswith("Median change of log perplexity with one source freed: adapter init ")
    assert sizes.endswith("The adapters are then 50 % of their size apart; unrelated ones, about 141 %.")
    assert sizes.index("adapter init") < sizes.index("data order") < sizes.index("dropout")
    assert "adapter init" in first
    assert first.index("adapter init") < first.index("data order") < first.index("dropout")
    assert second.startswith("The sources are practically additive")
    assert "2,000 times as far" in third
    assert fourth.startswith("With adamw-8bit and the same seeds and kernels, log perplexity differs by 0.25")


def test_four_replicates_have_no_intervals() -> None:
    found = attribute(made(additive, replicates=4)).decompositions[MAIN]
    assert {each.low for each in (*found.shares.values(), *found.total.values())} == {None}
    assert found.largest is None
    assert found.additive == "cannot tell"


def test_few_replicates_with_small_interactions_give_no_verdict_on_additivity() -> None:
    """Make small interactions that the F test finds; without an interval, their size is unknown."""

    def slightly(at: Levels) -> float:
        return additive(at) + 1e-3 * at["adapter_init"] * at["data_order"]

    few, usual = (attribute(made(slightly, replicates)).decompositions[MAIN] for replicates in (4, 7))
    assert few.above_floor is not None
    assert few.above_floor < SIGNIFICANT
    assert (few.additive, usual.additive) == ("cannot tell", "additive")


def test_an_interaction_of_three_counts_at_least_once_and_half_in_each_share() -> None:
    def together(at: Levels) -> float:
        return math.prod(at[source] for source in FREED)

    experiment = made(together, replicates=1000, draw=lambda generator: generator.uniform(-1.7, 1.7))
    found = attribute(experiment).decompositions[MAIN]
    assert found.interactions.value == pytest.approx(2, abs=0.2)
    assert [found.shares[source].value for source in FREED] == pytest.approx([0.5] * 3, abs=0.1)
    assert any(
        "an interaction of three counts twice" in note
        for note in attribution_table(experiment, attribute(experiment)).notes
    )


def test_a_source_that_may_be_the_largest_by_chance_is_not_named() -> None:
    measured = made(lambda at: sum(at[source] for source in FREED))
    found = attribute(measured)
    assert found.decompositions[MAIN].largest is None
    assert "7 replicates do not show which is the largest" in sentences(measured, found)[1]


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.5, 1.0), (0.05, 0.0, 0.4), (0.2, 0.0, 0.07)])
def test_sources_are_rarely_called_additive_that_interact(share: float, least: float, most: float) -> None:
    """Seven replicates of two equal sources whose interaction has this share of the variance."""
    generator = np.random.default_rng(3)

    def model(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return math.sqrt((1 - share) / 2) * (one + other) + math.sqrt(share) * one * other

    said = []
    for _ in range(500):
        one, other, second, another = generator.normal(size=(4, 7))
        base = model(one, other)
        rest = model(second, another) - model(second, other) - model(one, another) + base
        said.append(additivity(rest + 1e-6, model(second, another) - base, 0.0))
    assert least <= said.count("additive") / 500 <= most
    assert said.count("not additive") / 500 <= 0.06


def test_without_a_nudge_there_is_no_noise_floor() -> None:
    measured = made(interacting)
    kept = [each for each in measured.outcomes if each.condition != NUDGE]
    measured = dataclasses.replace(measured, outcomes=kept)
    sentence = sentences(measured, attribute(measured))[2]
    assert "too few to decide" in sentence
    assert "(there is no nudge whose noise it could be compared with)." in sentence


def test_replicates_that_repeat_one_observation_have_no_interval() -> None:
    measured = made(additive, freed=[], noise=0.0)
    found = attribute(measured).precision
    assert found is not None
    assert found.mean == Estimate(pytest.approx(0.25))
    assert found.spread == Estimate(None)
    assert "in the mean" not in sentences(measured, attribute(measured))[-1]


def test_shares_sum_to_one_for_every_measure() -> None:
    for found in attribute(made(interacting, pairs=True)).decompositions.values():
        assert sum(share.value for share in found.shares.values()) == pytest.approx(1)
    assert list(attribute(made(additive)).decompositions) == list(MEASURES)


def test_sources_that_matter_only_together_are_not_additive_and_the_pair_is_named() -> None:
    measured = made(interacting, replicates=40, pairs=True)
    found = attribute(measured).decompositions[MAIN]
    assert found.additive == "not additive"
    assert found.pairs["adapter_init × data_order"].value == pytest.approx(found.interactions.value)
    for name in ("adapter_init × dropout", "data_order × dropout"):
        assert found.pairs[name].value == pytest.approx(0, abs=1e-6)
    assert found.above_floor is not None
    assert found.above_floor < 1e-6
    assert sentences(measured, attribute(measured))[2].startswith("The sources are not additive: ")


def test_an_effect_as_small_as_a_nudges_is_not_above_the_floor() -> None:
    found = attribute(made(additive, noise=1e-3, seed=3)).decompositions[MAIN]
    assert found.above_floor is not None
    assert found.above_floor > SIGNIFICANT
    assert found.additive == "additive"


def test_a_nudge_is_reported_with_its_growth_and_next_to_all_sources() -> None:
    found = attribute(made(additive, noise=1e-2))
    assert found.amplification is not None
    assert found.amplification.factor == pytest.approx(2000)
    assert found.amplification.sd == pytest.approx(1e-2 / math.sqrt(2), rel=0.6)
    assert 0 < found.decompositions[MAIN].total[NUDGE].value < 1e-3


def test_the_other_optimizer_is_compared_over_the_same_levels() -> None:
    found = attribute(made(additive, noise=1e-3)).precision
    assert found is not None
    assert found.mean.value == pytest.approx(0.25, abs=2e-3)
    assert found.spread.value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("condition", "replicate", "changes", "words"),
    [
        (REPEAT, 1, {"first_step": 3, "first_kind": "loss"}, ["repetition", "step 3, in loss", "kernels"]),
        (REPEAT, 1, {"adapter_digest": "other"}, ["the same trace but different adapters"]),
        (REPEAT, 1, {"perplexity": 7.0}, ["the same adapter but different perplexities"]),
        ("dropout", 4, {"seeds": {"split": 1}}, ["dropout 4 differs from the baseline in seed of split"]),
        (
            "dropout",
            4,
            {"first_step": 0, "first_kind": "init"},
            ["dropout 4", "in init, at step 0", "gradient"],
        ),
        (NUDGE, 1, {"first_kind": "data"}, ["nudge 1 first differs in data"]),
        (JOINT, 7, {"machine": "other", "device": "another CPU"}, ["2 kinds of machine", "another CPU"]),
        (BASELINE, 3, {"optimizer": "sgd"}, ["adapter_init 3 differs from the baseline in optimizer"]),
        # Causes that the freed source's first difference could hide.
        (
            "adapter_init",
            2,
            {"rows_digest": "x"},
            ["adapter_init 2 differs from the baseline in rows in its steps"],
        ),
        (
            "adapter_init",
            2,
            {"rates_digest": "x"},
            ["adapter_init 2 differs from the baseline in learning rates"],
        ),
        (
            "adapter_init",
            2,
            {"threads": 2},
            ["adapter_init 2 differs from the baseline in number of threads"],
        ),
        (
            "data_order",
            2,
            {"initial_digest": "x"},
            ["data_order 2 differs from the baseline in initial adapter"],
        ),
        ("dropout", 5, {"kernels": "default"}, ["dropout 5 differs from the baseline in kind of kernels"]),
        # Levels that are not as declared.
        (
            "adapter_init",
            2,
            {"initial_digest": "x"},
            ["adapter_init 2 differs in initial adapter from the trial"],
        ),
        ("data_order", 2, {"rows_digest": "x"}, ["data_order 2 differs in rows in its steps from the trial"]),
        (
            "data_order",
            2,
            {"rows_digest": "2 2"},
            ["data_order 2 agrees with the baseline in rows in its steps"],
        ),
        (NUDGE, 2, {"initial_digest": "2 False"}, ["nudge 2 agrees with the baseline in initial adapter"]),
    ],
)
def test_a_failed_control_check_is_reported(
    condition: str, replicate: int, changes: dict, words: list[str]
) -> None:
    measured = changed(made(additive), condition, replicate, **changes)
    problems = find_problems(measured)
    assert problems
    assert all(word in problems[0] for word in words), problems
    found = attribute(measured)
    assert sentences(measured, found)[0].startswith("Do not interpret these results: ")
    assert any("Do not interpret" in note for note in attribution_table(measured, found).notes)


def test_a_level_that_is_drawn_twice_is_reported() -> None:
    measured = made(additive)
    seeds = dict(measured.of(BASELINE)[0].seeds)
    outcomes = [
        dataclasses.replace(each, seeds=each.seeds | {"dropout": seeds["dropout"]})
        if each.replicate == 2 and each.seeds["dropout"] == 2
        else each
        for each in measured.outcomes
    ]
    found = find_problems(dataclasses.replace(measured, outcomes=outcomes))
    assert found == ["Two levels of dropout have the same seed."]


def test_a_perplexity_that_is_not_a_number_repeats() -> None:
    measured = made(additive)
    for condition in (BASELINE, REPEAT):
        measured = changed(measured, condition, 1, perplexity=math.nan)
    assert find_problems(measured) == []


def test_default_kernels_promise_no_repetition() -> None:
    measured = changed(made(additive), REPEAT, 1, first_step=2, first_kind="loss", adapter_digest="other")
    measured = changed(measured, OTHER, 2, first_step=1, first_kind="loss")
    assert find_problems(measured)
    outcomes = [dataclasses.replace(each, kernels="default") for each in measured.outcomes]
    assert find_problems(dataclasses.replace(measured, kernels="default", outcomes=outcomes)) == []


@pytest.mark.parametrize(("digest", "code"), [("another", 7), (None, 0)])
def test_a_failed_control_check_has_its_own_exit_code(digest: str | None, code: int, tmp_path: Path) -> None:
    """Change a trial of the baseline so that it differs from its repetition."""
    measured = made(additive)
    if digest:
        measured = changed(measured, REPEAT, 1, adapter_digest=digest, first_step=1, first_kind="loss")
    path = tmp_path / "attribution.json"
    write_attribution(measured, attribute(measured), [], path)
    done = kit("attribute", "--results", path, "--out", tmp_path / "out")
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("Do not interpret these results: ") == bool(code)


def test_a_correct_experiment_has_no_problems() -> None:
    assert find_problems(made(interacting, pairs=True)) == []


@pytest.mark.parametrize("perplexity", [math.inf, math.nan])
def test_a_replicate_without_finite_perplexity_is_left_out_and_reported(perplexity: float) -> None:
    measured = changed(made(additive), JOINT, 3, perplexity=perplexity, diverged_at=5)
    found = attribute(measured)
    assert found.decompositions[MAIN].replicates == 6
    assert found.decompositions[MAIN].largest == "adapter_init"
    assert found.decompositions["late loss"].replicates == 7
    assert "(1 of 7 replicates left out: not finite)" in sentences(measured, found)[1]
    table = attribution_table(measured, found)
    assert any("not finite: all together 1" in note for note in table.notes)
    assert any("come from 6 replicates" in note for note in table.notes)


def test_sources_are_not_compared_without_two_finite_replicates() -> None:
    measured = made(additive)
    for replicate in range(1, 7):
        measured = changed(measured, "dropout", replicate, perplexity=math.inf)
    found = attribute(measured)
    assert found.decompositions[MAIN].additive == "cannot tell"
    _, first, second, *_ = sentences(measured, found)
    assert "is unknown" in first
    assert "is unknown" in second


def test_one_source_alone_has_a_spread_and_no_shares() -> None:
    measured = made(additive, freed=["dropout"])
    found = attribute(measured)
    assert found.decompositions == {}
    assert sentences(measured, found)[0].startswith("Dropout alone gives log perplexity a standard deviation")
    assert attribution_table(measured, found).summary == []


def test_a_baseline_with_only_a_nudge_is_reported_as_such() -> None:
    measured = made(additive, freed=[])
    kept = [each for each in measured.outcomes if each.condition in (BASELINE, REPEAT, NUDGE)]
    measured = dataclasses.replace(measured, outcomes=kept)
    (only,) = sentences(measured, attribute(measured))
    assert only.startswith("Moving one weight of the initial adapter")


def test_the_table_has_a_row_for_each_condition_and_its_files_the_same_bytes() -> None:
    measured = made(interacting, pairs=True)
    found = attribute(measured)
    table = attribution_table(measured, found)
    assert [row[0] for row in table.rows][:2] == ["nothing (repeated)", "adapter init"]
    assert len(table.rows) == len(measured.conditions) - 1
    assert {len(row) for row in table.rows + table.summary} == {1 + len(table.columns)}
    assert [row[0] for row in table.summary] == ["rest", "interactions"]
    texts = table_texts(table, TEMPLATES)
    assert sorted(texts) == ["table-S2-model-adamw-32bit.md", "table-S2-model-adamw-32bit.tex"]
    assert "adapter init × data order" in texts["table-S2-model-adamw-32bit.md"]
    assert texts == table_texts(attribution_table(measured, attribute(measured)), TEMPLATES)


@needs_latex
def test_the_pdf_of_a_study_contains_tables_and_figures_of_two_experiments(tmp_path: Path) -> None:
    one = made(additive, pairs=True)
    two = dataclasses.replace(one, optimizer="adamw-8bit+bitsandbytes-0.41.0")
    before = compile_with_tables(tmp_path, [])
    for measured in (one, two):
        render_attribution_figure(measured, attribute(measured), tmp_path)
    assert compile_with_tables(tmp_path, [one, two]) > before + 20_000
    names = {path.name for path in tmp_path.glob("table-S2*.tex")}
    assert names == {f"table-S2-{each.arm}.tex" for each in (one, two)}
    assert "adapter init × data order" in (tmp_path / "tables.md").read_text()
    compile_with_tables(tmp_path, [one])
    assert [path.name for path in tmp_path.glob("table-S2*.tex")] == [f"table-S2-{one.arm}.tex"]


def compile_with_tables(folder: Path, experiments: list[Measurements]) -> int:
    """Compile a PDF of the paper's tables and these experiments; return its size."""
    render_tables(group_arms(read_published(ROOT / "paper" / "published")), folder, None, experiments)
    return compile_paper(folder).stat().st_size


def test_measurements_are_read_as_they_were_written(tmp_path: Path) -> None:
    measured = changed(made(additive), JOINT, 3, perplexity=math.inf)
    found = attribute(measured)
    path = tmp_path / "attribution.json"
    write_attribution(measured, found, sentences(measured, found), path)
    assert read_measured(path) == measured
    content = json.loads(path.read_text())
    assert content["sentences"] == sentences(measured, found)
    assert content["analysis"]["decompositions"][MAIN]["replicates"] == 6
    assert "Infinity" not in path.read_text()


def test_an_invalid_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "attribution.json"
    with pytest.raises(MissingError, match=r"attribution\.json: cannot be read"):
        read_measured(path)
    measured = made(additive)
    write_attribution(measured, attribute(measured), [], path)
    content = json.loads(path.read_text())

    def with_measured(**changes: object) -> str:
        return json.dumps(content | {"measured": content["measured"] | changes})

    lacking = [each for each in content["measured"]["outcomes"] if each["condition"] != "dropout"]
    joint = max(each["replicate"] for each in content["measured"]["outcomes"] if each["condition"] == "joint")
    cut = [
        each
        for each in content["measured"]["outcomes"]
        if (each["condition"], each["replicate"]) != ("joint", joint)
    ]
    baseline = [
        each for each in content["measured"]["outcomes"] if each["condition"] in ("baseline", "repeat")
    ]
    for text, words in (
        ("[]", "not an attribution of format"),
        (with_measured(freed=["../x"]), r"measured\.freed\.0: expected 'adapter_init'"),
        (with_measured(pairs=[["dropout"]]), "a pair must be two of the freed sources"),
        (with_measured(one_ulp=0.0), r"measured\.one_ulp: expected more than 0"),
        (with_measured(model="x/../../evil"), r"measured\.model: expected "),
        (with_measured(freed=["dropout", "dropout"]), "frees a source twice"),
        (with_measured(replicates=1), r"measured\.replicates: expected at least 2"),
        (with_measured(freed=[], outcomes=baseline), "no condition to compare with its baseline"),
        (with_measured(outcomes=cut), "condition joint has the replicates "),
        (json.dumps(content | {"format": 99}), "not an attribution of format"),
        (with_measured(replicates="many"), r"measured\.replicates"),
        (with_measured(outcomes=[{}]), r"measured\.outcomes\.0\."),
        (with_measured(outcomes=lacking), "no condition dropout"),
        (with_measured(replicates=8), "has the replicates"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_measured(path)


def test_an_invalid_file_does_not_prevent_other_tables(tmp_path: Path) -> None:
    measured = made(additive)
    for name, text in (("one", "{}"), ("two", None)):
        path = tmp_path / "made@attribute" / "model" / name / "attribution.json"
        path.parent.mkdir(parents=True)
        if text is None:
            write_attribution(measured, attribute(measured), [], path)
        else:
            path.write_text(text)
    notes: list[str] = []
    assert read_experiments("made", tmp_path, notes.append) == [measured]
    assert len(notes) == 1
    assert notes[0].startswith("no table S2 or figure S2: ")
    assert "one/attribution.json" in notes[0]


def test_per_cents_have_two_digits_or_are_whole() -> None:
    shown = [percent(value) for value in (None, 0, 0.000123, 0.0949, 0.0951, 0.5, 1.234, -0.2)]
    assert shown == ["—", "0 %", "0.012 %", "9.5 %", "10 %", "50 %", "123 %", "-20 %"]


def test_an_outcome_without_a_positive_perplexity_has_no_logarithm() -> None:
    assert math.isnan(dataclasses.replace(outcome(BASELINE, 1, 2.0), perplexity=0.0).log_perplexity)
