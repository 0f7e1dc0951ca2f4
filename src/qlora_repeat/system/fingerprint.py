"""Describe the machine and the software of a process: the fingerprint in each record.

Records are published, so a fingerprint has no host name, no user name, no path and no UUID of a GPU. It has
only environment variables that are known to matter, and withholds values that are not plain settings.
"""

import contextlib
import functools
import getpass
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_repeat.system.environment import rule
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.limits import usable_cores
from qlora_repeat.system.package_data import ROOT

PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors",
    "numpy", "gguf", "reasoning-gym",
)  # fmt: skip
"""The packages that can change the bits of a trial."""
KERNEL_PACKAGES = (
    "kernels", "triton", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows",
    "flash-attn", "flash-attn-3", "flash-attn-4", "flash-linear-attention", "fla-core", "flashinfer-python",
    "xformers", "sageattention", "causal-conv1d", "mamba-ssm", "apex", "liger-kernel", "quack-kernels",
    "nvidia-cutlass-dsl", "cut-cross-entropy", "unsloth", "transformer-engine", "torchao", "fbgemm-gpu",
    "hqq", "deepspeed", "intel-extension-for-pytorch", "intel-extension-for-transformers", "torch-xla",
    "torch-npu", "torch-directml", "habana-torch-plugin", "mkl", "intel-openmp",
)  # fmt: skip
"""Packages that a trial does not need, and that libraries use on their own where they are installed."""

DRIVER_FILE = Path("/proc/driver/nvidia/version")
WITHHELD = "(set, withheld)"
"""Replaces the value of a variable that may contain a path or a name."""

_VARIABLES = re.compile(
    r"(ACCELERATE|ATEN|BNB|CUBLAS|CUBLASLT|CUDA|CUDNN|DNNL|GOMP|KMP|MKL|OMP|ONEDNN|OPENBLAS)_\w+"
    r"|(PYTORCH|TORCH)_\w+"
    r"|(FBGEMM|NPY|GOTO|BLIS)_\w+"
    "|GLIBC_TUNABLES|HF_DATASETS_OFFLINE|HF_HUB_OFFLINE|LD_LIBRARY_PATH|LD_PRELOAD|NVIDIA_TF32_OVERRIDE"
    "|PYTHONHASHSEED|TOKENIZERS_PARALLELISM|TRANSFORMERS_OFFLINE"
)
_PUBLIC_REGISTRIES = (
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
)
_SECRET = re.compile("AUTH|CREDENTIAL|KEY|PASSW|SECRET|TOKEN(?!IZERS_)")
_PLAIN_VALUE = re.compile(r"[\w.,:;=+*|(){}\[\] -]{0,200}", re.ASCII)
_NUMERIC_FLAGS = re.compile("sse4.*|avx.*|fma.*|f16c|amx_.*|asimd.*|fphp|sve.*|sme(?!p).*|i8mm|.*bf16.*")
"""CPU instructions, on x86 and ARM, that decide which kernel is used."""


@functools.cache
def packages() -> dict[str, str]:
    """Return the installed version of each of `PACKAGES`."""
    return {name: version for name in PACKAGES if (version := installed_version(name)) is not None}


@functools.cache
def kernel_packages() -> dict[str, str]:
    """Return the installed version of each of `KERNEL_PACKAGES`."""
    return {name: version for name in KERNEL_PACKAGES if (version := installed_version(name)) is not None}


def installed_version(*names: str) -> str | None:
    """Return the version of the first of these packages that is installed, or None."""
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


@functools.cache
def lock_files() -> tuple[Path, ...]:
    """Return the lock files of the installed packages, which include one build of torch.

    Empty if torch is not installed, or if the kit does not run from a checkout.
    """
    torch = installed_version("torch")
    if torch is None:
        return ()
    paths = _lock_files_for("cpu" if torch.endswith("+cpu") else "cuda")
    return paths if all(path.is_file() for path in paths) else ()


def _lock_files_for(accelerator: str) -> tuple[Path, ...]:
    return tuple(ROOT / "lockfiles" / f"{name}.txt" for name in ("runtime", "pocket", f"torch-{accelerator}"))


@functools.cache
def lock_digest(accelerator: str | None = None) -> str | None:
    """Return the digest of the lines of `lock_files()`, or None if there are none.

    With `accelerator` (cpu or cuda), use the lock files of an image that is about to be built.
    """
    paths = lock_files() if accelerator is None else _lock_files_for(accelerator)
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return json_digest([line for line in lines if line and not line.startswith("#")]) if lines else None


