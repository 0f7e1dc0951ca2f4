"""GPUs, drivers and builds of torch that this machine does not have."""

from pathlib import Path

import pytest
import torch

from qlora_repeat.system import fingerprint, gpus

ONE = "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n"


def driver_tool(folder: Path, *, listed: str = ONE, driver: str = "580.65.06") -> None:
    """Write an ``nvidia-smi`` that lists these GPUs and has this driver."""
    script = f"""#!/bin/sh
case "$1" in
-L) printf '%s' '{listed}' ;;
--query-gpu=driver_version) echo {driver} ;;
*) exit 2 ;;
esac
"""
    tool = folder / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)


def fake_cuda_build(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Fake torch's build for CUDA 13.0 on a machine without a driver; return the only folder on PATH."""
    monkeypatch.setattr(gpus, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fingerprint, "DRIVER_FILE", folder / "no-driver")
    monkeypatch.setattr(gpus, "driver_version", fingerprint.driver_version.__wrapped__)  # not the cached one
    for name in ("CUDA_VISIBLE_DEVICES", gpus.DEVICE):
        monkeypatch.setenv(name, "")  # so that it is restored, whatever the code does
        monkeypatch.delenv(name)
    tools = folder / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    return tools


STARTUP = '''
"""Fake a GPU of which torch's CPU build knows nothing: importing bitsandbytes initializes it."""
import importlib.abc
import importlib.metadata
import os
import sys

version = importlib.metadata.version
importlib.metadata.version = lambda name: version(name).removesuffix("+cpu")


class Device(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bitsandbytes":
            import torch

            torch.cuda.is_initialized = lambda: True
            with open(os.environ["INITIALIZED"], "a") as file:
                print(os.environ.get("CUBLAS_WORKSPACE_CONFIG"), file=file)


sys.meta_path.insert(0, Device())
'''
"""A ``sitecustomize.py``, which every Python process with its folder in PYTHONPATH runs first."""
