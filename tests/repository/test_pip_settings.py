"""Packages go into the new environment, whatever pip is configured to do elsewhere."""

import ensurepip
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.checkout import ROOT

CONFIGURATION = """
[global]
user = true
require-virtualenv = true
find-links = {folder}/wheels
no-index = true
[install]
target = {folder}/elsewhere
constraint = {folder}/none.txt
require-hashes = true
no-binary = :all:
"""
VARIABLES = {
    "PIP_USER": "1",
    "PIP_PREFIX": "/nonexistent",
    "PIP_ROOT": "/nonexistent",
    "PIP_DRY_RUN": "1",
    "PIP_REQUIREMENT": "/nonexistent/requirements.txt",
    "PYTHONUSERBASE": "/nonexistent",
}


def wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "qlora_repeat_sample-1.0-py3-none-any.whl", "w") as archive:
        about = "qlora_repeat_sample-1.0.dist-info"
        archive.writestr("qlora_repeat_sample.py", "")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: qlora-repeat-sample\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def environment(folder: Path) -> Path:
    """Return the Python of a new environment, which imports pip from the wheel that Python brings."""
    brought = [*Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")]
    brought += Path("/usr/share/python-wheels").glob("pip-*.whl")  # Debian
    if not brought:
        pytest.skip("this Python brings no wheel of pip")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pip.pth").write_text(f"{brought[0]}\n")
    return folder / "bin/python"


def test_settings_say_where_packages_come_from_and_not_where_they_go(tmp_path: Path) -> None:
    """`find-links` stays, as an index of one's own does."""
    wheel(tmp_path / "wheels")
    (tmp_path / "pip.conf").write_text(CONFIGURATION.format(folder=tmp_path))
    python = environment(tmp_path / "venv")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [ROOT / "lockfiles/pip.sh", python, "install", "-qq", "--no-deps", "qlora-repeat-sample"],
        env=plain | VARIABLES | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = subprocess.run(
        [python, "-c", "import qlora_repeat_sample; print(qlora_repeat_sample.__file__)"],
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(f"{tmp_path}/venv/lib/"), found.stderr
    assert not (tmp_path / "elsewhere").exists()
