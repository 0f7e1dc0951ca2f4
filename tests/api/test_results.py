"""Results, tables, claims and reports of the API, from made-up or published numbers."""

import dataclasses
from pathlib import Path

import pandas
import pytest
from support.checkout import copy_folder
from support.laboratory import Lab

import qlora_repeat as qr
from qlora_repeat.records.record import read_record
from qlora_repeat.records.self_test import Check, SelfTest, self_test_file, write_self_test
from qlora_repeat.results.trial_result import write_results


def test_pandas_has_a_row_for_each_trial_and_a_column_for_each_field() -> None:
    paper = qr.paper_results()
    frame = paper.to_pandas()
    assert len(frame) == len(paper) == 56
    assert [*frame] == [field.name for field in dataclasses.fields(qr.TrialResult)]
    assert frame["perplexity"].tolist() == [row.perplexity for row in paper]
    assert (frame["trial"].dtype, frame["adapter_init_seed"].isna().all()) == ("Int64", True)
    assert frame["weights"].isna().all()


def test_large_seeds_stay_exact_beside_missing_ones() -> None:
    seed = 2**53 + 1
    rows = [dataclasses.replace(row, adapter_init_seed=seed) for row in qr.paper_results()[:1]]
    frame = qr.Results([*rows, qr.paper_results()[1]], "made up").to_pandas()
    assert frame["adapter_init_seed"][0] == seed
    assert frame["adapter_init_seed"][1] is pandas.NA


def test_results_are_a_sequence_and_display_themselves(tmp_path: Path) -> None:
    paper = qr.paper_results()
    assert paper[-1].trial == 7
    part = qr.Results(paper[:7], "published")
    assert [row.trial for row in part] == [*range(1, 8)]
    assert [arm.name for arm in part.arms()] == ["GPT-NeoX-20B 8-bit"]
    assert "gpt-neox-20b" in part._repr_html_()
    assert repr(part) == "<Results of published: 7 of 7 trials with values>"
    write_results(part.items, tmp_path / "some.jsonl")
    again = qr.read_results(tmp_path / "some.jsonl")
    assert (again.items, again.label) == (part.items, "published")


def test_tables_can_be_chosen_written_and_displayed(tmp_path: Path) -> None:
    tables = qr.tables(qr.paper_results())
    chosen = tables.numbered("1", "s1B")
    assert [table.number for table in chosen] == ["1", "S1b"]
    assert chosen[0].caption[:30] in str(chosen)
    shown = chosen._repr_html_()
    assert shown.count("<table") == 2 and chosen[1].rows[0][0] in shown
    assert "<table" in chosen[0]._repr_html_()
    paths = tables.write(tmp_path / "out", formats=["markdown"])
    assert {path.suffix for path in paths} == {".md"} and all(path.is_file() for path in paths)
    with pytest.raises(qr.UsageError, match="there is no table 99; there are 1, 2"):
        tables.numbered("99")


