"""The folder of the checkout, its command line, and copies of folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _has_latex() -> bool:
    needed = ["IEEEtran.cls", "lmodern.sty", "longtable.sty", "booktabs.sty"]
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    found = subprocess.run(["kpsewhich", *needed], capture_output=True, text=True).stdout
    return len(found.splitlines()) == len(needed)


needs_latex = pytest.mark.skipif(not _has_latex(), reason="LaTeX or one of its packages is not installed")


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder for a test to change; large files are hard links, since no test writes into them."""

    def copy(file: str, copied: str) -> None:
        (os.link if Path(file).stat().st_size > 100_000 else shutil.copy2)(file, copied)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def kit(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command of the kit as a user does, from the checkout."""
    command = [str(Path(sys.executable).with_name("qlora-repeat")), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
