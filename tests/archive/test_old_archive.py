"""An archive from an earlier version, with the old spelling, can be read, checked and verified."""

import zipfile
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.laboratory import run
from support.tiny import fill_cache

from qlora_repeat.results.trial_result import read_results
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study

ARCHIVE = ROOT / "tests" / "data" / "packed-with-old-spelling.zip"
TRIAL = "tiny-neox/adamw-8bit/1"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "tiny"
    result = run("unpack", ARCHIVE, "--to", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def loaded(unpacked: Path) -> Study:
    return load_study(str(unpacked / "studies" / "tiny.toml"))


def test_the_archive_has_the_old_spelling() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        study = archive.read("studies/tiny.toml").decode()
        record = archive.read("runs/tiny/tiny-neox/adamw-8bit/trial-1/finetune.json").decode()
    assert "[quantisation]" in study
    assert '"quantisation"' in record
    assert '"materialised"' in study and '"materialised"' in record


def test_check_accepts_the_archive() -> None:
    result = run("check", ARCHIVE)
    assert result.exit_code == 0, result.output
    assert "records of 2 trials match their files" in result.output


def test_study_and_results_are_read_in_the_new_spelling(unpacked: Path, loaded: Study) -> None:
    assert (loaded.quantization.type, loaded.weights) == ("nf4", "materialized")
    assert load_study(f"{unpacked}/studies/tiny.toml@materialised") == loaded
    rows = read_results(unpacked / "runs" / "tiny" / "results.jsonl")
    assert {row.weights for row in rows} == {"materialized"}


def test_status_says_that_the_records_are_stale(unpacked: Path, loaded: Study, cache: Path) -> None:
    result = run("status", unpacked / "studies/tiny.toml", "--runs", unpacked / "runs", "--cache", cache)
    assert f"{TRIAL} is stale, changed since: " in result.output
    assert "code" in result.output.partition(f"{TRIAL} is stale")[2].splitlines()[0]


def test_trials_of_the_archive_can_be_verified(loaded: Study, tmp_path: Path) -> None:
    fill_cache(loaded, tmp_path / "cache")
    result = run(
        "verify", f"{ARCHIVE}:{TRIAL}", "--cache", tmp_path / "cache", "--scratch", tmp_path / "again"
    )
    # Bitwise on the same kind of processor; on others the last bits may differ.
    verdict = {0: "bitwise", 8: "within tolerance"}.get(result.exit_code)
    assert f"{TRIAL}: {verdict}\n" in result.output, result.output
