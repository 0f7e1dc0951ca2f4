"""What an attribution makes of outcomes in which a test has planted the causes."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from conftest import ROOT, kit, needs_latex
from made_attribution import FREED, additive, interacting, made, outcome

from qlora_repeat.attribution import MAIN, MEASURES, REST, attribute, find_problems
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.outcomes import BASELINE, JOINT, NUDGE, Measured, read_measured, write_attribution
from qlora_repeat.published import read_published
from qlora_repeat.render.attribution_table import attribution_table
from qlora_repeat.render.attribution_text import percent, sentences
from qlora_repeat.render.pdf import compile_paper
from qlora_repeat.render.tables import render_tables, table_texts

TEMPLATES = ROOT / "paper" / "templates"


def changed(measured: Measured, condition: str, replicate: int, **changes: object) -> Measured:
    """The experiment with one trial changed."""
    outcomes = [
        dataclasses.replace(each, **changes)
        if (each.condition, each.replicate) == (condition, replicate)
        else each
        for each in measured.outcomes
    ]
    return dataclasses.replace(measured, outcomes=outcomes)


def test_planted_variances_are_recovered() -> None:
    found = attribute(made(additive, replicates=400)).decompositions[MAIN]
    assert [found.shares[source].value for source in FREED] == pytest.approx([0.9, 0.09, 0.01], abs=0.06)
    assert [found.alone[source].value for source in FREED] == pytest.approx([0.9, 0.09, 0.01], abs=0.08)
    assert found.interactions.value == pytest.approx(0, abs=1e-3)
    assert found.sum_alone.value == pytest.approx(1, abs=0.1)
    assert found.predicted.value == pytest.approx(1, abs=1e-4)


def test_seven_replicates_name_the_largest_source_and_find_the_sources_additive() -> None:
    measured = made(additive)
    found = attribute(measured)
    decomposition = found.decompositions[MAIN]
    assert (decomposition.largest, decomposition.additive) == ("adapter_init", "additive")
    assert decomposition.largest_in is not None
    assert decomposition.largest_in > 0.95
    assert found.interpretable
    first, second, third, fourth = sentences(measured, found)
    assert "adapter init" in first
    assert first.index("adapter init") < first.index("data order") < first.index("dropout")
    assert second.startswith("The sources are additive")
    assert "2,000 times as far" in third
    assert fourth.startswith("With adamw-8bit and everything pinned, log perplexity differs by 0.25;")


def test_spreads_have_intervals_with_seven_replicates_and_none_with_four() -> None:
    effects = {effect.condition: effect.spreads[MAIN] for effect in attribute(made(additive)).effects}
    spread = effects["adapter_init"]
    assert spread.sd is not None
    assert spread.sd_low is not None
    assert spread.sd_high is not None
    assert spread.sd_low < spread.sd < spread.sd_high
    few = attribute(made(additive, replicates=4))
    assert {effect.spreads[MAIN].sd_low for effect in few.effects} == {None}
    assert few.decompositions[MAIN].largest_in is None


def test_shares_sum_to_one_for_every_measure() -> None:
    for found in attribute(made(interacting, pairs=True)).decompositions.values():
        assert sum(share.value for share in found.shares.values()) == pytest.approx(1)
    assert list(attribute(made(additive)).decompositions) == list(MEASURES)


def test_sources_that_matter_only_together_are_not_additive_and_the_pair_is_named() -> None:
    measured = made(interacting, pairs=True)
    found = attribute(measured).decompositions[MAIN]
    assert found.additive == "not additive"
    together = found.shares["adapter_init × data_order"]
    assert together.value is not None
    assert together.value > 0.9
    for name in ("adapter_init", "data_order", "adapter_init × dropout", REST):
        assert found.shares[name].value == pytest.approx(0, abs=1e-3)
    assert found.above_floor is not None
    assert found.above_floor < 1e-6
    assert "not additive" in sentences(measured, attribute(measured))[1]


def test_what_is_no_more_than_a_nudge_would_do_is_not_above_the_floor() -> None:
    found = attribute(made(additive, noise=1e-3, seed=3)).decompositions[MAIN]
    assert found.above_floor is not None
    assert found.above_floor > 0.01
    assert found.additive == "additive"


def test_a_nudge_is_told_by_its_growth_and_beside_all_sources() -> None:
    found = attribute(made(additive, noise=1e-2)).amplification
    assert found is not None
    assert found.factor == pytest.approx(2000)
    assert found.sd == pytest.approx(1e-2, rel=0.6)
    assert found.of_joint == pytest.approx(1e-2, rel=0.8)


def test_the_other_optimizer_is_compared_over_the_same_seeds() -> None:
    found = attribute(made(additive, noise=1e-3)).precision
    assert found is not None
    assert found.pinned == pytest.approx(0.25)
    assert found.paired.value == pytest.approx(0, abs=2e-3)
    assert found.spread.value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("condition", "replicate", "changes", "words"),
    [
        (BASELINE, 2, {"first_step": 3, "first_kind": "loss"}, ["baseline", "step 3, in loss", "kernels"]),
        (BASELINE, 2, {"adapter_digest": "other"}, ["other adapters after one trace"]),
        (BASELINE, 2, {"perplexity": 7.0}, ["other perplexities after one trace"]),
        ("dropout", 4, {"seeds": {"split": 1}}, ["dropout 4 has another seed of split"]),
        (
            "dropout",
            4,
            {"first_step": 0, "first_kind": "init"},
            ["dropout 4", "in init, at step 0", "gradient"],
        ),
        (NUDGE, 1, {"first_kind": "data"}, ["nudge 1 first differs in data"]),
        (JOINT, 7, {"device": "another CPU"}, ["2 kinds of device", "another CPU"]),
    ],
)
def test_what_is_not_pinned_is_told(condition: str, replicate: int, changes: dict, words: list[str]) -> None:
    measured = changed(made(additive), condition, replicate, **changes)
    problems = find_problems(measured)
    assert problems
    assert all(word in problems[0] for word in words), problems
    found = attribute(measured)
    assert not found.interpretable
    assert sentences(measured, found)[0].startswith("Not to be interpreted: ")
    assert any("Not to be interpreted" in note for note in attribution_table(measured, found).notes)


@pytest.mark.parametrize(("digest", "code"), [("another", 7), (None, 0)])
def test_what_is_not_to_be_interpreted_ends_with_a_code_of_its_own(
    digest: str | None, code: int, tmp_path: Path
) -> None:
    """Two trials of the baseline that are not alike."""
    measured = made(additive)
    outcomes = [
        dataclasses.replace(each, adapter_digest=digest, first_step=1, first_kind="loss")
        if digest and (each.condition, each.replicate) == (BASELINE, 2)
        else each
        for each in measured.outcomes
    ]
    measured = dataclasses.replace(measured, outcomes=outcomes)
    path = tmp_path / "attribution.json"
    write_attribution(measured, attribute(measured), [], path)
    done = kit("attribute", "--results", path, "--out", tmp_path / "out")
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("Not to be interpreted: ") == bool(code)


def test_an_experiment_without_anything_amiss_has_no_problems() -> None:
    assert find_problems(made(interacting, pairs=True)) == []


@pytest.mark.parametrize("perplexity", [math.inf, math.nan])
def test_a_trial_without_finite_perplexity_leaves_shares_open_but_not_the_rest(perplexity: float) -> None:
    measured = changed(made(additive), JOINT, 3, perplexity=perplexity, diverged_at=5)
    found = attribute(measured)
    assert found.decompositions[MAIN].largest is None
    assert found.decompositions[MAIN].additive == "cannot tell"
    assert found.decompositions["late loss"].largest == "adapter_init"
    assert "cannot be told" in sentences(measured, found)[0]
    table = attribution_table(measured, found)
    assert any("not finite: all together 1" in note for note in table.notes)


def test_one_source_alone_has_a_spread_and_no_shares() -> None:
    measured = made(additive, freed=["dropout"])
    kept = [each for each in measured.outcomes if each.condition != JOINT]
    measured = dataclasses.replace(measured, outcomes=kept)
    found = attribute(measured)
    assert found.decompositions == {}
    assert sentences(measured, found)[0].startswith(
        "Dropout alone spreads log perplexity by a standard deviat"
    )
    assert found.amplification is not None
    assert found.amplification.of_joint is not None
    assert attribution_table(measured, found).summary == []


def test_a_baseline_alone_with_a_nudge_is_told_as_such() -> None:
    measured = made(additive, freed=[])
    kept = [each for each in measured.outcomes if each.condition in (BASELINE, NUDGE)]
    measured = dataclasses.replace(measured, outcomes=kept)
    (only,) = sentences(measured, attribute(measured))
    assert only.startswith("One weight of the initial adapter")


def test_the_table_has_a_row_for_each_condition_and_its_files_the_same_bytes() -> None:
    measured = made(interacting, pairs=True)
    found = attribute(measured)
    table = attribution_table(measured, found)
    assert [row[0] for row in table.rows][:2] == ["nothing (baseline)", "adapter init"]
    assert len(table.rows) == len(measured.conditions)
    assert {len(row) for row in table.rows + table.summary} == {1 + len(table.columns)}
    assert [row[0] for row in table.summary] == ["only together", "sum of alone"]
    texts = table_texts(table, TEMPLATES)
    assert sorted(texts) == ["table-S2.md", "table-S2.tex"]
    assert "adapter init × data order" in texts["table-S2.md"]
    assert texts == table_texts(attribution_table(measured, attribute(measured)), TEMPLATES)


@needs_latex
def test_the_table_stays_beside_those_of_the_study_and_comes_into_its_pdf(tmp_path: Path) -> None:
    measured = made(additive, pairs=True)
    for name, text in table_texts(attribution_table(measured, attribute(measured)), TEMPLATES).items():
        (tmp_path / name).write_text(text)
    before = compile_with_tables(tmp_path)
    assert (tmp_path / "table-S2.tex").is_file()
    (tmp_path / "table-S2.tex").unlink()
    assert before > compile_with_tables(tmp_path)


def compile_with_tables(folder: Path) -> int:
    """The size of the PDF of the paper's tables, and what else is there."""
    render_tables(read_published(ROOT / "paper" / "published"), folder, TEMPLATES)
    return compile_paper(folder).stat().st_size


