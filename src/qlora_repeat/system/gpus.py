"""Find and choose the GPUs of this process, and the number of parallel processes for them."""

import importlib.metadata
import itertools
import os
import re
import warnings
from dataclasses import dataclass

from qlora_repeat.errors import NoGpuError, UsageError
from qlora_repeat.system.fingerprint import driver_version, nvidia_smi
from qlora_repeat.system.limits import usable_cores

DEVICE = "QLORA_REPEAT_DEVICE"
"""The variable that tells a process and its children to use no GPU (``cpu``), or nothing else (``gpu``)."""
LOCKED_CUDA = "13.0"
"""The version of CUDA that the locked CUDA build of torch brings."""
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver for each major version of CUDA (NVIDIA, CUDA Compatibility, Table 1)."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class NoGpu:
    """Why torch can use no GPU."""

    reason: str
    """Names torch's build."""
    drivers: str
    """The driver that was found, and the oldest one that CUDA needs."""
    advice: str
    is_expected: bool
    """Whether this machine has no GPU and torch is its CPU build, so that nothing is to be done."""


def on_cpu() -> bool:
    """Return whether torch is its CPU build.

    With CUDA, importing bitsandbytes initializes the device, and a process forked later cannot use it.
    So each trial imports the libraries itself there.
    """
    return importlib.metadata.version("torch").endswith("+cpu")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process can use, as names for CUDA_VISIBLE_DEVICES."""
    if on_cpu() or cpu_is_chosen() or find_no_gpu() is not None:
        return []
    if (given := os.environ.get(_VISIBLE)) is not None:
        return _names_in(given)
    if shown := list(gpus_here().values()):
        return shown
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]  # nvidia-smi may be missing


def _names_in(visible: str) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES names. CUDA ignores an invalid name, and all names after it."""
    names = (name.strip() for name in visible.split(","))
    return [*itertools.takewhile(lambda name: re.match(r"\d|GPU-|MIG-", name), names)]


def choose_gpus(text: str) -> None:
    """Limit this process and its child processes to the GPUs with these numbers or UUIDs.

    Raises:
        UsageError: a GPU does not exist, the CPU is chosen, or torch is its CPU build.
    """
    if cpu_is_chosen():
        raise UsageError("--gpus: not with --cpu")
    if on_cpu():
        raise UsageError(
            "--gpus: the CPU build of torch is installed; install its CUDA build (in a checkout: `make setup "
            "ACCELERATOR=cuda`), or set with --jobs how many trials run at a time"
        )
    here = gpus_here()
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in here and name not in here.values():
            known = ", ".join(here) or "none"
            raise UsageError(f"--gpus {text}: nvidia-smi shows no GPU {name or '(empty)'}; it shows: {known}")
    # By UUID, because CUDA may number GPUs in another order.
    os.environ[_VISIBLE] = ",".join(dict.fromkeys(here.get(name, name) for name in wanted))


def gpus_here() -> dict[str, str]:
    """Return the UUIDs of this machine's GPUs by their numbers in nvidia-smi.

    A GPU that is divided (MIG) is not usable itself: its instances are, one in each process, and have numbers
    such as 0:1 (NVIDIA, MIG User Guide, CUDA Device Enumeration).
    """
    found: dict[str, str] = {}
    gpu = ""
    for line in nvidia_smi("-L"):
        if whole := re.match(r"GPU (\d+): .*\(UUID: (GPU-\S+)\)", line):
            gpu = whole[1]
            found[gpu] = whole[2]
        elif part := re.match(r"\s+MIG .*Device\s+(\d+): \(UUID: (MIG-\S+)\)", line):
            found.pop(gpu, None)
            found[f"{gpu}:{part[1]}"] = part[2]
    return found


