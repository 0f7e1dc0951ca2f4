"""The lock files resolve on every Python and machine, and the check finds problems in them."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from support.checkout import ROOT

spec = importlib.util.spec_from_file_location("check", ROOT / "lockfiles" / "check.py")
assert spec is not None and spec.loader is not None
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """Return a copy of the lock files that a test may change."""
    return shutil.copytree(
        ROOT / "lockfiles", tmp_path / "lockfiles", ignore=shutil.ignore_patterns("web", "__pycache__")
    )


def problems(folder: Path) -> list[str]:
    """Return the problems in a folder of lock files; skip the test if no package index answers."""
    try:
        found: list[str] = check.problems(folder)
    except ConnectionError as error:
        pytest.skip(f"no package index answers: {error}")
    return found


def test_the_lock_files_resolve_on_every_python_and_machine() -> None:
    assert problems(ROOT / "lockfiles") == []


def test_a_missing_package_and_missing_hashes_are_found(locks: Path) -> None:
    runtime, cpu = locks / "runtime.txt", locks / "torch-cpu.txt"
    blocks = re.split(r"^(?=[a-z])", runtime.read_text(), flags=re.MULTILINE)
    changed = [
        re.sub("sha256:.{4}", "sha256:0000", block) if block.startswith("numpy==") else block
        for block in blocks
        if not block.startswith("submitit==")
    ]
    runtime.write_text("".join(changed))
    cpu.write_text(cpu.read_text().rpartition(" \\\n")[0] + "\n")
    found = problems(locks)
    assert found[0] == "torch-cpu.txt has 7 hashes; expected one for each Python and machine"
    for python in ("3.11", "3.12", "3.13", "3.14"):
        for machine in ("x86_64", "aarch64"):
            file = rf"numpy-[\w.]+-cp{python.replace('.', '')}-\S+_{machine}\.whl"
            first, second = [line for line in found if line.startswith(f"Python {python} on {machine}: ")]
            assert re.search(rf": numpy [\d.]+: the hash of {file} is not locked$", first)
            assert second.endswith(": submitit is needed, and in no lock file")
    assert len(found) == 17


def test_a_version_without_a_wheel_for_the_newest_python_is_found(locks: Path) -> None:
    runtime = locks / "runtime.txt"
    changed = re.sub(r"^markupsafe==\S+", "markupsafe==3.0.2", runtime.read_text(), flags=re.MULTILINE)
    assert changed != runtime.read_text()
    runtime.write_text(changed)
    found = [line for line in problems(locks) if "no wheel" in line]
    assert found == [
        f"Python 3.14 on {machine}: markupsafe 3.0.2 has no wheel" for machine in ("x86_64", "aarch64")
    ]
