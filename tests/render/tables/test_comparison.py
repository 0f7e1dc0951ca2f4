"""Tables C1 to C11 compare a study with the paper's numbers, or with another study."""

import math
import re
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkout import ROOT, kit, needs_latex
from support.made_results import compile_cleanly, missing, render_tables, study, trial

from qlora_repeat.errors import UsageError
from qlora_repeat.render.tables.comparison import comparison_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import TrialResult, write_results

PUBLISHED = read_published(ROOT / "paper" / "published")
STAND_IN = {"model": "smollm2-135m", "model_title": "SmolLM2-135M", "counterpart": "llama2-7b"}


def compared(results: list[TrialResult], others: list[TrialResult], number: str) -> Table:
    return next(
        made for made in comparison_tables(group_arms(results), group_arms(others)) if made.number == number
    )


def cells(made: Table) -> dict[str, dict[tuple[str, ...], str]]:
    """Return the cells of a table by row name and column heading."""
    return {row[0]: dict(zip(made.columns, row[1:], strict=True)) for row in made.rows + made.summary}


def stand_ins(*values: float) -> list[TrialResult]:
    return [trial(trial=number, perplexity=value, **STAND_IN) for number, value in enumerate(values, 1)]


def test_an_arm_is_compared_with_its_counterpart() -> None:
    ours = [70.5, 71.25, 69.0]
    theirs = [
        row.perplexity
        for row in PUBLISHED
        if (row.model, row.optimizer) == ("llama2-7b", "adamw-8bit") and row.perplexity is not None
    ]
    found = cells(compared(stand_ins(*ours), PUBLISHED, "C1"))
    assert list(found) == ["SmolLM2-135M, 8-bit", "SmolLM2-135M, base"]
    row = {
        heading: text if heading[1] == "model" else float(text.replace(",", ""))
        for heading, text in found["SmolLM2-135M, 8-bit"].items()
    }
    assert row == {
        ("compared with", "model"): "Llama2-7B",
        ("pocket", "mean"): 70.25,
        ("pocket", "SD"): pytest.approx(statistics.stdev(ours), abs=0.0005),
        ("pocket", "median"): 70.5,
        ("pocket", "n"): 3,
        ("published", "mean"): pytest.approx(statistics.mean(theirs), abs=0.005),
        ("published", "SD"): pytest.approx(statistics.stdev(theirs), abs=0.005),
        ("published", "median"): statistics.median(theirs),
        ("published", "n"): 7,
        ("ratio", "mean"): pytest.approx(70.25 / statistics.mean(theirs), rel=0.05),
        ("ratio", "median"): pytest.approx(70.5 / statistics.median(theirs), rel=0.05),
    }


def test_stale_trials_are_noted_with_their_study() -> None:
    ours = stand_ins(1.0, 2.0)
    theirs = [replace(row, study="earlier", stale_base_inputs=["lock"]) for row in ours]
    theirs[1] = replace(theirs[1], status="stale", stale_inputs=["code"])
    made = compared(ours, theirs, "C1")
    assert [note for note in made.notes if "Stale (" in note] == [
        "earlier: Stale (changed since: lock): SmolLM2-135M before fine-tuning.",
        "earlier: Stale (changed since: code): SmolLM2-135M 8-bit run 2.",
    ]
    assert cells(made)["SmolLM2-135M, 8-bit"]["earlier", "n"] == "2"
    assert len([note for note in compared(ours, theirs, "C10").notes if "Stale (" in note]) == 1


def test_bases_are_compared_with_their_number_of_tests() -> None:
    once = stand_ins(1.0, 2.0)
    found = cells(compared(once, PUBLISHED, "C1"))["SmolLM2-135M, base"]
    assert (found["pocket", "n"], found["pocket", "SD"]) == ("1", "—")
    assert (found["published", "mean"], found["published", "SD"], found["published", "n"]) == (
        "7.04",
        "0",
        "7",
    )
    assert found["ratio", "mean"] == "1"
    often = [replace(row, base_perplexities=[7.04, 7.05, 7.06]) for row in once]
    found = cells(compared(often, PUBLISHED, "C1"))["SmolLM2-135M, base"]
    assert (found["pocket", "mean"], found["pocket", "n"]) == ("7.05", "3")


