"""Tables S1 and S1b from made-up results and from the paper's numbers."""

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkout import ROOT, needs_latex
from support.made_results import (
    PERPLEXITIES,
    arm,
    compile_cleanly,
    missing,
    render_tables,
    study,
    table,
    trial,
)

from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.write import panels
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.published import read_published

PUBLISHED = read_published(ROOT / "paper" / "published")


def cells(made: Table, row: str, group: str) -> dict[str, str]:
    """Return a row's cells under a heading."""
    (found,) = [each for each in made.rows if each[0] == row]
    return {
        headings[-1]: cell
        for headings, cell in zip(made.columns, found[1:], strict=True)
        if headings[0] == group
    }


def numbers(results: object) -> list[str]:
    return [made.number for made in make_tables(group_arms(results))]  # type: ignore[arg-type]


def test_statistics_of_the_papers_numbers() -> None:
    made = table(PUBLISHED, "S1")
    assert [row[0] for row in made.rows] == [
        f"{title} {bits}"
        for title in ("GPT-NeoX-20B", "Llama2-7B", "GPT-NeoXT-chat-20B", "Llama2-chat-7B")
        for bits in ("8-bit", "32-bit")
    ]
    assert cells(made, "Llama2-7B 8-bit", "perplexity") == {
        "mean": "99,240",
        "SD": "99,700",
        "SD, 95 %": "—",
        "CV": "1.00",
        "median": "109,600",
        "MAD": "110,000",
        "range": "12.47–233,800",
    }
    assert cells(made, "Llama2-chat-7B 8-bit", "runs") == {
        "n": "7",
        "diverged": "0 of 7",
        "share diverged": "0–41 %",
        "worse than base": "5 of 7",
        "share worse": "29–96 %",
    }
    assert cells(made, "GPT-NeoX-20B 8-bit", "seconds to fine-tune")["mean"] == "3,131.3"
    assert not any(headings[0] == "final loss" for headings in made.columns)


def test_8_bit_trials_spread_more_in_all_four_models_of_the_paper() -> None:
    made = table(PUBLISHED, "S1b")
    ratios = {row[0]: cells(made, row[0], "perplexity") for row in made.rows}
    assert {title: (row["ratio"], row["95 % interval"]) for title, row in ratios.items()} == {
        "GPT-NeoX-20B 8-bit / 32-bit": ("44.6", "14.7–154"),
        "Llama2-7B 8-bit / 32-bit": ("396", "28.4–4,140"),
        "GPT-NeoXT-chat-20B 8-bit / 32-bit": ("32.4", "9.81–187"),
        "Llama2-chat-7B 8-bit / 32-bit": ("486", "188–1,350"),
    }
    assert {(row["p"], row["Holm"]) for row in ratios.values()} == {("0.0022", "0.0087")}


@pytest.mark.parametrize("number", ["S1", "S1b"])
def test_statistics_of_the_papers_numbers_are_noted_as_computed_here(number: str) -> None:
    made = table(PUBLISHED, number)
    assert made.notes[0] == "Statistics are computed here from the paper's values."
    other = table([replace(row, study="paper") for row in PUBLISHED], number)
    assert not any("computed here" in note for note in other.notes)


def test_fewer_than_two_values_give_no_table() -> None:
    assert "S1" not in numbers([trial()])
    assert "S1" not in numbers([missing(trial=1), missing(trial=2)])
    assert numbers(arm("adamw-8bit", [3.0, 4.0]))[-3:] == ["S1", "S4", "S4b"]
    both = arm("adamw-8bit", [3.0, 4.0]) + arm("adamw-32bit", [3.0, 4.0])
    assert numbers(both)[-4:] == ["S1", "S1b", "S4", "S4b"]


def test_identical_trials_have_zeros() -> None:
    results = arm("adamw-8bit", [3.567] * 7) + arm("adamw-32bit", [3.567] * 7)
    made = table(results, "S1")
    assert cells(made, "GPT-NeoX-20B 8-bit", "perplexity") == {
        "mean": "3.567", "SD": "0", "SD, 95 %": "—", "CV": "0",
        "median": "3.567", "MAD": "0", "range": "3.567",
    }  # fmt: skip
    compared = table(results, "S1b")
    assert cells(compared, "GPT-NeoX-20B 8-bit / 32-bit", "perplexity") == {
        "spread": "0", "of the other": "0", "ratio": "—", "95 % interval": "—", "p": "1", "Holm": "1",
    }  # fmt: skip
    varied = table(arm("adamw-8bit", PERPLEXITIES) + arm("adamw-32bit", [3.567] * 7), "S1b")
    assert cells(varied, "GPT-NeoX-20B 8-bit / 32-bit", "perplexity")["ratio"] == "inf"
    assert "nan" not in repr((made.rows, compared.rows, varied.rows))


