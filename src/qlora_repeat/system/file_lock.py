"""Let one process at a time work on a trial, by a lock file that names its owner.

It does not use flock, which NFS and similar file systems do not always support. The lock is a hard link,
which appears completely or not at all on those too. A lock is removed if its owner has died on this host.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.errors import BusyError, MissingError

FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The namespace outside all containers, which has this number in Linux after every start."""
_JOB_KEYS = ("cluster", "job")
_NAMESPACES = ("pid", "time")  # an old kernel has no time namespaces


@dataclass(frozen=True)
class _Holder:
    """A lock, and whether its owner is alive."""

    content: bytes
    owner: dict[str, Any]
    state: Literal["alive", "dead", "unknown", "unreadable"]


@contextlib.contextmanager
def exclusive(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock during the block. A lock whose owner has died on this host is taken over.

    Args:
        path: the lock.
        what: what it protects, for errors.
        wait: seconds to wait for another process that holds it.

    Raises:
        BusyError: another process holds it; names the process, and the command that removes the lock if that
            process may be dead.
        MissingError: the folder cannot hold a lock (read-only, full, or no hard links).
    """
    ours = (json.dumps(_this_process(), indent=2, sort_keys=True) + "\n").encode()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _take(path, ours, what, wait)
        except OSError as error:
            raise MissingError(
                f"{path}: cannot create a lock ({error.strerror}); its folder must be writable, not full, "
                f"and on a file system with hard links"
            ) from None
        _clear_leftovers(path)
        yield
    finally:
        # If somebody removed ours by hand, the lock may belong to another process now. If this fails, the
        # lock stays, and soon its owner is dead.
        with contextlib.suppress(OSError):
            if path.read_bytes() == ours:
                path.unlink()


def live_owner(path: Path) -> dict[str, Any] | None:
    """Return the owner of a lock, or None if there is no lock or its owner has died on this host."""
    holder = _holder(path)
    return None if holder is None or holder.state == "dead" else holder.owner


def remove_ended(path: Path, content: bytes, alive: Collection[str], cluster: str | None) -> bool:
    """Remove a lock of this user whose Slurm job has ended, and return whether it was removed.

    Args:
        path: the lock.
        content: its bytes, read before the jobs were listed: a lock taken since then stays.
        alive: all jobs of this user on the cluster.
        cluster: the cluster's name.
    """
    holder = _holder(path)
    job = holder.owner.get("slurm") if holder is not None else None
    if not isinstance(job, dict) or not job.get("job"):
        return False
    if job["job"] in alive or job.get("cluster") != cluster:
        return False
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_uid == os.getuid() and _remove(path, content)
    return False


def _take(path: Path, ours: bytes, what: str, wait: float) -> None:
    owner = json.loads(ours)
    mine = _beside(path, f"{owner['host']}.{owner['pid']}.{owner['token']}")
    try:
        with mine.open("xb") as file:
            file.write(ours)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        deadline = time.monotonic() + max(wait, 1)
        while not _linked(mine, path, ours):
            holder, late = _holder(path), time.monotonic() > deadline
            if holder is not None and holder.state != "dead" and (late or not wait):
                raise _refusal(path, holder, what)
            if late:
                raise BusyError(f"{what}: other processes take or remove the lock {path}; try again")
            if holder is not None and not (holder.state == "dead" and _remove(path, holder.content)):
                time.sleep(0.01)
    finally:
        # Removed at once: with a second name, an NFS client might show a lock that was removed.
        with contextlib.suppress(OSError):
            mine.unlink()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.{suffix}")


def _remove(path: Path, content: bytes) -> bool:
    """Remove a lock that has this content, and return whether this process has removed it.

    A second lock, named after the content, lets one process do so at a time. So the first one is never
    mistaken for the lock that another process takes in the meantime.
    """
    turn = _beside(path, f"{hashlib.sha256(content).hexdigest()[:16]}.removal")
    with contextlib.suppress(BusyError), exclusive(turn, str(path)):
        holder = _holder(path)
        if holder is not None and holder.content == content:
            path.unlink(missing_ok=True)
            return True
    return False


def _linked(mine: Path, path: Path, ours: bytes) -> bool:
    """Make `path` a name of the file `mine`, and return False if another process's lock is there."""
    try:
        os.link(mine, path)
    except OSError as error:
        # NFS may report a failure for a link that it has made, if its first answer is lost. The content is
        # better evidence than the number of links, of which the client may remember an old value.
        with contextlib.suppress(OSError):
            if path.read_bytes() == ours:
                return True
        if not isinstance(error, FileExistsError):
            raise
        return False
    return True


def _clear_leftovers(path: Path) -> None:
    """Remove the private files of processes that were killed while they took this lock."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(glob.escape(str(_beside(path, "").name)) + "*"):
            holder = _holder(left)
            if holder is not None and holder.state == "dead":
                left.unlink(missing_ok=True)


def _refusal(path: Path, holder: _Holder, what: str) -> BusyError:
    removal = f"rm {shlex.quote(str(path.absolute()))}"
    if holder.state == "unreadable":
        text = f"{what}: its lock cannot be read, so its owner is unknown"
        return BusyError(f"{text}; if no process works on it: {removal}")
    process = f"process {holder.owner['pid']} on {holder.owner['host']}"
    if holder.state == "alive":
        return BusyError(f"{what}: {process} works on it; wait, or stop that process")
    if holder.owner["host"] == socket.gethostname():
        process += " (in another container, of another user, or from before a restart)"
    return BusyError(
        f"{what}: {process} works on it; wait, stop that process, or if it no longer exists: {removal}"
    )


def _holder(path: Path) -> _Holder | None:
    """Return who holds a lock, or None if there is no lock."""
    content, owner = b"", None
    try:
        with path.open("rb") as file:
            content = file.read(10_000)
        owner = json.loads(content)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: NFS, and it has just been removed
            return None
    except (ValueError, RecursionError):
        pass
    if (
        isinstance(owner, dict)
        and isinstance(owner.get("pid"), int)
        and isinstance(owner.get("host"), str)
        and owner["host"].isprintable()
    ):
        return _Holder(content, owner, _owner_state(owner))
    return _Holder(content, {"pid": "unknown", "host": "an unknown host"}, "unreadable")


def _owner_state(owner: dict[str, Any]) -> Literal["alive", "dead", "unknown"]:
    """Return whether the owner of a lock is alive.

    Only a process in the same namespaces knows it: of pids, so that a number means the same process, and of
    time, so that start times are comparable.
    """
    here = _this_process()
    ours, theirs = here["slurm"], owner.get("slurm")
    same_job = ours and isinstance(theirs, dict) and all(ours[key] == theirs.get(key) for key in _JOB_KEYS)
    if same_job and ours != theirs:
        return "dead"  # the job before it was requeued, on any node
    if not here["namespaces"] or any(owner.get(key) != here[key] for key in ("host", "namespaces")):
        return "unknown"
    if owner.get("boot") == here["boot"]:
        try:
            started = _start_ticks(owner["pid"])
        except (OSError, OverflowError):
            return "unknown"
        return "alive" if started is not None and started == owner.get("started") else "dead"
    # From before a restart of this machine, if its id says so. Containers may share the id of their image.
    outside = FIRST_PID_NAMESPACE in here["namespaces"]
    return "dead" if outside and here["machine"] and owner.get("machine") == here["machine"] else "unknown"


def _this_process() -> dict[str, Any]:
    """Return what identifies this process across machines, containers and restarts."""
    pid = os.getpid()
    namespaces: list[str] = []
    boot, started = "", None
    # If /proc belongs to another pid namespace, its numbers mean other processes, and nothing is known.
    with contextlib.suppress(OSError):
        if str(Path("/proc/self").readlink()) == str(pid):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            started = _start_ticks(pid)
            kinds = [kind for kind in sorted(Path("/proc/self/ns").iterdir()) if kind.name in _NAMESPACES]
            namespaces = [str(kind.readlink()) for kind in kinds]
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "boot": boot,
        "namespaces": namespaces,
        "pid": pid,
        "started": started,
        "token": secrets.token_hex(8),
        "slurm": _slurm_job(),
    }


def _slurm_job() -> dict[str, str] | None:
    """Return the Slurm job of this process, and how many times it was requeued."""
    names = {"cluster": "SLURM_CLUSTER_NAME", "job": "SLURM_JOB_ID", "restarts": "SLURM_RESTART_COUNT"}
    found = {key: os.environ.get(name, "") for key, name in names.items()}
    return found if found["job"] else None


def _machine() -> str:
    """Return a digest of the machine's id, which is confidential (machine-id(5)), or "" if it has none."""
    with contextlib.suppress(OSError):
        identity = Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
        if re.fullmatch("[0-9a-f]{32}", identity):
            return hashlib.sha256(f"qlora-repeat {identity}".encode()).hexdigest()[:32]
    return ""


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine started (proc(5)); None if it has ended.

    The pid and the start identify a process; a later process may have the same pid.

    Raises:
        PermissionError: the process exists, but /proc hides it from this user.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            raise PermissionError(errno.EPERM, "hidden", f"/proc/{pid}") from None
        return None
    return None if state in "ZX" else int(fields[18])