def test_the_papers_models_have_every_table_and_no_note_of_stand_ins() -> None:
    ours = [replace(row, study="paper") for row in PUBLISHED]
    made = comparison_tables(group_arms(ours), group_arms(PUBLISHED))
    assert [table.number for table in made] == ["C1", "C2", "C3", "C10", "C11"]
    for table in made:
        assert ("compared with", "model") not in table.columns
        assert not any("as a stand-in" in note for note in table.notes)
        for row in cells(table).values():
            assert {text for heading, text in row.items() if heading[0] == "ratio"} == {"1"}
            assert [row["paper", name] for name in ("mean",)] == [
                row["published", name] for name in ("mean",)
            ]
    assert any(
        "Different models" in note and "SmolLM2-135M with Llama2-7B" in note
        for note in compared(stand_ins(1.0), PUBLISHED, "C1").notes
    )


def test_memory_is_compared_only_if_both_sides_used_a_gpu() -> None:
    on_cpu = [trial(trial=1)]
    on_gpu = [trial(trial=number, peak_memory_share=0.5 + number / 10) for number in (1, 2)]
    assert "C3" not in [made.number for made in comparison_tables(group_arms(on_cpu), group_arms(PUBLISHED))]
    assert "C3" not in [
        made.number
        for made in comparison_tables(group_arms(on_gpu), group_arms([replace(on_cpu[0], study="b")]))
    ]
    made = compared(on_gpu, PUBLISHED, "C3")
    row = cells(made)["GPT-NeoX-20B, 8-bit"]
    assert (row["pocket", "mean"], row["pocket", "n"]) == ("65", "2")
    assert (row["published", "mean"], row["published", "SD"], row["published", "n"]) == ("76.27", "—", "1")
    assert any("one value for each model and optimizer" in note for note in made.notes)


def test_seconds_are_compared_for_training_and_for_the_test() -> None:
    found = cells(compared([trial(train_seconds=6277.6, test_seconds=1.0)], PUBLISHED, "C10"))
    assert list(found) == ["GPT-NeoX-20B, 8-bit, train", "GPT-NeoX-20B, 8-bit, test"]
    train, test = found.values()
    assert (train["pocket", "mean"], train["published", "mean"]) == ("6,277.6", "3,131.31")
    assert float(train["ratio", "mean"]) == pytest.approx(2.005, abs=0.0006)
    assert float(test["ratio", "mean"]) == pytest.approx(1 / 2.154, abs=0.001)


def test_the_same_model_is_preferred_to_a_counterpart() -> None:
    other = [replace(row, study="other") for row in stand_ins(1.0)]
    both = [*other, replace(other[0], model="larger", model_title="Larger", perplexity=5.0)]
    found = cells(compared(stand_ins(3.0), both, "C1"))
    assert found["SmolLM2-135M, 8-bit"]["other", "mean"] == "1"
    without = [replace(row, counterpart=None) for row in stand_ins(3.0)]
    assert cells(compared(without, both, "C1")) == found


def test_arms_of_another_optimizer_or_task_do_not_match() -> None:
    ours, theirs = (
        "pocket has smollm2-135m for llama2-7b (lion)",
        "published has gpt-neox-20b (8-bit, 32-bit), ",
    )
    with pytest.raises(UsageError, match=f"^no arm in common: {re.escape(ours)}; {re.escape(theirs)}"):
        comparison_tables(group_arms([trial(optimizer="lion", **STAND_IN)]), group_arms(PUBLISHED))
    with pytest.raises(UsageError, match="no arm in common"):
        comparison_tables(group_arms([trial(task="question-answering", **STAND_IN)]), group_arms(PUBLISHED))
    with pytest.raises(UsageError, match="pocket has gpt-neox-20b \\(8-bit\\); an empty file has none"):
        comparison_tables(group_arms([trial()]), [])


def test_arms_without_a_match_are_noted() -> None:
    results = [*stand_ins(1.0), trial(model="new", model_title="New")]
    made = compared(results, PUBLISHED, "C1")
    assert [row[0] for row in made.rows] == ["SmolLM2-135M, 8-bit"]
    assert "Without a match in published: new (8-bit)." in made.notes


def test_unfinished_trials_are_left_out_and_noted() -> None:
    results = [*stand_ins(2.0), replace(stand_ins(1.0, 1.0)[1], status="stale"), missing(trial=1)]
    made = compared(results, PUBLISHED, "C1")
    found = cells(made)
    assert found["SmolLM2-135M, 8-bit"]["pocket", "n"] == "1"
    nothing = found["GPT-NeoX-20B, 8-bit"]
    assert [nothing["pocket", name] for name in ("mean", "SD", "median", "n")] == ["—", "—", "—", "0"]
    assert [nothing["ratio", name] for name in ("mean", "median")] == ["—", "—"]
    assert "Not in pocket's numbers: 3 of 4 trials: 2 missing, 1 stale." in made.notes