def test_writing_everything_reads_experiments_once(
    finished: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_folder(finished.runs, tmp_path / "runs")
    study = qr.load_study(finished.study, runs=tmp_path / "runs", cache=finished.cache)
    broken = tmp_path / "runs/tiny@attribute/tiny-neox/adamw-8bit/attribution.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("no JSON")
    paths = qr.write_all(study, tmp_path / "out")
    assert {"table-01.md", "report.html"} <= {path.name for path in paths}
    assert capsys.readouterr().err.count("no table S2 or figure S2: ") == 1


def test_cells_of_html_are_escaped() -> None:
    rows = [dataclasses.replace(row, model_title="<b>&") for row in qr.paper_results()]
    assert "&lt;b&gt;&amp;" in (shown := qr.tables(qr.Results(rows, "odd"))._repr_html_())
    assert "<b>&" not in shown


def test_every_claim_has_a_verdict() -> None:
    claims = qr.claims(qr.paper_results())
    assert {each.verdict for each in claims} == {"supported", "not shown", "untested"}
    assert len(claims) == repr(claims).count("\n") + 1
    assert "Evidence" in claims._repr_html_() and claims[0].claim.words[:20] in str(claims)


def test_a_study_is_reported_with_its_records(finished: Lab, tmp_path: Path) -> None:
    study = qr.load_study(finished.study, runs=finished.runs, cache=finished.cache)
    report = qr.report(study)
    path = report.write(tmp_path)
    assert path.read_text(encoding="utf-8") == report.html
    from_file = qr.report(qr.read_results(study.results))
    assert ("Where they ran" in report.html, "Where they ran" in from_file.html) == (True, False)
    record = read_record(study.trials()[0].record("finetune"))
    assert record is not None
    tested = SelfTest("2026-11-30T12:00", 60.0, False, [Check("a", "failed", "b")], record.fingerprint)
    write_self_test(file := self_test_file(finished.runs, record.fingerprint), tested)
    assert "self-test of 2026-11-30: 1 failed" in qr.report(study).html
    file.unlink()
    frame = report._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and "<script" not in frame and "&lt;script" in frame
    collected = qr.collect(study)
    assert collected.study == study and len(collected) == 8
    assert qr.tables(study)._repr_html_() == qr.tables(collected)._repr_html_()


def test_the_repr_of_a_study_is_one_line(finished: Lab) -> None:
    study = qr.load_study(finished.study, runs=finished.runs)
    assert repr(study) == f"<Study tiny: 8 trials, results in {finished.runs}/tiny>"
    assert repr(study.trials()[0]) == "<Trial tiny-neox/adamw-8bit/1 of tiny>"


@pytest.mark.parametrize(
    ("mistake", "kind", "words"),
    [
        (
            lambda study: qr.load_study("nonesuch"),
            qr.MissingError,
            "nonesuch: no such study file; looked for",
        ),
        (lambda study: study.trial("tiny-neox/adamw-8bit/3"), qr.UsageError, "numbers its trials 1 to 2"),
        (lambda study: study.trial("3"), qr.UsageError, "is named model/optimizer/number"),
        (lambda study: qr.read_results("none.jsonl"), qr.MissingError, "none.jsonl: no collected results"),
        (lambda study: qr.tables(study), qr.MissingError, "no collected results; run"),
        (lambda study: qr.report(study), qr.MissingError, "no collected results; run"),
        (lambda study: qr.tables("published", compare="none.jsonl"), qr.MissingError, "none.jsonl"),
        (lambda study: qr.run(study, stages=["fintune"]), qr.UsageError, "'fintune' is not a stage"),
        (lambda study: qr.run(study, only=["gpt"]), qr.UsageError, "--only gpt: expected MODEL or"),
        (lambda study: qr.fetch(study, models=["gpt"]), qr.UsageError, "gpt"),
        (lambda study: qr.verify("runs/trial-1"), qr.MissingError, "runs/trial-1: no such folder or archive"),
        (lambda study: qr.verify(study.trials()[0]), qr.MissingError, "trial-1: .*trace.jsonl"),
        (lambda study: qr.diff(study.trials()[0], "x/trial-1"), qr.MissingError, "trial"),
        (lambda study: qr.verify("no.zip:a/b/1"), qr.MissingError, "no.zip: no such archive"),
    ],
)
def test_a_mistake_gives_an_error_of_one_line(mistake, kind, words, study_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    study = qr.load_study(study_file, runs=tmp_path / "runs", cache=tmp_path / "cache")
    with pytest.raises(kind, match=words) as error:
        mistake(study)
    assert isinstance(error.value, qr.KitError) and "\n" not in str(error.value)


def test_the_label_of_a_stranger_is_no_html_and_no_path(tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, study="../<script>\u202e") for row in qr.paper_results()]
    write_results(rows, tmp_path / "results.jsonl")
    results = qr.read_results(tmp_path / "results.jsonl")
    shown = results._repr_html_()
    assert "<script>" not in shown
    assert "\u202e" not in shown + repr(results)
    with pytest.raises(qr.UsageError, match="not a name of a study"):
        qr.tables(results).write()
