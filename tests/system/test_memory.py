"""Peak memory is that of one process, as `plan` counts it, and a share of the total that `plan` uses."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qlora_repeat.planning.gpu_catalog import find_gpu
from qlora_repeat.system.memory import CONTEXT_BYTES, gpu_memory, peak_memory, reset_peak_memory

GIB = 2**30
A100 = 81_920 * 2**20
"""The memory of an A100 with 80 GB in nvidia-smi; CUDA shows less."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the numbers of a fake GPU: of this process's allocator, and of the whole device."""
    found = SimpleNamespace(allocated=9 * GIB, reserved=12 * GIB, free=20 * GIB, total=79 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *device: found.allocated)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *device: found.reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *device: found.reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *device: (found.free, found.total))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=found.total)
    )
    return found


def shows(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Put an nvidia-smi on PATH that prints these lines."""
    tool = folder / "nvidia-smi"
    printed = "\n".join(lines)
    tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{printed}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_peak_on_a_gpu_has_what_the_plan_counts(gpu: SimpleNamespace) -> None:
    assert peak_memory() == 9 * GIB + CONTEXT_BYTES
    assert peak_memory(outside_torch=GIB) == 10 * GIB + CONTEXT_BYTES


def test_other_processes_on_the_gpu_do_not_count(gpu: SimpleNamespace) -> None:
    alone = peak_memory()
    gpu.free -= 15 * GIB
    assert peak_memory() == alone


@pytest.mark.parametrize("lines", [["81920"], ["15360", "81920", "143771"]], ids=["one GPU", "several GPUs"])
def test_the_total_is_the_one_of_the_plan(
    lines: list[str], gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(tmp_path, monkeypatch, *lines)
    assert gpu_memory() == A100 == find_gpu("a100-80gb").memory


@pytest.mark.parametrize("lines", [["81920"], ["[N/A]"], [""]], ids=["part", "unknown", "none"])
def test_the_total_of_a_part_of_a_gpu_is_cudas(
    lines: list[str], gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(tmp_path, monkeypatch, *lines)
    gpu.total = 39 * GIB
    assert gpu_memory() == 39 * GIB


def test_without_a_gpu_the_peak_is_the_resident_memory_since_the_reset() -> None:
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    assert gpu_memory() is None
    held = bytearray(GIB // 4)
    held[::4096] = b"1" * len(held[::4096])
    with_it = peak_memory()
    del held
    assert peak_memory() > with_it - GIB // 64, "the memory was in use since the reset"
    assert with_it > GIB // 4
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak cannot be reset here")
    reset_peak_memory()
    assert peak_memory() < with_it - GIB // 8