def test_a_diverged_trial_is_kept() -> None:
    made = compared(stand_ins(2.0, math.inf, 3.0), PUBLISHED, "C1")
    row = cells(made)["SmolLM2-135M, 8-bit"]
    assert (row["pocket", "mean"], row["pocket", "SD"], row["pocket", "median"]) == ("inf", "nan", "3")
    assert row["ratio", "mean"] == "inf"
    assert any(note.startswith("pocket: Diverged") and "run 2" in note for note in made.notes)
    undefined = compared(stand_ins(2.0, math.nan), PUBLISHED, "C1")
    assert cells(undefined)["SmolLM2-135M, 8-bit"]["pocket", "median"] == "nan"


def test_two_results_of_one_study_have_different_names() -> None:
    made = compared(stand_ins(1.0), stand_ins(2.0), "C1")
    assert {headings[0] for headings in made.columns} == {"pocket", "the other pocket", "ratio"}
    assert cells(made)["SmolLM2-135M, 8-bit"]["ratio", "mean"] == "0.5"


def test_the_source_names_both_sides() -> None:
    source = compared(stand_ins(1.0), PUBLISHED, "C1").source
    assert source.startswith("Study: pocket. Device: NVIDIA A100.")
    assert source.endswith("DOI 10.1109/ACCESS.2024.3470850.")


def test_comparisons_follow_the_papers_tables_and_are_removed_when_not_requested(tmp_path: Path) -> None:
    written = {path.name for path in render_tables(group_arms(study()), tmp_path, group_arms(PUBLISHED))}
    extra = {f"table-{name}.{kind}" for name in ("C01", "C02", "C10", "C11") for kind in ("md", "tex")}
    assert extra < written
    for name in ("tables.md", "tables.tex"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        order = re.findall(r"^\*\*Table (\w+)\.|/table-0?(\w+)\.tex\}", text, re.MULTILINE)
        last = [(one or two).replace("C0", "C") for one, two in order]
        assert last[-9:] == ["11", "S1", "S1b", "S4", "S4b", "C1", "C2", "C10", "C11"]
    (tmp_path / "table-S0.md").touch()
    render_tables(group_arms(study()), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == written - extra


def test_nothing_is_written_if_nothing_can_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no arm in common"):
        render_tables(group_arms([trial(optimizer="lion")]), tmp_path / "out", group_arms(PUBLISHED))
    assert not (tmp_path / "out").exists()


@needs_latex
def test_latex_of_a_comparison_compiles(tmp_path: Path) -> None:
    ours = [replace(row, study="paper", model_title="[odd] & " + row.model_title) for row in PUBLISHED]
    render_tables(group_arms(ours), tmp_path, group_arms(PUBLISHED))
    compile_cleanly(tmp_path)


def test_the_command_compares_a_study(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_results(stand_ins(1.0, 2.0), runs / "pocket" / "results.jsonl")
    write_results(stand_ins(3.0, 4.0), tmp_path / "other.jsonl")
    for other, model in (("published", "Llama2-7B"), (tmp_path / "other.jsonl", ""), ("pocket", "")):
        done = kit("tables", "pocket", "--runs", runs, "--out", tmp_path / "out", "--compare", other)
        assert (done.returncode, done.stderr) == (0, "")
        table = (tmp_path / "out" / "table-C01.md").read_text(encoding="utf-8")
        assert "SmolLM2-135M, 8-bit" in table
        assert model in table
    refused = kit("tables", "pocket", "--runs", runs, "--out", tmp_path / "out", "--compare", "nonesuch")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)
    assert "nonesuch: no such study file" in refused.stderr


def test_make_passes_on_the_comparison() -> None:
    for target, is_asked in (("tables", True), ("all", True), ("status", False)):
        shown = subprocess.run(
            ["make", "-n", target, "KIT_PYTHON=/venv/bin/python", "STUDY=x", "COMPARE=published"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert ('"x" --compare "published"' in " ".join(shown.split())) == is_asked
        assert shown.count("--compare") == is_asked


def test_miniatures_are_noted_as_stand_ins() -> None:
    ours = trial(model="llama2-7b", model_title="miniature Llama2-7B", miniature=True)
    assert any("as a stand-in" in note for note in compared([ours], PUBLISHED, "C1").notes)
