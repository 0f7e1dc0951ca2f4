"""Whether a machine and the software on it are fit to run the kit: what `qlora-repeat doctor` finds there.

Each function gives findings; none of them needs a study as a whole. What depends on the study's models and
data is in `qlora_repeat.planning.doctor`.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.system.determinism import DETERMINISTIC_WORKSPACES, WORKSPACE
from qlora_repeat.system.fingerprint import installed_version, lock_files, nvidia_smi
from qlora_repeat.system.latex import INSTALL_LATEX

Level = Literal["ok", "warning", "stops"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """``stops``: the study cannot run here until it is mended."""
    subject: str
    text: str
    """What is so, or what is wrong; one line."""
    mend: str = ""
    """What to do about it; empty where nothing is wrong."""


def python_findings(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Whether the lock files are for this Python."""
    shown = ".".join(map(str, version))
    if (3, 11) <= version[:2] <= (3, 14):
        yield Finding("ok", "Python", shown)
    else:
        yield Finding(
            "warning",
            "Python",
            f"{shown}; packages are locked for 3.11 to 3.14",
            "delete .venv and run `make setup PYTHON=python3.11`",
        )


def package_findings() -> Iterator[Finding]:
    """Whether the installed packages are those of the lock files."""
    paths = lock_files()
    if not paths:
        if installed_version("torch") is None:
            yield Finding("stops", "packages", "torch is not installed", "run `make setup`")
            return
        yield Finding(
            "warning",
            "packages",
            "not compared: the kit does not run from a checkout, which has the lock files",
            "run the kit of a checkout (`make setup`), and records will name what it was locked to",
        )
        return
    count, well = 0, True
    for path in (*paths, paths[0].with_name("build.txt")):
        absent, other = [], []
        for name, locked in _pins(path):
            found = installed_version(name)
            count += 1
            if found is None:
                absent.append(f"{name} {locked}")
            elif found != locked:
                other.append(f"{name} {found} (locked: {locked})")
        again = (
            f"delete .venv and run `make setup`, or run `{sys.executable} -m pip install --no-deps "
            f"--require-hashes --no-build-isolation -r lockfiles/{path.name}`"
        )
        # Packages that carry models and data, or build the kit, are not needed everywhere.
        if absent and path.name not in ("pocket.txt", "build.txt"):
            well = False
            yield Finding("stops", "packages", f"not installed: {_some(absent)}", again)
        if other:
            well = False
            yield Finding("warning", "packages", f"other versions than locked: {_some(other)}", again)
    if well:
        yield Finding("ok", "packages", f"as locked ({count}, by version)")


