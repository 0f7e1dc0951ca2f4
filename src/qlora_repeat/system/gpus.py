"""Find and choose the GPUs of this process, and the number of parallel processes for them."""

import importlib.metadata
import os

from qlora_repeat.errors import UsageError
from qlora_repeat.system.fingerprint import nvidia_smi


def on_cpu() -> bool:
    """Return whether torch is its CPU build.

    With CUDA, importing bitsandbytes initializes the device, and a process forked later cannot use it.
    So each trial imports the libraries itself there.
    """
    return importlib.metadata.version("torch").endswith("+cpu")


def visible_gpus() -> list[str]:
    """Return the GPUs of this process as names for CUDA_VISIBLE_DEVICES; none with torch's CPU build."""
    if on_cpu():
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return list(_gpus_here().values())


def choose_gpus(text: str) -> None:
    """Limit this process and its child processes to the GPUs with these numbers or UUIDs.

    Raises:
        UsageError: a GPU does not exist, or torch is its CPU build.
    """
    if on_cpu():
        raise UsageError(
            "--gpus: the CPU build of torch is installed; install its CUDA build (in a checkout: `make setup "
            "ACCELERATOR=cuda`), or set with --jobs how many trials run at a time"
        )
    here = _gpus_here()
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in here and name not in here.values():
            known = ", ".join(here) or "none"
            raise UsageError(f"--gpus {text}: nvidia-smi shows no GPU {name or '(empty)'}; it shows: {known}")
    # By UUID, because CUDA may number GPUs in another order.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(here.get(name, name) for name in wanted))


def _gpus_here() -> dict[str, str]:
    """Return the UUIDs of this machine's GPUs by their numbers in nvidia-smi."""
    lines = nvidia_smi("--query-gpu=index,uuid", "--format=csv,noheader")
    pairs = (line.split(",") for line in lines if line.count(",") == 1)
    return {number.strip(): uuid.strip() for number, uuid in pairs}


def default_workers(threads: int) -> int:
    """Return one process for each GPU, or without GPUs as many as the cores allow with `threads` each."""
    return max(1, len(visible_gpus()) if not on_cpu() else len(os.sched_getaffinity(0)) // threads)
