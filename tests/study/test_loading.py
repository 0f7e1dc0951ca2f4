"""The name of a study finds its file, in a checkout and with an installed kit."""

from pathlib import Path

import pytest
from support.checkout import ROOT
from support.tiny import write_study

from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.errors import MissingError
from qlora_repeat.study.finding import known_studies, portable_name, study_path
from qlora_repeat.study.loading import load_study, open_workspace
from qlora_repeat.system import package_data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("QLORA_REPEAT_LOCK", raising=False)
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the data folder of a kit installed from a wheel, with the study `tiny`."""
    folder = tmp_path / "site-packages" / "qlora_repeat" / "data"
    (folder / "studies").mkdir(parents=True)
    write_study(folder / "studies")
    monkeypatch.setattr(package_data, "WHEEL_DATA", folder)
    return folder


def test_the_current_folder_comes_before_its_studies_and_these_before_those_of_the_kit(here: Path) -> None:
    assert study_path("pocket") == ROOT / "studies" / "pocket.toml"
    Path("studies").mkdir()
    Path("studies/pocket.toml").touch()
    assert study_path("pocket@bitwise") == Path("studies/pocket.toml")
    Path("pocket.toml").touch()
    assert study_path("pocket") == Path("pocket.toml")


def test_a_path_is_used_unchanged(here: Path) -> None:
    assert study_path("studies/pocket.toml@bitwise") == Path("studies/pocket.toml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonesuch", "nonesuch: no such study file; looked for nonesuch.toml, studies/nonesuch.toml, .*"),
        ("elsewhere/nonesuch.toml", "elsewhere/nonesuch.toml: no such study file"),
    ],
)
def test_the_error_for_an_unknown_study_names_the_folders_and_the_studies(
    name: str, message: str, here: Path, installed: Path
) -> None:
    Path("studies").mkdir()
    Path("studies/small.toml").touch()
    write_study(here).rename("own.toml")
    Path("pyproject.toml").write_text("[project]")
    with pytest.raises(MissingError, match=f"^{message}; there are own, small, tiny$"):
        load_study(name)


def test_each_name_is_listed_once_with_the_file_that_it_finds(here: Path, installed: Path) -> None:
    assert known_studies() == {"tiny": installed / "studies" / "tiny.toml"}
    write_study(here)
    assert known_studies() == {"tiny": Path("tiny.toml")}


def test_a_study_of_an_installed_kit_is_locked_in_the_current_folder(here: Path, installed: Path) -> None:
    shipped = installed / "studies" / "tiny.lock"
    workspace = open_workspace("tiny")
    assert workspace.lock == lock_file(workspace).current == Path("tiny.lock")
    shipped.write_text("{}")
    assert (lock_file(workspace).path, lock_file(workspace).current) == (Path("tiny.lock"), shipped)
    Path("tiny.lock").touch()
    assert lock_file(workspace).current == Path("tiny.lock")


def test_a_study_of_the_kit_is_portable_by_its_name(here: Path, installed: Path) -> None:
    assert portable_name("tiny@bitwise") == "tiny@bitwise"
    write_study(here)
    assert portable_name("tiny@bitwise") == "tiny.toml@bitwise"
