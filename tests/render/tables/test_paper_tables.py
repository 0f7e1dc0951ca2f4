"""Tables 1 to 11 from made-up results."""

import itertools
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkout import ROOT, needs_latex
from support.made_results import (
    ANY_TEXT,
    HOSTILE,
    MODELS,
    ORDINARY,
    QUESTIONS,
    QUOTES,
    TEMPLATES,
    compile_cleanly,
    missing,
    render_tables,
    study,
    table,
    trial,
)

from qlora_repeat.errors import UsageError
from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.tables.write import panels, write_tables
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.scope import banner
from qlora_repeat.results.trial_result import ExampleLosses, Response, write_results


def summary(made: Table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in made.summary}


def test_tables_have_the_papers_numbers_and_order(tmp_path: Path) -> None:
    written = [path.name for path in render_tables(group_arms(study()), tmp_path)]
    expected = [*(f"{number:02}" for number in range(1, 12)), "S1", "S1b", "S4", "S4b"]
    numbers = [f"table-{number}.{kind}" for number in expected for kind in ("tex", "md")]
    assert written == [*numbers, "tables.md", "tables.tex", "all.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)
    headings = re.findall(
        r"^\*\*Table (\w+)\.\*\*", (tmp_path / "tables.md").read_text(encoding="utf-8"), re.M
    )
    assert headings == [number.lstrip("0") for number in expected]
    assert re.findall(r"table-\w+", (tmp_path / "tables.tex").read_text(encoding="utf-8")) == [
        name.removesuffix(".tex") for name in numbers[::2]
    ]


def test_the_table_of_perplexities_has_a_column_for_each_arm_and_a_row_for_each_trial() -> None:
    made = table(study(), "1")
    assert made.columns == [
        (title, bits) for title in ("GPT-NeoX-20B", "Llama2-7B") for bits in ("8-bit", "32-bit")
    ]
    assert [row[0] for row in made.rows] == list("1234567")
    assert made.rows[0][1:] == ["233,812.79", "3.568", "233,812.79", "3.568"]
    assert "pocket" in made.source
    assert "NVIDIA A100" in made.source
    assert "2026-01-01 to 2026-01-07" in made.source
    assert "torch 2.13.0" in made.source


def test_the_summary_matches_the_statistics_module() -> None:
    values = [3.5671, 3.5614, 3.3792, 12.4713]
    found = summary(table([trial(trial=n, perplexity=value) for n, value in enumerate(values, 1)], "1"))
    assert found["mean"] == [f"{statistics.mean(values):.3f}"]
    assert found["SD"] == [f"{statistics.stdev(values):.3f}"]
    assert found["range"] == ["3.379–12.471"]
    assert found["n"] == ["4"]
    assert found["base"] == ["7.040"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.567, "3.567"),
        (233812.79, "233,812.79"),
        (3.47, "3.47"),
        (3.5671, "3.567"),
        (985.00031, "985.000"),
        (999.9996, "1,000.00"),
        (21024.0, "21,024"),
        (38347.2, "38,347.2"),
        (38347.256, "38,347.26"),
        (1.2e30, "1.200e+30"),
        (0.00021, "0.00021"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_readable_at_any_size(value: float, shown: str) -> None:
    assert table([trial(perplexity=value)], "1").rows == [["1", shown]]


@given(st.floats(0.01, 1e7, exclude_max=True))
def test_numbers_have_at_most_their_own_decimals(value: float) -> None:
    shown = table([trial(perplexity=value)], "1").rows[0][1]
    decimals = len(shown.partition(".")[2])
    assert float(shown.replace(",", "")) == round(value, decimals)
    assert decimals <= (2 if value >= 1000 else 3)
    exact = Decimal(repr(value))
    if exact == round(exact, 2):
        assert Decimal(shown.replace(",", "")) == exact
        assert decimals == 0 or not shown.endswith("0")


def test_a_small_deviation_is_not_shown_as_zero() -> None:
    apart = summary(table([trial(trial=1), trial(trial=2, perplexity=3.5670001)], "1"))
    same = summary(table([trial(trial=1), trial(trial=2)], "1"))
    assert apart["SD"] == ["7.1e-08"]
    assert same["SD"] == ["0"]


def test_a_diverged_trial_is_kept_and_noted() -> None:
    made = table([trial(trial=1), trial(trial=2, perplexity=math.inf, diverged_at=12)], "1")
    assert [row[1] for row in made.rows] == ["3.567", "inf"]
    found = summary(made)
    assert (found["mean"], found["SD"], found["range"], found["n"]) == (
        ["inf"],
        ["nan"],
        ["3.567–inf"],
        ["2"],
    )
    assert any("GPT-NeoX-20B 8-bit run 2 (from step 12)" in note for note in made.notes)


def test_perplexity_of_answers_only_is_said() -> None:
    notes = {given: table([trial(answers_only=given)], "1").notes for given in (True, None)}
    assert "Perplexity is of the answers only: GPT-NeoX-20B." in notes[True]
    assert not [note for note in notes[None] if "answers only" in note]


@pytest.mark.parametrize("status", ["failed", "stale", "running"])
def test_an_unfinished_trial_is_a_dash_with_a_note(status: str) -> None:
    results = [trial(trial=1), trial(trial=2, status=status), missing(trial=3)]
    for number in ("1", "4", "10"):
        made = table(results, number)
        assert [set(row[1:]) == {"—"} for row in made.rows] == [False, True, True]
        counted = ", ".join(sorted(("1 missing", f"1 {status}"), key=lambda one: one[2:]))
        assert made.notes[-1] == f"No value (—) from 2 of 3 trials: {counted}."
    assert summary(table(results, "1"))["n"] == ["1"]
    assert summary(table(results, "1"))["SD"] == ["—"]


STALE = {"status": "stale", "stale_inputs": ["code", "lock"]}


def test_requested_stale_trials_have_values_and_a_footnote() -> None:
    results = [
        trial(trial=1),
        trial(trial=2, perplexity=4.5, **STALE),
        trial(trial=3, perplexity=5.5, **STALE),
        trial(trial=4, perplexity=6.5, **(STALE | {"stale_inputs": ["alpha"]})),
        trial(trial=1, optimizer="adamw-32bit", **STALE),
    ]
    notes = [
        "Stale (changed since: code, lock): GPT-NeoX-20B 8-bit run 2, 3; GPT-NeoX-20B 32-bit run 1.",
        "Stale (changed since: alpha): GPT-NeoX-20B 8-bit run 4.",
    ]
    made = table(results, "1")
    assert [row[1] for row in made.rows] == ["3.567", "4.500", "5.500", "6.500"]
    assert summary(made)["n"] == ["4", "1"]
    assert summary(made)["mean"][0] == f"{statistics.mean([3.567, 4.5, 5.5, 6.5]):.3f}"
    assert all(
        [note for note in one.notes if "Stale (" in note] == notes
        for one in make_tables(group_arms(results))
        if one.number != "S4b"  # it belongs to S4
    )


def test_a_footnote_names_only_the_stale_trials_that_a_table_uses() -> None:
    results = [trial(trial=1), trial(trial=2, test_seconds=None, train_seconds=None, **STALE)]
    assert any("Stale (" in note for note in table(results, "1").notes)
    assert not any("Stale (" in note for note in table(results, "10").notes)
    assert table(results, "10").notes[-1] == (
        "No value (—) from 1 of 2 trials: 1 stale, but without this value."
    )
    assert not any("Stale (" in note for one in make_tables(group_arms([trial()])) for note in one.notes)


def test_a_stale_base_has_a_footnote_in_tables_that_show_it() -> None:
    results = [trial(trial=1, stale_base_inputs=["code"]), trial(trial=2, stale_base_inputs=["code"])]
    note = "Stale (changed since: code): GPT-NeoX-20B before fine-tuning."
    assert note in table(results, "1").notes
    assert note not in table(results, "10").notes


def test_footnotes_of_stale_trials_are_in_both_files(tmp_path: Path) -> None:
    render_tables(group_arms([trial(**STALE)]), tmp_path)
    for name in ("table-01.md", "table-01.tex", "table-04.md", "table-10.tex"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert re.search(r"Stale \(changed since: code, lock\): GPT-NeoX-20B 8-bit run 1\.", text), name


def test_the_source_names_the_profile_of_randomness() -> None:
    assert "Study: pocket. Randomness: bitwise. Device:" in table([trial(randomness="bitwise")], "1").source
    both = [trial(randomness="bitwise"), missing(trial=2, randomness="seeded")]
    assert all("Randomness: bitwise; seeded." in made.source for made in make_tables(group_arms(both)))
    assert not any("Randomness" in made.source for made in make_tables(group_arms([trial()])))


def test_a_value_that_a_done_trial_lacks_is_noted() -> None:
    made = table([trial(trial=1), trial(trial=2, test_seconds=None)], "10")
    assert [row[2] for row in made.rows] == ["1.46", "—"]
    assert made.notes[-1] == "No value (—) from 1 of 2 trials: 1 done, but without this value."


def test_complete_tables_have_no_note_of_missing_trials() -> None:
    assert not any("No value" in note for made in make_tables(group_arms(study())) for note in made.notes)


def test_a_study_without_finished_trials_has_dashes() -> None:
    made = make_tables(group_arms([missing(trial=number) for number in (1, 2)]))
    assert [one.number for one in made] == ["1", "3", "10", "S4", "S4b"]
    assert made[0].rows == [["1", "—"], ["2", "—"]]
    assert made[0].notes[-1] == "No value (—) from 2 of 2 trials: 2 missing."


def test_memory_is_a_share_of_the_gpu_if_known_and_otherwise_resident() -> None:
    gpu = [trial(trial=n, peak_memory_share=share) for n, share in ((1, 0.7627), (2, 0.7629))]
    assert table(gpu, "3").rows == [["GPT-NeoX-20B", "76.28"]]
    assert table(gpu, "3").columns == [("8-bit (% of GPU)",)]
    cpu = [trial(trial=1), trial(trial=2, peak_memory_bytes=1400 * 2**20)]
    assert table(cpu, "3").rows == [["GPT-NeoX-20B", "1,050.0"]]
    assert table(cpu, "3").columns == [("8-bit (MiB)",)]
    assert "resident" in table(cpu, "3").caption
    assert table([*gpu, trial(trial=3)], "3").columns == [("8-bit (MiB)",)]


def test_responses_are_from_the_highest_temperature_and_follow_their_prompt() -> None:
    responses = [
        Response("Your silence will", 0.1, 0.1, " be cold"),
        Response("Your silence will", 1.0, 1.0, " be warm"),
        Response("Your silence will", 1.0, 0.5, " be second"),
    ]
    made = table([trial(responses=responses)], "4")
    assert made.rows == [["1", "Your silence will be warm"]]
    assert "temperature 1, top-p 1" in made.caption


def test_a_long_response_is_truncated_and_noted() -> None:
    made = table([trial(responses=[Response("p", 1.0, 1.0, "x" * 401)])], "4")
    assert made.rows == [["1", "p" + "x" * 400 + "…"]]
    assert any("400" in note for note in made.notes)


def test_third_prompts_are_not_shown() -> None:
    three = [Response(f"prompt {number}", 1.0, 1.0, " x") for number in (1, 2, 3)]
    assert [made.number for made in make_tables(group_arms([trial(responses=three)]))] == [
        "1",
        "3",
        "4",
        "6",
        "10",
        "S4",
        "S4b",
    ]


def test_answers_are_letters_or_beginnings() -> None:
    responses = [
        Response(QUESTIONS[0], 1.0, 1.0, " The answer is D", "D"),
        Response(QUESTIONS[1], 1.0, 1.0, " the person who is most popular"),
    ]
    qa = {"task": "question-answering", "model": "chat", "counterpart": "llama2-chat-7b"}
    made = table([trial(**qa, responses=responses), trial(**qa, trial=2, responses=[])], "8")
    assert made.columns == [("8-bit", "Instruction 1"), ("8-bit", "Instruction 2")]
    assert made.rows == [["1", "D", "the person who is mo…"], ["2", "—", "—"]]
    assert any(note.startswith("Instruction 1: If you have no keyboarding") for note in made.notes)


def test_seconds_are_grouped_by_optimizer() -> None:
    made = table(study(), "10")
    assert made.columns[:3] == [
        ("8-bit", "GPT-NeoX-20B", "train (s)"),
        ("8-bit", "GPT-NeoX-20B", "test (s)"),
        ("8-bit", "Llama2-7B", "train (s)"),
    ]
    assert made.rows[0][1:3] == ["38,226.91", "7.410"]


def test_third_models_have_a_letter_and_their_columns() -> None:
    more = {task: titles | {f"third-{task}": f"Third {task}"} for task, titles in MODELS.items()}
    made = {one.number: one for one in make_tables(group_arms(study(models=more)))}
    assert " ".join(made) == "1 2 3 4 5 5b 6 7 7b 8 9 9b 10 11 S1 S1b S4 S4b"
    assert len(made["1"].columns) == 6
    assert made["7b"].name == "table-07b"
    assert "Third question-answering" in made["9b"].caption


def test_a_study_of_other_models_has_its_own_numbers_and_no_claims() -> None:
    own = [replace(row, model=f"my-{row.model}", test_examples=48) for row in study()]
    made = make_tables(group_arms(own))
    assert " ".join(one.number for one in made) == "1 2 3 4 5 6 7 8 9 10 11 S1 S1b"
    only = make_tables(group_arms([row for row in own if row.task == "question-answering"]))
    assert " ".join(one.number for one in only) == "1 2 3 4 5 S1 S1b"
    stand_in = [replace(own[0], counterpart="llama2-7b"), *own[1:]]
    assert make_tables(group_arms(stand_in))[-1].number == "S4b"


def test_each_caption_has_the_test_examples_and_says_if_trials_lack() -> None:
    made = make_tables(group_arms([trial(test_examples=48), missing(trial=2)]))
    assert all("Cut short: 1 of 2 trials done. Test examples: 48." in one.source for one in made)


def test_what_is_above_the_tables_says_that_they_are_cut_short(tmp_path: Path) -> None:
    arms = group_arms([trial(), missing(trial=2)])
    write_tables(make_tables(arms), tmp_path, TEMPLATES, "pocket", banner=banner(arms))
    for name in ("tables.md", "all.tex"):
        assert "Cut short: 1 of 2 trials done" in (tmp_path / name).read_text()


def test_values_of_a_column_have_equal_decimals() -> None:
    made = table([trial(trial=n, perplexity=value) for n, value in enumerate([5.86, 237.0, 5.138], 1)], "1")
    assert [row[1] for row in made.rows] == ["5.860", "237.000", "5.138"]
    assert summary(made)["range"] == ["5.138–237.000"]


def test_a_task_without_models_has_no_tables() -> None:
    only = {"question-answering": MODELS["question-answering"]}
    assert (
        " ".join(made.number for made in make_tables(group_arms(study(models=only))))
        == "2 3 8 9 11 S1 S1b S4 S4b"
    )


def test_other_optimizers_are_shown_by_name() -> None:
    results = [trial(optimizer=name) for name in ("sgd", "adamw-8bit", "lion-8bit")]
    assert table(results, "1").columns == [("GPT-NeoX-20B", name) for name in ("sgd", "8-bit", "lion-8bit")]


def test_all_devices_are_named() -> None:
    made = table([trial(trial=1), trial(trial=2, device="NVIDIA H100")], "1")
    assert "Device: NVIDIA A100; NVIDIA H100." in made.source


def test_models_with_the_same_title_get_different_headings() -> None:
    made = table([trial(model="a"), trial(model="b")], "1")
    assert made.columns == [("GPT-NeoX-20B (a)", "8-bit"), ("GPT-NeoX-20B (b)", "8-bit")]


def test_empty_and_duplicate_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no collected results"):
        render_tables([], tmp_path)
    with pytest.raises(UsageError, match="trial gpt-neox-20b/adamw-8bit/1 has 2 rows"):
        render_tables(group_arms([trial(), trial()]), tmp_path)


def test_only_tables_of_an_earlier_render_are_removed(tmp_path: Path) -> None:
    for name in ("table-05b.tex", "table-02.md", "table-notes.md", "notes.md", "tables.pdf"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    render_tables(group_arms([trial()]), tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"table-notes.md", "notes.md", "tables.pdf", "table-01.md"} <= left
    assert not {"table-05b.tex", "table-02.md"} & left


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT, title=ANY_TEXT)
def test_markdown_rows_have_as_many_cells_as_their_heading(tmp_path: Path, text: str, title: str) -> None:
    responses = [Response(QUOTES[0], 1.0, 1.0, text), Response(text, 1.0, 1.0, text)]
    odd = trial(
        task="question-answering", model="m", model_title=title, study=text, device=text, responses=responses
    )
    results = [trial(responses=responses), odd]
    render_tables(group_arms(results), tmp_path)
    for made in make_tables(group_arms(results)):
        lines = (tmp_path / f"{made.name}.md").read_text(encoding="utf-8").split("\n")
        rows = [line for line in lines if line.startswith("|")]
        assert lines[0].startswith(f"**Table {made.number}.**")
        assert len(rows) == 2 + len(made.rows) + len(made.summary)
        assert {row.count("|") for row in rows} == {2 + len(made.columns)}


def test_wide_tables_are_split_into_panels_of_whole_groups() -> None:
    more = {"text-generation": {f"m{n}": f"Model {n}" for n in range(5)}}
    made = table(study(models=more), "1")
    parts = panels(made)
    assert [[heading.text for heading in part.levels[0]] for part in parts] == [
        ["Model 0", "Model 1"],
        ["Model 2", "Model 3"],
        ["Model 4"],
    ]
    assert [heading.last - heading.first + 1 for part in parts for heading in part.levels[0]] == [2] * 5
    together = [
        [row[0], *itertools.chain(*(part.rows[n][1:] for part in parts))] for n, row in enumerate(made.rows)
    ]
    assert together == made.rows
    assert len(panels(table(study(), "1"))) == 1


def test_the_tables_are_reproducible_in_any_locale_and_time_zone(tmp_path: Path) -> None:
    write_results(study(tuple(text for text in HOSTILE if "\ud800" not in text)), tmp_path / "results.jsonl")
    script = (
        "import sys; import qlora_repeat as qr; qr.tables(sys.argv[1]).write(sys.argv[2]);"
        "assert 'torch' not in sys.modules"
    )
    made = []
    places = (
        ("UTC", "C", "1"),
        ("Pacific/Kiritimati", "de_DE.UTF-8", "2"),
        ("America/Los_Angeles", "POSIX", "3"),
    )
    for zone, locale, seed in places:
        out = tmp_path / locale
        settled = {"TZ": zone, "LC_ALL": locale, "LANG": locale, "PYTHONHASHSEED": seed, "PYTHONUTF8": "0"}
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / "results.jsonl", out],
            check=True,
            env=os.environ | settled | {"PYTHONPATH": str(ROOT / "src")},
        )
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1] == made[2]