def test_values_that_are_not_finite_are_counted_and_noted() -> None:
    results = arm("adamw-8bit", [*PERPLEXITIES, math.nan, math.inf]) + arm("adamw-32bit", PERPLEXITIES)
    made = table(results, "S1")
    row = cells(made, "GPT-NeoX-20B 8-bit", "perplexity")
    assert (row["mean"], row["SD"]) == ("3.371", f"{statistics.stdev(PERPLEXITIES):.3f}")
    assert row["range"] == "2.900–inf"
    assert cells(made, "GPT-NeoX-20B 8-bit", "runs")["diverged"] == "2 of 9"
    assert "Fewer values than runs: GPT-NeoX-20B 8-bit perplexity: 7, and 2 not finite." in made.notes
    assert any(note.startswith("Values that are not finite are left out of mean") for note in made.notes)
    compared = table(results, "S1b")
    assert (
        "Not finite, and so further away than all others: GPT-NeoX-20B 8-bit perplexity (2)."
        in compared.notes
    )
    assert cells(compared, "GPT-NeoX-20B 8-bit / 32-bit", "perplexity")["ratio"] == "inf"
    assert "nan" not in repr((made.rows, compared.rows))


def test_too_few_values_are_dashes_with_a_note() -> None:
    made = table(arm("adamw-8bit", [3.0, 4.0]) + arm("adamw-32bit", [3.0, 4.0]), "S1")
    row = cells(made, "GPT-NeoX-20B 8-bit", "perplexity")
    assert (row["SD"], row["SD, 95 %"]) == ("0.707", "—")
    assert any(note.startswith("—: not measured, or too few values") for note in made.notes)
    few = table(arm("adamw-8bit", PERPLEXITIES[:4]) + arm("adamw-32bit", PERPLEXITIES), "S1b")
    row = cells(few, "GPT-NeoX-20B 8-bit / 32-bit", "perplexity")
    assert row["ratio"] != "—"
    assert (row["p"], row["Holm"], row["95 % interval"]) == ("—", "—", "—")
    assert any("a test needs 5 values" in note for note in few.notes)


def test_unfinished_and_stale_trials_are_noted() -> None:
    results = arm("adamw-8bit", PERPLEXITIES)
    results[0] = replace(results[0], status="stale", stale_inputs=["code"])
    results[1] = replace(results[1], status="failed")
    made = table(results, "S1")
    assert cells(made, "GPT-NeoX-20B 8-bit", "runs")["n"] == "6"
    assert "Not in these numbers: 1 of 7 trials: 1 failed." in made.notes
    assert any("Stale (changed since: code)" in note for note in made.notes)
    assert not any("not done" in note or "failed" in note for note in table(study(), "S1").notes)


def test_each_measure_is_a_panel_in_latex_and_a_grid_in_markdown(tmp_path: Path) -> None:
    for number in ("S1", "S1b"):
        made = table(PUBLISHED, number)
        groups = list(dict.fromkeys(headings[0] for headings in made.columns))
        parts = [[heading.text for heading in part.levels[0]] for part in panels(made)]
        assert parts == [[group] for group in groups]
        render_tables(group_arms(PUBLISHED), tmp_path)
        text = (tmp_path / f"table-{number}.md").read_text(encoding="utf-8")
        heads = re.findall(r"^\| Arm .*\n", text, re.MULTILINE)
        assert len(heads) == len(groups)
        assert all(group in head for group, head in zip(groups, heads, strict=True))
        assert len(re.findall(r"^\| Llama2-7B 8-bit", text, re.MULTILINE)) == len(groups)


@needs_latex
def test_latex_of_unusual_statistics_compiles(tmp_path: Path) -> None:
    results = [
        *arm("adamw-8bit", [1e300, math.nan, 1e-9, 5.0, 12345.678], model_title="[odd] & " * 3),
        *arm("adamw-32bit", [3.567] * 7, model_title="[odd] & " * 3),
    ]
    render_tables(group_arms(results), tmp_path)
    compile_cleanly(tmp_path)


def test_measures_are_not_split_by_long_titles() -> None:
    long = {"model_title": "miniature GPT-NeoXT-chat-20B"}
    losses = [7.001, 7.036, 7.0131, 7.0112, 7.0187, 7.0054, 7.0265]
    results = [
        replace(row, final_loss=loss, test_seconds=loss / 35)
        for bits in ("adamw-8bit", "adamw-32bit")
        for row, loss in zip(arm(bits, [300 * value for value in PERPLEXITIES], **long), losses, strict=True)
    ]
    parts = [[heading.text for heading in part.levels[0]] for part in panels(table(results, "S1"))]
    assert [each for part in parts for each in part] == [
        "runs", "perplexity", "final loss", "seconds to fine-tune", "seconds to test",
    ]  # fmt: skip