def fingerprint() -> dict[str, Any]:
    """Return the machine and the software of this process, for a record; an unknown value is None.

    ``kernels`` is the current state of torch's switches.
    """
    commit, dirty = _commit()
    flags = sorted(set((_cpu_line("flags") or _cpu_line("Features") or "").split()))
    return {
        "packages": packages(),
        "kernel_packages": kernel_packages(),
        "lock": lock_digest(),
        "commit": commit,
        "dirty": dirty,
        "image": {
            "name": image_name(os.environ.get("QLORA_REPEAT_IMAGE")),
            "digest": image_name(os.environ.get("QLORA_REPEAT_IMAGE_DIGEST")),
            "apptainer": _last_part(os.environ.get("APPTAINER_CONTAINER")),
            "base": image_name(_image_file().get("base")),
        },
        "python": platform.python_version(),
        "os": _os_name(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_flags": {
            "digest": json_digest(flags) if flags else None,
            "numeric": [flag for flag in flags if _NUMERIC_FLAGS.fullmatch(flag)],
        },
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "cublas": installed_version("nvidia-cublas", "nvidia-cublas-cu12"),
        "environment": environment(),
        **_torch_state(),
    }


def _torch_state() -> dict[str, Any]:
    """Return the state of torch and of the first GPU; each value is None if torch cannot be imported."""
    names = ("threads", "interop_threads", "cpu_capability", "cuda", "cudnn", "gpu", "gpu_count")
    state: dict[str, Any] = dict.fromkeys((*names, "gpu_capability", "gpu_memory", "driver", "kernels"))
    try:
        import torch
    except (ImportError, OSError):  # OSError: a shared library is missing
        return state
    state |= {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cudnn": _try(lambda: torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "gpu_count": 0,
        "kernels": _kernels(),
    }
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        state |= {
            "gpu": torch.cuda.get_device_name(0),
            "gpu_count": torch.cuda.device_count(),
            "gpu_capability": f"{found.major}.{found.minor}",
            "gpu_memory": found.total_memory,
            "driver": driver_version(),
        }
    return state


def _kernels() -> dict[str, Any]:
    """Return the current switches that decide which kernels torch uses."""
    import torch

    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    attention: dict[str, Callable[[], bool]] = {
        "flash": cuda.flash_sdp_enabled,
        "mem_efficient": cuda.mem_efficient_sdp_enabled,
        "math": cuda.math_sdp_enabled,
        "cudnn": cuda.cudnn_sdp_enabled,
    }
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill_uninitialized_memory": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_benchmark": cudnn.benchmark,
        "mkldnn_deterministic": torch.backends.mkldnn.deterministic,
        # torch raises an error for these if both its older and its newer switches were used.
        "matmul_tf32": _try(lambda: cuda.matmul.allow_tf32, "mixed"),
        "cudnn_tf32": _try(lambda: cudnn.allow_tf32, "mixed"),
        "float32_matmul_precision": _try(torch.get_float32_matmul_precision, "mixed"),
        "float16_reduced_sums": _try(lambda: cuda.matmul.allow_fp16_reduced_precision_reduction),
        "bfloat16_reduced_sums": _try(lambda: cuda.matmul.allow_bf16_reduced_precision_reduction),
        "attention": [name for name, enabled in attention.items() if enabled()],
        "cublas_workspace": environment().get("CUBLAS_WORKSPACE_CONFIG"),
    }


def _try(read: Callable[[], Any], otherwise: Any = None) -> Any:
    try:
        return read()
    except (RuntimeError, AttributeError):
        return otherwise


def environment() -> dict[str, str]:
    """Return the variables that can change a trial's bits, time or network access.

    Those that the kit itself sets and secrets are left out, and values that may contain a path or the name of
    this host or user are withheld.
    """
    private = _private_names()
    return {
        name: WITHHELD if not _PLAIN_VALUE.fullmatch(value) or private.search(value) else value
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name) and not _SECRET.search(name) and not _is_set_by_kit(name)
    }


def _is_set_by_kit(name: str) -> bool:
    found = rule(name)
    return found is not None and found.treatment == "set"


@functools.cache
def _private_names() -> re.Pattern[str]:
    """Return a pattern of the names of host and user and of UUIDs of GPUs.

    A number is too common to be recognized as a name.
    """
    host = socket.gethostname()
    names = {host, host.partition(".")[0]}
    # The user of a container may have no home and no name.
    with contextlib.suppress(OSError, KeyError, ImportError, RuntimeError):
        names |= {Path.home().name, getpass.getuser()}
    known = "|".join(re.escape(name) for name in names if name and not name.isdecimal()) or "(?!)"
    return re.compile(rf"(?<![a-z0-9])(({known})(?![a-z0-9])|(GPU|MIG)-[0-9a-f])", re.IGNORECASE)


def image_name(image: str | None) -> str | None:
    """Return the name or digest of an image without a path, and without the host of a private registry."""
    if not image or image[0] in "/.~":
        return _last_part(image)
    image = image.partition("://")[2] or image
    host, _, rest = image.partition("/")
    is_host = bool(rest) and (not {".", ":", "@"}.isdisjoint(host) or host == "localhost")
    return rest if is_host and host not in _PUBLIC_REGISTRIES else image