@needs_latex
def test_latex_compiles_with_any_response(tmp_path: Path) -> None:
    titles = {"gpt-neox-20b": "GPT-NeoX-20B", "odd": "[Odd] * model_with & a title " + "longer" * 6}
    models = MODELS | {"text-generation": titles}
    drawn = "".join(
        map(chr, [*range(0x21, 0x7F), *range(0xA1, 0x180), *range(0x2010, 0x2040), 0x20AC, 0x2122])
    )
    results = study(
        (*HOSTILE, *ORDINARY, *(drawn[start : start + 60] for start in range(0, len(drawn), 60))),
        models=models,
    )
    results[3] = replace(results[3], status="failed")
    results[5] = replace(results[5], perplexity=math.nan, diverged_at=3)
    render_tables(group_arms(results), tmp_path)
    compile_cleanly(tmp_path)
    if shutil.which("pdftotext"):
        subprocess.run(["pdftotext", "-layout", "all.pdf"], cwd=tmp_path, check=True)
        text = (tmp_path / "all.txt").read_text(encoding="utf-8")
        for shown in ("\\input{/etc/passwd}", "--- --", "$x^2$", "<U+4E2D>", "\\u{202e}evil", '"straight"'):
            assert shown in text


def test_perplexity_has_the_error_of_the_test_set_and_the_share_of_seeds() -> None:
    """Three trials that differ by the same loss in each of two equally long examples."""
    results = [
        replace(
            trial(trial=number),
            perplexity=math.exp(3 + 0.1 * number),
            example_losses=ExampleLosses([4, 9], [10, 10], [20 + number, 40 + number], [True, number < 3]),
        )
        for number in (1, 2, 3)
    ]
    made = table(results, "1")
    rows = {row[0]: row[1] for row in made.summary}
    # Examples are 1 apart from the mean of 3.2, so the standard error is exp(3.2) x sqrt(2 / 2).
    assert rows["SE of the test set"] == "24.5"
    assert rows["due to seeds"] == "0.33 %", "0.1^2 / 3 beside 2 / 2"
    assert rows["examples agree"] == "67 %", "(2 + 1 + 1) of 6"
    assert any("due to seeds: the share of the variance" in note for note in made.notes)
    plain = table([replace(row, example_losses=None) for row in results], "1")
    assert [row[0] for row in plain.summary] == ["mean", "SD", "range", "n", "base"]
