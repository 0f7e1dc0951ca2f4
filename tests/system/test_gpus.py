"""Which GPUs a process uses, and why it can use none; nvidia-smi is a script, and torch's build is faked."""

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT
from support.gpus import driver_tool, fake_cuda_build

from qlora_repeat.errors import NoGpuError, UsageError
from qlora_repeat.system import gpus

MIG = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.10gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.40gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-1ae21a3c-f40b-77a7-002f-4b0b52b05f5b)
"""
"""What ``nvidia-smi -L`` prints with MIG on the first GPU."""
PARTS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]
WHOLE = "GPU-1ae21a3c-f40b-77a7-002f-4b0b52b05f5b"


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the only folder on PATH, on a machine with torch's CUDA build and no driver."""
    return fake_cuda_build(monkeypatch, tmp_path)


def refusal() -> str:
    """Return the line for a study that requires a GPU."""
    with pytest.raises(NoGpuError) as caught:
        gpus.check_device("gpu")
    assert caught.value.exit_code == 3
    line = str(caught.value)
    assert "\n" not in line
    assert gpus.cpu_line() is not None
    return line


def test_with_mig_the_parts_are_devices_and_their_gpu_is_none(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA does not see a GPU in MIG mode but its instances, and of several only the first."""
    driver_tool(cuda_build, listed=MIG)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus.gpus_here() == {"0:0": PARTS[0], "0:1": PARTS[1], "1": WHOLE}
    assert gpus.visible_gpus() == [*PARTS, WHOLE]
    assert gpus.default_workers(threads=1) == 3
    gpus.choose_gpus(f"1,0:1,{PARTS[0]}")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join([WHOLE, PARTS[1], PARTS[0]])
    for wrong in ("0", "0:2", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"):
        with pytest.raises(UsageError, match=r"it shows: 0:0, 0:1, 1$"):
            gpus.choose_gpus(wrong)


def test_uuids_of_parts_that_a_scheduler_gave_are_kept(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm gives them, in the form of drivers before and since version 470."""
    driver_tool(cuda_build, listed=MIG)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = [PARTS[1], "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(given))
    assert gpus.visible_gpus() == given


@pytest.mark.parametrize(
    ("value", "seen"), [("", []), ("-1", []), ("NoDevFiles", []), ("0,-1,1", ["0"]), ("2, 0", ["2", "0"])]
)
def test_as_in_cuda_a_number_that_is_none_ends_the_list(
    value: str, seen: list[str], cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver_tool(cuda_build, listed=MIG)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpus.visible_gpus() == seen
    assert gpus.default_workers(threads=1) == (len(seen) or len(os.sched_getaffinity(0)))


def test_without_a_driver_the_line_names_build_and_driver(cuda_build: Path) -> None:
    line = refusal()
    assert f"torch {torch.__version__.split('+')[0]}" in line
    assert "for CUDA 13.0" in line
    assert "(driver: none, CUDA 13.0 needs 580 or newer)" in line
    assert "--cpu" in line
    assert "cuda-compat" not in line, "it cannot replace a driver"


def test_a_driver_that_is_too_old_is_named_with_what_helps(cuda_build: Path) -> None:
    driver_tool(cuda_build, driver="550.54.14")
    line = refusal()
    assert "(driver: 550.54.14, CUDA 13.0 needs 580 or newer)" in line
    assert "data-center GPU install cuda-compat-13-0" in line


def test_gpus_that_torch_cannot_use_get_no_processes(cuda_build: Path) -> None:
    """A study then runs on the CPU, with one process for each core."""
    driver_tool(cuda_build, driver="550.54.14", listed=MIG)
    assert gpus.visible_gpus() == []
    assert gpus.default_workers(threads=1) == len(os.sched_getaffinity(0))


def test_a_process_that_was_given_a_gpu_never_uses_the_cpu(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool gives each process one GPU, which may be unusable, as in MIG mode without instances."""
    driver_tool(cuda_build)
    gpus.check_device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", WHOLE)
    monkeypatch.setenv(gpus.DEVICE, "gpu")
    with pytest.raises(NoGpuError, match=f'a GPU was given to this process, but .*VISIBLE_DEVICES="{WHOLE}"'):
        gpus.check_device("auto")


@pytest.mark.parametrize(("cuda", "needed"), [("11.8", 450), ("12.8", 525), ("13.0", 580), ("13.2", 580)])
def test_the_driver_that_is_needed_follows_from_the_build(
    cuda: str, needed: int, cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    driver_tool(cuda_build, driver=f"{needed - 1}.99")
    line = refusal()
    assert f"CUDA {cuda} needs {needed} or newer" in line
    assert f"cuda-compat-{cuda.replace('.', '-')}" in line


@pytest.mark.parametrize(("value", "shown"), [("", "empty"), ("-1", '"-1"'), ("NoDevFiles", '"NoDevFiles"')])
def test_an_empty_list_of_visible_gpus_is_the_reason(
    value: str, shown: str, cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver_tool(cuda_build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    line = refusal()
    assert f"because CUDA_VISIBLE_DEVICES is {shown}" in line
    assert "unset it" in line
    assert "cuda-compat" not in line


def test_a_gpu_that_is_not_there_is_the_reason(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver_tool(cuda_build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert 'with CUDA_VISIBLE_DEVICES="7"' in refusal()


def test_what_torch_warns_of_is_the_reason(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        told = "CUDA initialization: Error 802: system not yet\n initialized (Triggered at x)"
        warnings.warn(told, stacklevel=1)
        return False

    driver_tool(cuda_build)
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert "GPU: CUDA initialization: Error 802: system not yet initialized (driver: 580" in refusal()


def test_the_cpu_build_is_named_with_the_driver_that_the_locked_build_needs(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "on_cpu", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    short = gpus.cpu_line()
    assert short is not None
    assert short.endswith("is the CPU build"), "nothing is to be done on a machine without a GPU"
    assert "(driver: none, CUDA 13.0 needs 580 or newer)" in refusal()
    driver_tool(cuda_build, driver="550.54.14")
    line = refusal()
    assert "is the CPU build and cannot use the 1 GPU that nvidia-smi shows" in line
    assert "(driver: 550.54.14, CUDA 13.0 needs 580 or newer)" in line
    assert "cuda-compat-13-0" in line
    assert "`make setup ACCELERATOR=cuda`" in line


def test_the_locked_build_is_for_this_version_of_cuda() -> None:
    text = (ROOT / "lockfiles" / "torch-cuda.txt").read_text(encoding="utf-8")
    (runtime,) = re.findall(r"^nvidia-cuda-runtime==(\d+\.\d+)", text, re.MULTILINE)
    assert runtime == gpus.LOCKED_CUDA


def test_with_a_usable_gpu_nothing_is_said(cuda_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpus.check_device("gpu")
    assert gpus.cpu_line() is None


def test_who_chooses_the_cpu_gets_it_also_beside_a_gpu(
    cuda_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake a torch that sees a GPU unless the variable hides it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] != "")
    monkeypatch.setenv(gpus.DEVICE, "cpu")
    gpus.check_device("gpu")
    assert not torch.cuda.is_available()
    assert gpus.cpu_line() == "Runs on the CPU, as --cpu asks"
    assert gpus.default_workers(threads=1) == len(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match="--gpus: not with --cpu"):
        gpus.choose_gpus("0")