def default_workers(threads: int) -> int:
    """Return one process for each GPU, or without GPUs as many as the cores allow with `threads` each."""
    return len(visible_gpus()) or max(1, usable_cores() // threads)


def choose_cpu() -> None:
    """Make this process and its child processes use no GPU; call it before anything uses a device."""
    os.environ[DEVICE] = "cpu"
    if not on_cpu():
        os.environ[_VISIBLE] = ""


def cpu_is_chosen() -> bool:
    """Return whether this process must use no GPU."""
    return os.environ.get(DEVICE) == "cpu"


def check_device(device: str) -> None:
    """Check that torch can use a GPU, if `device` or the variable is ``gpu``, and the CPU is not chosen.

    Raises:
        NoGpuError: it cannot; the message names torch's build, the driver, and what to do.
    """
    if cpu_is_chosen():
        choose_cpu()
    elif "gpu" in (device, os.environ.get(DEVICE)) and (lacking := find_no_gpu()) is not None:
        asked = 'the study has device = "gpu"' if device == "gpu" else "a GPU was given to this process"
        text = f"{asked}, but {lacking.reason} ({lacking.drivers})"
        raise NoGpuError(f"{text}; {lacking.advice}, or give --cpu")


def cpu_line() -> str | None:
    """Return a line that says why this process uses the CPU; None if it uses a GPU."""
    if cpu_is_chosen():
        choose_cpu()
        return "Runs on the CPU, as --cpu asks"
    if (lacking := find_no_gpu()) is None:
        return None
    line = f"Runs on the CPU: {lacking.reason}"
    return line if lacking.is_expected else f"{line} ({lacking.drivers}); {lacking.advice}"


def find_no_gpu() -> NoGpu | None:
    """Return why torch can use no GPU here, or None if it can."""
    cuda, told = None, ""
    if not on_cpu():
        import torch

        with warnings.catch_warnings(record=True) as caught:  # torch warns of what went wrong
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                return None
        cuda = torch.version.cuda
        told = " ".join(str(caught[-1].message).partition("(Triggered")[0].split())[:200] if caught else ""
    listed, driver = gpus_here(), driver_version()
    wanted = cuda or LOCKED_CUDA
    oldest = _OLDEST_DRIVERS.get(int(wanted.split(".")[0]))
    major = re.match(r"\d+", driver or "")
    is_old = major is not None and oldest is not None and int(major[0]) < oldest
    drivers = f"driver: {driver or 'none'}"
    if oldest is not None:
        drivers += f", CUDA {wanted} needs {oldest} or newer"
    newer = f"a driver of version {oldest} or newer" if oldest else "a newer driver"
    compatible = f"on a data-center GPU install cuda-compat-{wanted.replace('.', '-')}"
    version = importlib.metadata.version("torch")
    if cuda is None:
        reason, advice = f"torch {version} is the CPU build", "install its CUDA build"
        if listed:
            reason += f" and cannot use the {_counted(len(listed))} that nvidia-smi shows"
        advice += " (in a checkout: `make setup ACCELERATOR=cuda`)"
        if is_old:
            advice += f" and {newer}, or {compatible}"
        return NoGpu(reason, drivers, advice, is_expected=not listed)
    reason, visible = f"torch {version} for CUDA {cuda} finds no usable GPU", os.environ.get(_VISIBLE)
    if visible is not None and not _names_in(visible):
        shown = f'"{visible}"' if visible else "empty"
        reason += f" because {_VISIBLE} is {shown}"
        advice = "unset it, or ask the scheduler for a GPU"
    elif driver is None:
        advice = f"install {newer}, or start the container with its GPUs"
    elif is_old:
        advice = f"install {newer}, or {compatible}"
    else:
        reason += f' with {_VISIBLE}="{visible}"' if visible is not None else ""
        reason += f": {told}" if told else ""
        advice = "check that nvidia-smi lists a GPU, and start a container with its GPUs"
    return NoGpu(reason, drivers, advice, is_expected=False)


def _counted(number: int) -> str:
    return f"{number} GPU" + ("s" if number != 1 else "")
