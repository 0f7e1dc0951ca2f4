"""Where and with what a stage ran."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from qlora_repeat.digest import json_digest

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors",
    "numpy", "gguf", "reasoning-gym",
)  # fmt: skip
"""What can change a trial's bits."""

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where the kit runs from one."""


@functools.cache
def packages() -> dict[str, str]:
    """The installed version of each package that matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def lock_digest() -> str | None:
    """The digest of what the runtime lock files pin, or None where the kit does not run from a checkout."""
    paths = [ROOT / "lockfiles" / name for name in _RUNTIME_LOCKS]
    if not all(path.is_file() for path in paths):
        return None
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return json_digest([line for line in lines if line and not line.startswith("#")])


_RUNTIME_LOCKS = ("runtime.txt", "torch-cpu.txt", "torch-cuda.txt", "pocket.txt")


def fingerprint() -> dict[str, Any]:
    """The machine and software of this process, for a record."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "packages": packages(),
        "lock": lock_digest(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!studies/*.lock")),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if on_gpu else None,
        "cuda": torch.version.cuda,
    }


def device_name(found: dict[str, Any]) -> str:
    """A fingerprint's device, for people."""
    threads = f"{found['threads']} thread" + ("s" if found["threads"] != 1 else "")
    return str(found["gpu"] or f"{found['cpu']}, {threads} ({found['cpu_capability']})")


def software_names(found: dict[str, Any]) -> str:
    """A fingerprint's software, for people."""
    shown = ("torch", "transformers", "peft", "bitsandbytes")
    return (
        ", ".join(f"{name} {found['packages'].get(name, '?')}" for name in shown)
        + f", Python {found['python']}"
    )


@functools.cache
def cpu_model() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


@functools.cache
def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
