"""Find how many cores and how much memory this process may use: of the machine, a container or a job.

A container or job limits a control group (cgroup, version 1 or 2), and every group above counts too.
"""

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cores(process: Path | None = None) -> int:
    """Return the cores that this process can use: those of its affinity, and at most its CPU quota.

    A quota of 2.5 cores counts as 2, and one of less than a core as 1.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(process or _PROC)])))


def memory_left(process: Path | None = None) -> int | None:
    """Return the bytes that this process may still allocate by its limits; None if it has none.

    File contents that a group's limit counts, but that the system can drop at once, are free.
    """
    process = process or _PROC
    left = [*_of_groups(process), *_of_shell(process)]
    return max(0, min(left)) if left else None


def _quotas(process: Path) -> Iterator[float]:
    """Yield the CPU quota of each group, in cores."""
    for folder in _groups("cpu", process):
        quota = (_text(folder / "cpu.max") or "").split()  # such as "200000 100000" or "max 100000"
        if not quota:
            files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            quota = [text for file in files if (text := _text(file))]
        if len(quota) == 2 and all(map(str.isdecimal, quota)) and int(quota[1]):
            yield int(quota[0]) / int(quota[1])


def _of_groups(process: Path) -> Iterator[int]:
    for folder in _groups("memory", process):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        used = [_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes")]
        known = [limit for limit in limits if limit is not None]
        counted = max((each for each in used if each is not None), default=0)
        droppable = re.search(
            r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat") or "", re.MULTILINE
        )
        if known:
            yield min(known) - max(0, counted - (int(droppable[1]) if droppable else 0))


def _of_shell(process: Path) -> Iterator[int]:
    """Yield what the limits of the shell (``ulimit``) leave, which some schedulers set."""
    status = _text(process / "status") or ""
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, used = resource.getrlimit(limit)[0], re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
        if most != resource.RLIM_INFINITY and used:
            yield most - int(used[1]) * 1024


def _groups(controller: str, process: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups for a controller, from its own up to the root.

    ``/proc/self/cgroup`` names the groups as the host sees them, and a container may show only a part of
    the tree: ``/proc/self/mountinfo`` says which.
    """
    names = [line.split(":", 2) for line in (_text(process / "cgroup") or "").splitlines()]
    mounts = [line.split(" ") for line in (_text(process / "mountinfo") or "").splitlines()]
    for name in (name for name in names if len(name) == 3):
        kind = "cgroup2" if name[1] == "" else "cgroup"
        if kind == "cgroup" and controller not in name[1].split(","):
            continue
        for mount in mounts:
            with contextlib.suppress(ValueError):  # a mount without the separator
                rest = mount[mount.index("-") + 1 :]
                if rest[0] == kind and (kind == "cgroup2" or controller in rest[-1].split(",")):
                    yield from _up(Path(_unescaped(mount[4])), _unescaped(mount[3]), name[2])


def _up(mounted: Path, root: str, group: str) -> Iterator[Path]:
    """Yield the folders from a group up to where its tree is mounted; `root` is the part that is mounted."""
    inside = os.path.relpath(group, root) if group.startswith("/") else "."
    folder = mounted if inside.startswith("..") else mounted / inside
    yield folder
    while folder not in (mounted, folder.parent):
        folder = folder.parent
        yield folder


def _unescaped(text: str) -> str:
    """Return a path of mountinfo, where a space is ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _number(path: Path) -> int | None:
    text = _text(path) or ""
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return None
