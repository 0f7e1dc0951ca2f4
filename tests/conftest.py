"""Fixtures: the tiny study, its filled cache, and one run of it that tests may read but not change."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, read_cache
from hub_study import NOBODY, User, write_hub_study
from tiny import fill_cache, write_study

from qlora_repeat.study.study import Study, load_study

ROOT = Path(__file__).parents[1]


def _has_latex() -> bool:
    needed = ["IEEEtran.cls", "lmodern.sty", "longtable.sty", "booktabs.sty"]
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    found = subprocess.run(["kpsewhich", *needed], capture_output=True, text=True).stdout
    return len(found.splitlines()) == len(needed)


needs_latex = pytest.mark.skipif(
    not _has_latex(), reason="LaTeX is not installed, or not all of its packages"
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the tiny study's bases and data; shared, so read only."""
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(load_study(str(write_study(tmp_path_factory.mktemp("study")))), folder)
    return folder


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The tiny study's file, in a folder of the test's own."""
    return write_study(tmp_path)


@pytest.fixture
def study(study_file: Path) -> Study:
    """The tiny study."""
    return load_study(str(study_file))


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder for a test to change; large files, which no test writes into, are the same ones."""

    def copy(file: str, copied: str) -> None:
        (os.link if Path(file).stat().st_size > 100_000 else shutil.copy2)(file, copied)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def kit(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, from the checkout."""
    command = [str(Path(sys.executable).with_name("qlora-repeat")), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub of miniatures for the study of `hub_study`; shared, so read only."""
    from qlora_repeat.assets.miniature import write_hub

    folder = tmp_path_factory.mktemp("hub")
    write_hub(load_study(str(write_hub_study(folder))), folder / "home")
    return folder / "home"


@pytest.fixture
def hub(hub_home: Path) -> Iterator[Hub]:
    """A hub that serves those miniatures, for a test to change."""
    hub = Hub(read_cache(hub_home))
    yield hub
    hub.close()


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    """Somebody who has fetched nothing yet."""
    write_hub_study(tmp_path)
    return User(tmp_path, hub.url)


@pytest.fixture(scope="session")
def fetched(hub_home: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    """Somebody who has fetched the whole study, from a hub that is gone now; shared, so read only."""
    folder = tmp_path_factory.mktemp("fetched")
    write_hub_study(folder)
    hub = Hub(read_cache(hub_home))
    user = User(folder, hub.url)
    user.fetch()
    hub.close()
    return user


@pytest.fixture
def reader(user: User, fetched: User) -> User:
    """Somebody who has the quotes already, for tests about bases (preparing data takes seconds)."""
    shutil.copytree(fetched.cache / "data", user.cache / "data")
    return user


@pytest.fixture
def copied(fetched: User, tmp_path: Path) -> User:
    """The same, for a test to change."""
    copy_folder(fetched.folder, tmp_path / "copied")
    return User(tmp_path / "copied", NOBODY)
