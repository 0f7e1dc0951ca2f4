"""The scripts that install packages and start containers, with stubs for Python and engines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

PIP = """#!/bin/bash
case "$*" in
*version_info*) exit "${TOO_OLD:-0}" ;;
*venv*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
*torch-cpu.txt*)
	case "$*" in *--index-url*) echo "from PyTorch's index" ;; *) echo "$SAID" >&2; exit 1 ;; esac ;;
esac
"""


def install(folder: Path, said: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run install.sh with a Python whose pip says this about the CPU build of torch."""
    stub = folder / "python"
    stub.write_text(PIP)
    stub.chmod(0o755)
    command = [str(ROOT / "lockfiles/install.sh"), str(folder / "venv"), str(stub), "cpu", "runtime"]
    return subprocess.run(command, env=os.environ | {"SAID": said, **more}, capture_output=True, text=True)


def test_only_a_missing_version_leads_to_another_index(tmp_path: Path) -> None:
    done = install(tmp_path, "ERROR: No matching distribution found for torch==2.13.0+cpu")
    assert done.returncode == 0 and "trying PyTorch's index\nfrom PyTorch's index" in done.stdout


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    ],
)
def test_a_wrong_hash_and_a_full_disk_are_reported_as_such(said: str, tmp_path: Path) -> None:
    done = install(tmp_path, said)
    assert done.returncode == 1 and said in done.stderr
    assert "index" not in done.stdout + done.stderr.replace(said, "")


def test_a_python_with_a_known_hole_is_refused_in_one_line(tmp_path: Path) -> None:
    done = install(tmp_path, "", TOO_OLD="1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Python 3.11.1 or newer is needed" in line and not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("version", "fits"),
    [((3, 10, 13), False), ((3, 11, 0), False), ((3, 11, 1), True), ((3, 14, 9), True), ((3, 15, 0), False)],
)
def test_make_takes_no_python_before_3_11_1(version: tuple[int, ...], fits: bool) -> None:
    found = re.search("^FITS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    code = f"import sys; sys.version_info = {version}\n{found[1]}"
    assert (subprocess.run([sys.executable, "-c", code]).returncode == 0) == fits


def test_pip_itself_is_locked() -> None:
    locked = (ROOT / "lockfiles/build.txt").read_text(encoding="utf-8")
    assert re.search(r"^pip==[\d.]+ \\\n +--hash=sha256:", locked, re.MULTILINE)


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("docker", ["--cap-drop ALL", "--security-opt no-new-privileges", "--read-only"]),
        ("apptainer", ["--no-privs", "--containall"]),
    ],
)
def test_containers_start_without_privileges(engine: str, options: list[str], tmp_path: Path) -> None:
    for name in ("docker", "apptainer"):
        (tmp_path / name).write_text('#!/bin/bash\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"RESULTS": str(tmp_path / "r"), "CACHE": str(tmp_path / "c"), "ENGINE": "docker"}
    done = subprocess.run(
        [ROOT / "container/run.sh", engine, "true"],
        env=os.environ | environment | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert [option for option in options if option not in done.stdout] == [], done.stdout + done.stderr
    documented = (ROOT / "docs/howto/run-on-a-cluster.md").read_text(encoding="utf-8")
    assert [option for option in options if option not in documented] == []


INDEXES = {
    "the release, which is frozen": ("noble", "Thu, 25 Apr 2024 15:10:33 UTC", "", True),
    "updates of the day before": ("noble-updates", "Sat, 31 Oct 2026 20:10:33 UTC", "", True),
    "updates of four months before": ("noble-security", "Thu, 25 Jun 2026 15:10:33 UTC", "", False),
    "valid": ("stable-security", "Fri, 30 Oct 2026 15:10:33 UTC", "Fri, 06 Nov 2026 15:10:33 UTC", True),
    "expired": ("stable-updates", "Thu, 01 Oct 2026 15:10:33 UTC", "Thu, 08 Oct 2026 15:10:33 UTC", False),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_old_index_of_system_packages_is_refused(case: str, tmp_path: Path) -> None:
    suite, date, until, accepted = INDEXES[case]
    more = f"Valid-Until: {until}\n" if until else ""
    (tmp_path / "archive_InRelease").write_text(
        f"-----BEGIN\n\nSuite: {suite}\nDate: {date}\n{more}MD5Sum:\n"
    )
    command = [ROOT / "container/install.sh", "fresh", "20261101T000000Z", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == accepted
    assert len(done.stderr.splitlines()) == (0 if accepted else 1)
