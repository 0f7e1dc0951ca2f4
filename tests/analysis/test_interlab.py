"""Comparisons of laboratories: Table S5 from made-up results and from archives."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.laboratory import Lab, failure, run
from support.made_results import missing, trial
from support.places import at

from qlora_repeat.analysis.interlab import SharedArm, compare_laboratories, laboratory, reproducibility
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.render.tables.interlab import laboratory_table, sentences
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.trial_result import TrialResult, write_results

TAMPA = [8.1, 8.4, 7.9, 8.3, 8.0, 8.2, 8.6]
OSLO = [8.8, 9.1, 8.7, 9.3, 8.9]


def rows(perplexities: list[float], letter: str, **changes: Any) -> list[TrialResult]:
    """Return trials with these perplexities and different adapters."""
    return [
        trial(trial=number, perplexity=value, adapter_digest=f"{letter}{number}", **changes)
        for number, value in enumerate(perplexities, 1)
    ]


def compared(*results: list[TrialResult]) -> SharedArm:
    laboratories = [
        laboratory(name, own) for name, own in zip(("Tampa", "Oslo", "Lima"), results, strict=False)
    ]
    (arm,) = compare_laboratories(laboratories)
    return arm


def made(*results: list[TrialResult]) -> Table:
    laboratories = [
        laboratory(name, own) for name, own in zip(("Tampa", "Oslo", "Lima"), results, strict=False)
    ]
    return laboratory_table(laboratories, compare_laboratories(laboratories))


def cells(table: Table, group: str, row: int = 0) -> dict[str, str]:
    return {
        headings[1]: cell
        for headings, cell in zip(table.columns, table.rows[row][1:], strict=True)
        if headings[0] == group
    }


def test_laboratories_have_their_own_numbers_and_a_common_spread() -> None:
    arm = compared(rows(TAMPA, "a"), rows(OSLO, "b"))
    first, second = arm.laboratories
    assert (first.laboratory, first.n, first.adapters) == ("Tampa", 7, 7)
    assert first.mean == pytest.approx(np.mean(TAMPA))
    assert second.sd == pytest.approx(np.std(OSLO, ddof=1))
    assert not arm.logarithmic
    assert arm.pooled == reproducibility([TAMPA, OSLO])
    assert (arm.common_adapters, arm.common_seeds, arm.unlike) == (0, 0, [])


def test_values_over_decades_are_compared_on_the_log_scale() -> None:
    collapsed = [8.1, 21024.0, 790.0]
    arm = compared(rows(TAMPA, "a"), rows(collapsed, "b"))
    assert arm.logarithmic
    assert arm.laboratories[1].mean == pytest.approx(math.exp(np.mean(np.log(collapsed))))
    assert arm.pooled == reproducibility([[math.log(each) for each in own] for own in (TAMPA, collapsed)])
    assert cells(made(rows(TAMPA, "a"), rows(collapsed, "b")), "all laboratories")["scale"] == "log"


def test_identical_adapters_are_counted() -> None:
    first, second = rows(TAMPA, "a"), rows(TAMPA, "b")
    for place in (0, 3):
        second[place] = dataclasses.replace(second[place], adapter_digest=first[place].adapter_digest)
    assert compared(first, second).common_adapters == 2
    assert compared(first, first[:4]).common_adapters == 4
    repeated = [dataclasses.replace(row, adapter_digest="same") for row in first]
    arm = compared(repeated, [dataclasses.replace(row, adapter_digest="same") for row in second])
    assert ([own.adapters for own in arm.laboratories], arm.common_adapters) == ([1, 1], 1)
    table = made([dataclasses.replace(row, adapter_digest=None) for row in first], second)
    assert cells(table, "Tampa")["adapters"] == "—"
    assert cells(table, "all laboratories")["common adapters"] == "—"


def test_trials_with_the_same_seed_are_noted_as_not_independent() -> None:
    seeded = [rows(TAMPA, letter, adapter_init_seed=42) for letter in "ab"]
    assert compared(*seeded).common_seeds == 1
    assert any(note.startswith("Not independent") for note in made(*seeded).notes)
    assert not any(
        note.startswith("Not independent") for note in made(rows(TAMPA, "a"), rows(OSLO, "b")).notes
    )


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    table = made(rows([*TAMPA, math.nan, math.inf], "a"), rows(OSLO, "b"))
    assert cells(table, "Tampa")["n"] == "7"
    assert "Left out because they are not finite: GPT-NeoX-20B 8-bit (2 in Tampa)." in table.notes


def test_only_done_trials_are_compared() -> None:
    own = [*rows(TAMPA, "a"), missing(trial=8), trial(trial=9, status="stale", perplexity=99.0)]
    assert compared(own, rows(OSLO, "b")).pooled == reproducibility([TAMPA, OSLO])


def test_trials_with_different_settings_are_not_pooled() -> None:
    table = made(rows(TAMPA, "a", randomness="seeded"), rows(OSLO, "b", randomness="as-published"))
    pooled = cells(table, "all laboratories")
    assert (pooled["s_r"], pooled["s_R"], pooled["common adapters"]) == ("—", "—", "0")
    assert (
        "Not pooled because settings differ between laboratories: "
        "GPT-NeoX-20B 8-bit (randomness profile)." in table.notes
    )
    assert compared(rows(TAMPA, "a", randomness="seeded"), rows(OSLO, "b")).unlike == [], "one is unknown"


def test_an_interval_needs_three_laboratories() -> None:
    two = made(rows(TAMPA, "a"), rows(OSLO, "b"))
    assert cells(two, "all laboratories")["s_R, 95 %"] == "—"
    assert any(note.startswith("Two laboratories are too few") for note in two.notes)
    three = made(rows(TAMPA, "a"), rows(OSLO, "b"), rows([8.5, 8.6, 8.4], "c"))
    assert "–" in cells(three, "all laboratories")["s_R, 95 %"]
    assert not any("too few" in note for note in three.notes)


def test_the_note_on_terms_depends_on_devices_and_software() -> None:
    alike = made(rows(TAMPA, "a"), rows(OSLO, "b")).notes
    assert any("calls reproducibility: another team in another place" in note for note in alike)
    apart = made(rows(TAMPA, "a"), rows(OSLO, "b", device="Another GPU")).notes
    assert any(note.startswith("The laboratories have different devices. ISO 5725") for note in apart)
    both = made(rows(TAMPA, "a"), rows(OSLO, "b", device="Another GPU", software="torch 3")).notes
    assert any("different devices and software" in note for note in both)


def test_an_arm_that_a_laboratory_lacks_has_dashes() -> None:
    other = rows(OSLO, "d", optimizer="adamw-32bit")
    table = made(rows(TAMPA, "a") + other, rows(OSLO, "b"), rows(TAMPA, "c") + other)
    assert [row[0] for row in table.rows] == ["GPT-NeoX-20B 8-bit", "GPT-NeoX-20B 32-bit"]
    assert set(cells(table, "Oslo", 1).values()) == {"—"}
    assert cells(table, "Lima", 1)["n"] == "5"


def test_laboratories_that_cannot_be_compared_are_an_error() -> None:
    one = laboratory("Tampa", rows(TAMPA, "a"))
    other = laboratory("Oslo", rows(OSLO, "b", model="llama2-7b"))
    with pytest.raises(UsageError, match="at least two"):
        compare_laboratories([one])
    with pytest.raises(
        UsageError, match="2 laboratories are named 'Tampa'; give each its own name with NAME="
    ):
        compare_laboratories([one, one])
    with pytest.raises(UsageError, match="Tampa has gpt-neox-20b/adamw-8bit; Oslo has llama2-7b/adamw-8bit"):
        compare_laboratories([one, other])
    with pytest.raises(UsageError, match="Oslo: trial gpt-neox-20b/adamw-8bit/1 has 2 rows"):
        compare_laboratories([one, laboratory("Oslo", [trial(), trial()])])


def test_the_comparison_is_also_given_in_sentences() -> None:
    same = [laboratory(name, rows(TAMPA, "a")) for name in ("Tampa", "Oslo")]
    assert sentences(compare_laboratories(same)) == [
        "gpt-neox-20b/adamw-8bit: within a laboratory s_r = 0.241, in any of 2 s_R = 0.241; "
        "adapters common to several laboratories, bit for bit: 7"
    ]


def other_lab(lab: Lab, folder: Path) -> Lab:
    """Return a laboratory with the same study, slightly higher perplexities and other adapters."""
    from support.finished import finish_study
    from support.tiny import write_study

    from qlora_repeat.records.record import read_record, write_record
    from qlora_repeat.study.loading import load_study

    there = Lab(folder, lab.cache)
    folder.mkdir()
    write_study(folder)
    study = load_study(str(there.study))
    finish_study(study, there.runs, there.cache)
    for each in at(study, there.runs).trials():
        record = read_record(each.record("evaluate"))
        assert record is not None
        outputs = record.outputs | {"perplexity": record.outputs["perplexity"] + each.number / 8}
        write_record(each.record("evaluate"), dataclasses.replace(record, outputs=outputs))
    there.pack()
    return there


def test_archives_of_two_laboratories_become_a_table(finished: Lab, tmp_path: Path) -> None:
    there = other_lab(finished, tmp_path / "there")
    out = tmp_path / "out"
    result = run("interlab", f"Tampa={finished.archive}", f"Oslo={there.archive}", "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.splitlines()[-2:] == [f"{out}/table-S5.tex", f"{out}/table-S5.md"]
    assert "adapters common to several laboratories, bit for bit: 2" in result.output
    text = (out / "table-S5.md").read_text()
    assert "| Tiny NeoX 8-bit" in text
    assert "Tampa: Study: tiny." in text
    assert r"\caption[Repeatability within" in (out / "table-S5.tex").read_text()
    shown = json.loads(run("interlab", f"Tampa={finished.archive}", f"Oslo={there.archive}", "--json").output)
    assert shown[0]["laboratories"][1]["mean"] == 8.25 + 3 / 16
    assert shown[0]["pooled"]["laboratories"] == 2


def test_different_settings_are_found_in_the_records(finished: Lab, tmp_path: Path) -> None:
    """Compare two studies that differ only in a learning rate."""
    there = other_lab(finished, tmp_path / "there")
    there.study.write_text(there.study.read_text().replace("learning_rate = 1e-3", "learning_rate = 5e-3"))
    shutil.rmtree(there.runs)
    from support.finished import finish_study

    from qlora_repeat.study.loading import load_study

    finish_study(load_study(str(there.study)), there.runs, there.cache)
    there.pack()
    result = run("interlab", f"a={finished.archive}", f"b={there.archive}", "--out", tmp_path / "out")
    assert "adamw-8bit: 2 laboratories, not pooled because these differ: training; " in result.output
    assert "tiny-llama-chat/adamw-8bit: within a laboratory" in result.output, "it has its own learning rate"


def test_results_files_studies_and_the_papers_numbers_can_be_compared(finished: Lab, tmp_path: Path) -> None:
    from qlora_repeat.results.published import read_published

    published = read_published(ROOT / "paper" / "published")
    write_results([dataclasses.replace(row, study="paper") for row in published], tmp_path / "Oslo.jsonl")
    result = run("interlab", "published", tmp_path / "Oslo.jsonl", "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "llama2-7b/adamw-32bit: within a laboratory" in result.output
    result = run(
        "interlab", finished.study, f"b={finished.archive}", "--runs", finished.runs, "--out", tmp_path
    )
    assert "bit for bit: 2" in result.output
    assert isinstance(failure(run("interlab", "published", tmp_path / "none.zip")), MissingError)
    assert isinstance(failure(run("interlab", "published", tmp_path / "none.jsonl")), MissingError)


def test_output_is_reproducible_and_names_are_escaped(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_results(rows(TAMPA if number else OSLO, name), tmp_path / f"{name}.jsonl")
    given = (f"<b>|\\input{{x}}={tmp_path / 'a.jsonl'}", f"\x1b[2J={tmp_path / 'b.jsonl'}")
    texts = []
    for folder in ("one", "two"):
        assert run("interlab", *given, "--out", tmp_path / folder).exit_code == 0
        texts.append([path.read_bytes() for path in sorted((tmp_path / folder).iterdir())])
    assert texts[0] == texts[1]
    markdown, latex = texts[0]
    assert b"<b>" not in markdown
    assert b"\\input{" not in latex
    assert b"\x1b" not in markdown + latex