def _pins(path: Path) -> Iterator[tuple[str, str]]:
    """Names and versions that a lock file pins."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if found := re.match(r"([\w.-]+)==([^\s;\\]+)", line):
            yield found[1], found[2]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def torch_findings() -> Iterator[Finding]:
    """Whether torch can be imported, and is the build for this machine."""
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        yield Finding("stops", "torch", f"cannot be imported: {reason}", "delete .venv and run `make setup`")
        return
    shown = f"{torch.__version__}" + (f", CUDA {torch.version.cuda}" if torch.version.cuda else "")
    there = nvidia_smi("-L")
    gpus = f"{len(there)} GPU" + ("s" if len(there) != 1 else "")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        problems = list(arch_findings((properties.major, properties.minor), torch.cuda.get_arch_list()))
        yield from problems or [Finding("ok", "torch", f"{shown}, uses {torch.cuda.get_device_name(0)}")]
    elif there and torch.version.cuda is None:
        yield Finding(
            "warning",
            "torch",
            f"{shown} is the CPU build, and nvidia-smi shows {gpus}, which stay unused",
            "run `make setup ACCELERATOR=cuda`",
        )
    elif torch.version.cuda is not None and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding(
            "warning", "torch", f"{shown}; CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES"
        )
    elif torch.version.cuda is not None:
        yield Finding(
            "warning",
            "torch",
            f"{shown} finds no GPU that it can use" + (f", while nvidia-smi shows {gpus}" if there else ""),
            f"install an NVIDIA driver for CUDA {torch.version.cuda}, or start the container with its GPUs; "
            "for a machine without a GPU run `make setup ACCELERATOR=cpu`",
        )
    else:
        yield Finding("ok", "torch", shown)


def arch_findings(capability: tuple[int, int], built_for: Iterable[str]) -> Iterator[Finding]:
    """Whether torch's kernels run on a GPU of some compute capability.

    Binary code (``sm_80``) runs on the same major version from that minor one on, PTX (``compute_80``) on
    everything newer.
    """
    known = [found for each in built_for if (found := re.match(r"(sm|compute)_(\d+)(\d)", each))]
    for kind, major, minor in (found.groups() for found in known):
        built = (int(major), int(minor))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return
    shown = ".".join(map(str, capability))
    yield Finding(
        "stops",
        "torch",
        f"has no kernels for this GPU (compute capability {shown}; "
        f"built for {', '.join(found[0] for found in known) or 'none'})",
        "use another GPU; the locked build is the one that results were made with",
    )


def gpu_of_this_machine() -> tuple[Gpu, int] | None:
    """The GPU with the least memory of those that torch uses, and how many bytes of it are free."""
    import torch

    if not torch.cuda.is_available():
        return None
    places = range(torch.cuda.device_count())
    found = min(places, key=lambda place: torch.cuda.get_device_properties(place).total_memory)
    free, total = torch.cuda.mem_get_info(found)
    return Gpu(torch.cuda.get_device_name(found), total, None), free


def precision_findings(compute: str, machine: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether a machine, by its fingerprint, is good at the arithmetic that a study asks for."""
    if machine["gpu"] is not None:
        if compute == "bfloat16" and float(machine["gpu_capability"]) < 8:
            yield Finding(
                "warning",
                "precision",
                f"{machine['gpu']} has no bfloat16 (compute capability {machine['gpu_capability']}, from 8.0 "
                "on): it is slow there, or fails",
                'use a newer GPU, or compute = "float16" in the study file, which is another study',
            )
            return
    elif compute != "float32":
        kind = {"bfloat16": "bf16", "float16": "fp16|fphp"}[compute]
        if not any(re.search(kind, flag) for flag in machine["cpu_flags"]["numeric"]):
            yield Finding(
                "warning",
                "precision",
                f"this CPU has no instructions for {compute}: it computes many times slower in it than in "
                "float32",
                'use a GPU, or compute = "float32" in the study file, which is another study',
            )
            return
    yield Finding("ok", "precision", compute)


def thread_findings(threads: int, usable_cores: int) -> Iterator[Finding]:
    """Whether there is a core for each thread of a trial."""
    shown = f"{threads} of a trial, {usable_cores} cores to use"
    if threads > usable_cores:
        yield Finding(
            "warning",
            "threads",
            f"{shown}: trials are slow, and their times say little",
            "give this process more cores (taskset, the container's or the job's limit)",
        )
    else:
        yield Finding("ok", "threads", shown)


def environment_findings(found: Mapping[str, str], kernels: str, threads: int) -> Iterator[Finding]:
    """Variables that falsify timings or change results; `found` are those of the fingerprint."""
    told = list(_telling(found, kernels, threads))
    for name, why, mend in told:
        yield Finding("warning", "environment", f"{name}={found[name]} {why}", mend or f"unset {name}")
    named = {name for name, _, _ in told}
    noted = [f"{name}={value}" for name, value in found.items() if name not in named]
    if noted:
        yield Finding("ok", "environment", f"recorded with every result: {', '.join(noted)}")
    elif not told:
        yield Finding("ok", "environment", "no variable is set that changes results")