def test_the_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    measured = changed(made(additive), JOINT, 3, perplexity=math.inf)
    found = attribute(measured)
    path = tmp_path / "attribution.json"
    write_attribution(measured, found, sentences(measured, found), path)
    assert read_measured(path) == measured
    content = json.loads(path.read_text())
    assert content["sentences"] == sentences(measured, found)
    assert content["analysis"]["decompositions"][MAIN]["additive"] == "cannot tell"


def test_a_file_that_is_none_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "attribution.json"
    with pytest.raises(MissingError, match=r"attribution\.json: not readable"):
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
    for text, words in (
        ("[]", "not an attribution of format"),
        (with_measured(freed=["../x"]), "it frees '../x'; sources are adapter_init, "),
        (with_measured(pairs=[["dropout"]]), "a pair is not of two sources"),
        (with_measured(one_ulp=0.0), "one_ulp is 0.0"),
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


def test_per_cents_have_two_digits_or_are_whole() -> None:
    shown = [percent(value) for value in (None, 0, 0.000123, 0.0949, 0.0951, 0.5, 1.234, -0.2)]
    assert shown == ["—", "0 %", "0.012 %", "9.5 %", "10 %", "50 %", "123 %", "-20 %"]


def test_an_outcome_without_a_positive_perplexity_has_no_logarithm() -> None:
    assert math.isnan(dataclasses.replace(outcome(BASELINE, 1, 2.0), perplexity=0.0).log_perplexity)
