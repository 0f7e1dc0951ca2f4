"""Fixtures: the tiny study, its filled cache, and one run of it that tests may read but not change."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import fill_cache, write_study

from qlora_repeat.study import Study, load_study

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


def kit(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, from the checkout."""
    command = [str(Path(sys.executable).with_name("qlora-repeat")), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