def _telling(found: Mapping[str, str], kernels: str, threads: int) -> Iterator[tuple[str, str, str]]:
    """Variables to warn of: name, why, and what to do if not to unset it."""

    def switched_on(name: str) -> bool:
        return found.get(name, "0") not in ("", "0")

    if switched_on("CUDA_LAUNCH_BLOCKING"):
        yield "CUDA_LAUNCH_BLOCKING", "makes each kernel wait for the last one: it falsifies timings", ""
    for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        if switched_on(name):
            yield name, "lets a GPU multiply float32 with 10 bits (TF32), whatever the study says", ""
    if found.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper() != "STRICT":
        yield "ONEDNN_DEFAULT_FPMATH_MODE", "lets a CPU multiply float32 with fewer bits", ""
    if found.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        yield "ACCELERATE_MIXED_PRECISION", "may change the arithmetic that the study asks for", ""
    if kernels == "deterministic" and found.get(WORKSPACE, "") not in ("", *DETERMINISTIC_WORKSPACES):
        why = "is not for deterministic kernels, which the study asks for: trials are given"
        yield WORKSPACE, f"{why} {DETERMINISTIC_WORKSPACES[0]} in its place", ""
    for name, why in (
        ("OMP_NUM_THREADS", "is less than the study's threads: torch is given those, other libraries not"),
        ("OMP_THREAD_LIMIT", "holds torch to fewer threads than the study asks for and records tell"),
    ):
        most = re.match(r"\s*(\d+)", found.get(name, ""))
        if most and int(most[1]) < threads:
            yield name, why, f"unset {name}, or set it to {threads}"


def folder_findings(folder: Path, elsewhere: str) -> Iterator[Finding]:
    """Whether files can be written below a folder, made safe against a power cut, and linked to.

    Nothing is left behind: a folder that is not there is not made either. `elsewhere` says how to take
    another one.
    """
    place = nearest(folder)
    if not place.is_dir():
        yield Finding("stops", "folders", f"{folder}: {place} is a file, not a folder", elsewhere)
        return
    doing = "written"
    try:
        with tempfile.TemporaryDirectory(prefix=".qlora-repeat-doctor-", dir=place) as made:
            with Path(made, "file").open("wb") as file:
                file.write(b"content")
                file.flush()
                doing = "made safe (fsync)"
                os.fsync(file.fileno())
            with _opened(Path(made)) as descriptor:
                os.fsync(descriptor)
            doing = "given a second name (hard link), which locks of trials need"
            os.link(Path(made, "file"), Path(made, "link"))
    except OSError as error:
        text = f"{folder}: files cannot be {doing}: {error.strerror or error}"
        yield Finding("stops", "folders", text, elsewhere)
    else:
        yield Finding("ok", "folders", f"{folder}: can be written")


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def nearest(folder: Path) -> Path:
    """A folder, or what is there of its path."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a folder that may not be looked into
        return False


def checkout_findings(machine: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether records will tell, by the fingerprint, which code they were made with."""
    if machine["dirty"]:
        yield Finding(
            "warning",
            "checkout",
            f"files differ from commit {machine['commit'][:12]}; every record will say so",
            "commit them, or undo them (`git status` lists them)",
        )
    elif machine["commit"] is None and machine["image"]["digest"] is None:
        yield Finding(
            "warning",
            "checkout",
            "Git tells no commit, so records will name none",
            "run from a clone, with git installed (of another owner: `git config --global --add "
            "safe.directory` and its path), or from the image",
        )
    else:
        yield Finding("ok", "checkout", (machine["commit"] or machine["image"]["digest"])[:19])


def latex_findings() -> Iterator[Finding]:
    """Whether `make paper` can compile; nothing else needs LaTeX."""
    needed = ("IEEEtran.cls", "lmodern.sty", "longtable.sty", "booktabs.sty")
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        lacking = "pdflatex is not installed"
    else:
        done = subprocess.run(["kpsewhich", *needed], capture_output=True, text=True, timeout=60)
        absent = {*needed} - {Path(line).name for line in done.stdout.splitlines()}
        lacking = f"LaTeX lacks {', '.join(sorted(absent))}" if absent else ""
    if lacking:
        yield Finding("warning", "LaTeX", f"{lacking}; only `make paper` needs it", INSTALL_LATEX)
    else:
        yield Finding("ok", "LaTeX", "there, for `make paper`")
