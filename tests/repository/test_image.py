"""Build the image from the Dockerfile, and use it as `make image-test` and `make docker-all` do."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT, kit
from support.local_image import BASE, IMAGE, build_image
from support.tiny import write_study

from qlora_repeat.system.fingerprint import lock_digest

pytestmark = pytest.mark.image

TRIAL = "tiny-neox/adamw-8bit/1"


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    build_image(tmp_path_factory.mktemp("image"))


def start(
    results: Path, cache: Path, *command: object, user: str = "12345:12345", name: str = ""
) -> "subprocess.Popen[str]":
    """Start a command in a container without a network, as a user who has no name there."""
    environment = {
        "ENGINE": "podman",
        "IMAGE": IMAGE,
        "RESULTS": str(results),
        "CACHE": str(cache),
        "CONTAINER_USER": user,
        "CONTAINER_OPTIONS": "--network none" + (f" --name {name}" if name else ""),
    }
    return subprocess.Popen(
        ["container/run.sh", "docker", *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def inside(results: Path, cache: Path, *command: object) -> "subprocess.CompletedProcess[str]":
    """Run a command in such a container, and wait until it ends."""
    process = start(results, cache, *command)
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.fixture
def folders(tmp_path: Path, cache: Path) -> tuple[Path, Path]:
    """Return folders for results and for the cache, writable for everyone."""
    shutil.copytree(cache, tmp_path / "cache" / "qlora-repeat")
    (tmp_path / "results").mkdir()
    write_study(tmp_path / "results")
    subprocess.run(["chmod", "-R", "a+rwX", str(tmp_path)], check=True)
    return tmp_path / "results", tmp_path / "cache"


def record_file(runs: Path) -> Path:
    return runs / "tiny@bitwise" / Path(*TRIAL.split("/")[:2]) / "trial-1" / "finetune.json"


def record(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record_file(runs).read_text())
    return found


def test_the_image_works_offline_with_a_read_only_root(folders: tuple[Path, Path]) -> None:
    done = inside(*folders, "container/test.sh")
    assert done.returncode == 0, done.stderr
    assert "torch 2" in done.stdout and "smollm2-135m/adamw-8bit/1" in done.stdout
    refused = inside(*folders, "sh", "-c", "touch /kit/src/new")
    assert "Read-only file system" in refused.stderr


def test_a_trial_has_the_same_bits_as_outside_and_its_record_names_the_image(
    folders: tuple[Path, Path], cache: Path, tmp_path: Path
) -> None:
    results, _ = folders
    chosen = [TRIAL, "--randomness", "bitwise", "--study"]
    done = inside(*folders, "qlora-repeat", "finetune", *chosen, "runs/tiny.toml")
    assert done.returncode == 0, done.stderr
    bare = kit("finetune", *chosen, results / "tiny.toml", "--runs", tmp_path / "bare", "--cache", cache)
    assert bare.returncode == 0, bare.stderr
    ours, theirs = record(results), record(tmp_path / "bare")
    assert ours["outputs"]["adapter_digest"] == theirs["outputs"]["adapter_digest"]
    fingerprint, inspected = ours["fingerprint"], inspect()
    assert fingerprint["image"] == {
        "name": IMAGE.removeprefix("localhost/"),
        "digest": f"sha256:{inspected['Id']}",
        "base": BASE.removeprefix("localhost/"),
        "apptainer": None,
    }
    expected = (lock_digest(), theirs["fingerprint"]["commit"])
    assert (fingerprint["lock"], fingerprint["commit"]) == expected


def inspect() -> dict[str, Any]:
    done = subprocess.run(["podman", "image", "inspect", IMAGE], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def test_a_container_that_is_stopped_keeps_a_checkpoint(
    folders: tuple[Path, Path],
) -> None:
    """Stop a container: the engine signals only the first process, which here is make's parent."""
    results, _ = folders
    write_study(results, ("\nsteps = 3", "\nsteps = 400"), ("checkpoint_every = 2", "checkpoint_every = 100"))
    command = ["make", "finetune", f"TRIAL={TRIAL}", "STUDY=runs/tiny.toml", "RANDOMNESS=bitwise"]
    running = start(*folders, *command, name="qlora-repeat-tests-stopped")
    unfinished = record_file(results).parent / "unfinished"
    trace = unfinished / "trace.jsonl"
    ends = time.monotonic() + 120
    while not (trace.is_file() and len(trace.read_text().splitlines()) > 5):
        assert running.poll() is None and time.monotonic() < ends
        time.sleep(0.1)
    subprocess.run(["podman", "stop", "--time=60", "qlora-repeat-tests-stopped"], check=True)
    errors = running.communicate(timeout=60)[1]
    assert "with a checkpoint, by SIGTERM; run the same command to resume" in errors
    assert unfinished.is_dir() and not record_file(results).exists()
    assert not list(unfinished.parent.glob("lock.json")), "the lock is released"


def test_labels_name_the_lock_files_and_the_commit() -> None:
    labels = inspect()["Config"]["Labels"]
    assert labels["qlora-repeat.lock"] == lock_digest()
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


def test_tables_are_written_beside_the_results(folders: tuple[Path, Path]) -> None:
    done = inside(*folders, "make", "tables", "STUDY=published")
    assert done.returncode == 0, done.stderr
    assert (folders[0] / "tables-and-figures/published/table-01.md").stat().st_size > 100
