"""Fixtures: the tiny study, its cache, and a finished run of it. Tests must not change shared fixtures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.architectures import chosen, commit
from support.checkout import copy_folder
from support.finished import finish_study
from support.hub_server import Hub, read_cache
from support.hub_study import NOBODY, User, write_hub_study
from support.laboratory import Lab, run
from support.tiny import fill_cache, write_study

from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study


def pytest_report_header() -> str:
    return f"architectures of this commit: {', '.join(chosen(commit()))}"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with the tiny study's base models and data; shared, so only for reading."""
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(load_study(str(write_study(tmp_path_factory.mktemp("study")))), folder)
    return folder


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """Return the tiny study's file, in the test's own folder."""
    return write_study(tmp_path)


@pytest.fixture
def study(study_file: Path) -> Study:
    return load_study(str(study_file))


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a hub's folder with miniatures for the study of `hub_study`; shared, so only for reading."""
    from qlora_repeat.assets.miniature import write_hub

    folder = tmp_path_factory.mktemp("hub")
    write_hub(load_study(str(write_hub_study(folder))), folder / "home")
    return folder / "home"


@pytest.fixture
def hub(hub_home: Path) -> Iterator[Hub]:
    """Serve these miniatures from a hub that a test may change."""
    hub = Hub(read_cache(hub_home))
    yield hub
    hub.close()


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    """Return a user who has fetched nothing yet."""
    write_hub_study(tmp_path)
    return User(tmp_path, hub.url)


@pytest.fixture(scope="session")
def fetched(hub_home: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    """Return a user who has fetched the study from a hub that is now closed; shared, so only for reading."""
    folder = tmp_path_factory.mktemp("fetched")
    write_hub_study(folder)
    hub = Hub(read_cache(hub_home))
    user = User(folder, hub.url)
    user.fetch()
    hub.close()
    return user


@pytest.fixture
def reader(user: User, fetched: User) -> User:
    """Return a user who already has the quotes, for tests of base models (data take seconds to prepare)."""
    shutil.copytree(fetched.cache / "data", user.cache / "data")
    return user


@pytest.fixture
def copied(fetched: User, tmp_path: Path) -> User:
    """Return a copy of `fetched` that a test may change."""
    copy_folder(fetched.folder, tmp_path / "copied")
    return User(tmp_path / "copied", NOBODY)


@pytest.fixture(scope="session")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a lab with a finished study, results, tables and an archive; only for reading."""
    lab = Lab(tmp_path_factory.mktemp("finished"), cache)
    write_study(lab.folder)
    finish_study(load_study(str(lab.study)), lab.runs, cache)
    assert lab.kit("collect").exit_code == 0
    made = run("tables", lab.study, "--runs", lab.runs, "--out", lab.tables)
    assert made.exit_code == 0, made.output
    lab.pack()
    return lab