def _last_part(path: str | None) -> str | None:
    return path.rstrip("/").rpartition("/")[2] or None if path else None


def device_name(found: dict[str, Any]) -> str:
    """Return a fingerprint's device as text for people."""
    threads = f"{found['threads']} thread" + ("s" if found["threads"] != 1 else "")
    return str(found["gpu"] or f"{found['cpu']}, {threads} ({found['cpu_capability']})")


def machine_name(found: dict[str, Any]) -> str:
    """Return a fingerprint's GPU and driver, or its CPU and the instructions in use, as text for people."""
    gpu = f"{found['gpu']}, driver {found['driver']}"
    return gpu if found["gpu"] else f"{found['cpu']} ({found['cpu_capability']})"


def machine_digest(found: dict[str, Any]) -> str:
    """Return a digest of what can change bits and is not set by a study: processor, driver and packages."""
    names = ("packages", "python", "libc", "cpu", "cpu_flags", "cpu_capability")
    of_gpu = ("gpu", "gpu_capability", "driver", "cuda", "cudnn", "cublas")
    more = {name: found[name] for name in ("kernel_packages",) if found.get(name)}
    return json_digest({name: found.get(name) for name in (*names, *of_gpu)} | more)


def software_names(found: dict[str, Any]) -> str:
    """Return a fingerprint's main packages and Python as text for people."""
    shown = ("torch", "transformers", "peft", "bitsandbytes")
    versions = [f"{name} {found['packages'].get(name, '?')}" for name in shown]
    return ", ".join([*versions, f"Python {found['python']}"])


def fingerprint_differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the differences of two fingerprints as (dotted key, value in `a`, value in `b`), sorted by key.

    A missing key counts as None, because earlier versions of the kit recorded fewer keys. A missing one of
    `_ADDED` is no difference, and neither is what `_ADDED_TABLES` have if one is missing.
    """
    for table in _ADDED_TABLES:
        if table not in a or table not in b:
            a, b = ({key: value for key, value in side.items() if key != table} for side in (a, b))
    left, right = _flat(a), _flat(b)
    keys = {*left, *right} - (_ADDED - (left.keys() & right.keys()))
    pairs = [(key, left.get(key), right.get(key)) for key in sorted(keys)]
    return [(key, old, new) for key, old, new in pairs if old != new]


_ADDED = {"kernels.fill_uninitialized_memory"}
"""Keys that earlier versions did not record, and whose values change no bits."""
_ADDED_TABLES = ("kernel_packages",)
"""Tables that earlier versions did not record, so that what they would have had is unknown."""


def _flat(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


@functools.cache
def cpu_model() -> str:
    """Return the name of the processor."""
    return _cpu_line("model name") or platform.machine()


@functools.cache
def _cpu_line(name: str) -> str | None:
    """Return a line of /proc/cpuinfo about the first processor."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1].strip()
    return None


@functools.cache
def _os_name() -> str | None:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return None


@functools.cache
def driver_version() -> str | None:
    """Return the version of NVIDIA's kernel driver, or None if there is none."""
    with contextlib.suppress(OSError):
        return driver_in(DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    shown = nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")
    return shown[0] if shown else None


def driver_in(text: str) -> str | None:
    """Return the version in ``/proc/driver/nvidia/version``, whose other text may name the build host."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return found[1] if found else None


def nvidia_smi(*arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints, or no lines if it is missing or finds no GPU."""
    return (command_output("nvidia-smi", *arguments, seconds=60) or "").splitlines()


def command_output(*command: str, seconds: float) -> str | None:
    """Return the output of a command; None if it is missing, fails or takes longer than some seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _image_file() -> dict[str, str]:
    """Return the facts recorded when the image of this process was built; empty outside an image."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((ROOT / "image.json").read_text(encoding="utf-8"))
    return found


def _commit() -> tuple[str | None, bool | None]:
    """Return the kit's commit and whether files differ from it, now or when the image was built."""
    if known := _image_file().get("commit"):
        commit, dirty, _ = known.partition("-dirty")
        return commit, bool(dirty)
    changes = _git("status", "--porcelain", "--", ".", ":!studies/*.lock")
    return _git("rev-parse", "HEAD"), None if changes is None else bool(changes)


@functools.cache
def _git(*arguments: str) -> str | None:
    """Return Git's output for the checkout, or None outside one (an installed kit may be in another one)."""
    if not (ROOT / "lockfiles").is_dir():
        return None
    # Without a lock of the repository, because several trials may run this at the same time.
    return command_output("git", "--no-optional-locks", "-C", str(ROOT), *arguments, seconds=10)
