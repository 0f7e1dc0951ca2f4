"""The GPUs that this process may use, and how many processes at a time that gives work to."""

import importlib.metadata
import os

from qlora_repeat.errors import UsageError
from qlora_repeat.system.fingerprint import nvidia_smi


def on_cpu() -> bool:
    """Whether this is torch's CPU build.

    With CUDA, importing bitsandbytes asks the device for its kind, and a process forked after that cannot use
    it: there, every trial pays for its own imports.
    """
    return importlib.metadata.version("torch").endswith("+cpu")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by names for CUDA_VISIBLE_DEVICES; none with torch's CPU build."""
    if on_cpu():
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return list(_gpus_here().values())


def choose_gpus(text: str) -> None:
    """Leaves this process, and those that it starts, the GPUs of these numbers or UUIDs.

    Raises:
        UsageError: there is no such GPU, or torch's build has no use for one.
    """
    if on_cpu():
        raise UsageError(
            "--gpus: torch is its CPU build here; `make setup ACCELERATOR=cuda` installs the other. "
            "Without a GPU, --jobs says how many trials run at a time"
        )
    here = _gpus_here()
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in here and name not in here.values():
            known = ", ".join(here) or "none"
            raise UsageError(f"--gpus {text}: nvidia-smi shows no GPU {name or '(empty)'}; it shows: {known}")
    # By UUID: CUDA may number GPUs in another order.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(here.get(name, name) for name in wanted))


def _gpus_here() -> dict[str, str]:
    """The UUIDs of this machine's GPUs, by the numbers that nvidia-smi gives them."""
    lines = nvidia_smi("--query-gpu=index,uuid", "--format=csv,noheader")
    pairs = (line.split(",") for line in lines if line.count(",") == 1)
    return {number.strip(): uuid.strip() for number, uuid in pairs}


def default_workers(threads: int) -> int:
    """Return one process for each GPU; without GPUs, as many as there are cores for, of so many threads."""
    return max(1, len(visible_gpus()) if not on_cpu() else len(os.sched_getaffinity(0)) // threads)
