"""An archive names the packer's own files that it lacks; data are added on request, and used inside."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from support.archives import canonical, fitting
from support.finished import finish_study
from support.laboratory import Lab, failure, run
from support.own_rows import write_own_study

from qlora_repeat.archive.own_data import not_included
from qlora_repeat.archive.unpack import unpack
from qlora_repeat.archive.zip_file import CRATE
from qlora_repeat.assets.datasets import data_source, read_rows
from qlora_repeat.assets.fetch import prepare_data
from qlora_repeat.errors import MissingError
from qlora_repeat.study.loading import load_study, open_workspace

ROWS = [{"quote": f"Is {number} a number, or is it a word?"} for number in range(12)]


class OwnLab(Lab):
    """A lab whose study has rows of its own."""

    @property
    def study(self) -> Path:
        return self.folder / "own.toml"

    @property
    def archive(self) -> Path:
        return self.folder / "runs" / "own.zip"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> OwnLab:
    """Return a finished study, packed with its data; only for reading."""
    workspace = write_own_study(tmp_path_factory.mktemp("own"), ROWS)
    lab = OwnLab(workspace.file.parent, workspace.cache)
    finish_study(load_study(str(lab.study)), lab.runs, lab.cache)
    lab.pack("--include-data")
    return lab


def test_own_data_and_the_license_are_named(packed: OwnLab, tmp_path: Path) -> None:
    shown = packed.kit("pack", "--out", tmp_path / "a.zip", "--license", "CC-BY-4.0").output
    assert "left out: data rows: rows.jsonl is your own file; --include-data adds it\n" in shown
    assert "records and results have the license CC-BY-4.0; --license gives another\n" in shown
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not [name for name in archive.namelist() if name.startswith("data/")]
        readme = archive.read("README.md").decode()
    assert readme.endswith("have the license CC-BY-4.0. Data and base models are not included.\n")
    assert run("check", tmp_path / "a.zip", "--cache", packed.cache).exit_code == 0


def test_data_are_packed_on_request_with_a_license_that_is_not_known(packed: OwnLab, tmp_path: Path) -> None:
    shown = packed.kit("pack", "--include-data", "--out", tmp_path / "a.zip").output
    line = "look at it before you publish: data/rows/file.jsonl: your own data, whose license is not stated\n"
    assert line in shown and "left out: data" not in shown
    assert (tmp_path / "a.zip").read_bytes() == packed.archive.read_bytes()
    with zipfile.ZipFile(packed.archive) as archive:
        assert archive.read("data/rows/file.jsonl") == (packed.folder / "rows.jsonl").read_bytes()
        assert "their license is not known" in archive.read("README.md").decode()
        crate = {entity["@id"]: entity for entity in json.loads(archive.read(CRATE))["@graph"]}
    assert crate["data/rows/file.jsonl"]["license"] == {"@id": "#license/unknown"}
    assert "ask before you use or publish" in crate["#license/unknown"]["description"]
    assert "In this archive as data/rows/file.jsonl" in crate["#data/rows"]["description"]
    assert "license" not in crate["README.md"]


def test_a_study_of_an_archive_uses_the_data_inside(packed: OwnLab, tmp_path: Path) -> None:
    """The path in the study file leads nowhere there; source and rows are those of the records."""
    assert run("check", packed.archive, "--cache", packed.cache).exit_code == 0
    found = unpack(packed.archive, tmp_path / "theirs", lambda done, total: None)
    theirs = open_workspace(found.study_file, runs=found.runs, cache=tmp_path / "cache")
    mine = open_workspace(str(packed.study), runs=packed.runs, cache=packed.cache)
    prepare_data(theirs, "rows")
    assert data_source(theirs, "rows") == data_source(mine, "rows")
    assert read_rows(theirs, "rows") == read_rows(mine, "rows") == ROWS
    (found.folder / "data/rows/file.jsonl").write_text('{"quote": "forged"}\n')
    with pytest.raises(MissingError, match=r"data/rows/file\.jsonl: SHA-256 is \w+, the study expects"):
        prepare_data(open_workspace(found.study_file, cache=tmp_path / "other"), "rows")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data/rows/file.jsonl", "data/rows/file.jsonl: not the file that the study or its lock file names"),
        ("data/others/file.jsonl", "data/others/file.jsonl: no data of the study name it"),
        ("data/rows/other.txt", "data/rows/other.txt: no data of the study name it"),
    ],
)
def test_a_strangers_data_are_those_of_the_study(
    name: str, words: str, packed: OwnLab, tmp_path: Path
) -> None:
    with zipfile.ZipFile(packed.archive) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    path = canonical(tmp_path / "a.zip", fitting(files | {name: b'{"quote": "forged"}\n'}))
    result = run("check", path, "--cache", packed.cache)
    assert words in result.output + str(failure(result))


def test_data_that_changed_since_the_trials_are_not_packed(packed: OwnLab, tmp_path: Path) -> None:
    rows = packed.folder / "rows.jsonl"
    before = rows.read_bytes()
    rows.write_bytes(before + b'{"quote": "Is it new?"}\n')
    try:
        digest = hashlib.sha256(rows.read_bytes()).hexdigest()
        error = failure(packed.kit("pack", "--include-data", "--out", tmp_path / "a.zip"))
        assert f"{rows}: SHA-256 is {digest}, but the study used " in str(error)
    finally:
        rows.write_bytes(before)
    assert not [*tmp_path.iterdir()]


def test_a_token_in_the_data_is_packed_only_on_request(packed: OwnLab, tmp_path: Path) -> None:
    secret = [
        {"quote": f"Is hf_{'a' * 34} a token? See /home/somebody/file, row {row}."} for row in range(12)
    ]
    workspace = write_own_study(tmp_path / "own", secret)
    lab = OwnLab(workspace.file.parent, workspace.cache)
    finish_study(load_study(str(lab.study)), lab.runs, lab.cache)
    error = failure(lab.kit("pack", "--include-data"))
    assert str(error).startswith("data/rows/file.jsonl: what looks like a token in line 1; remove it")
    assert "/home/somebody" not in str(error)


def test_an_own_base_is_named(packed: OwnLab, tmp_path: Path) -> None:
    text = packed.study.read_text()
    gguf, rest = text.partition("[bases.own.gguf]")[2].split("\n[data.rows]")
    own = text.replace(f"[bases.own.gguf]{gguf}", '[bases.own.folder]\npath = "../models/mine"\n')
    assert rest
    (tmp_path / "own.toml").write_text(own)
    (line,) = not_included(open_workspace(str(tmp_path / "own.toml")), data=True)
    assert line == "base own: mine is your own; whoever runs trials again needs it from you"
