"""One process per trial: a lock file that names its owner.

It needs no flock, which NFS and its like do not always keep. The lock is a hard link, which is made whole or
not at all there too; its content tells who holds it; and only a lock of this host's dead is ever removed.
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

TURN_SECONDS = 10.0
"""How long a process waits for another that is removing the same dead lock."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The one outside of all containers: Linux gives it this number at every start."""
_NAMESPACES = ("net", "pid", "time")  # an old kernel has no time namespaces


@dataclass(frozen=True)
class _Holder:
    """What a lock says, and what that is worth."""

    owner: dict[str, Any]
    state: Literal["alive", "dead", "unjudged", "unreadable"]


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock for the block. A lock whose owner has died on this host is taken over.

    Raises:
        BusyError: another process holds it; says which, and what clears the lock if that one may be dead.
        MissingError: the folder takes no lock: read-only, full, or without hard links.
    """
    ours = (json.dumps(_this_process(), indent=2, sort_keys=True) + "\n").encode()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _take(path, ours, what)
        except OSError as error:
            raise MissingError(
                f"{path}: no lock can be made ({error.strerror}); its folder must be writable, not full, "
                f"and on a file system that has hard links"
            ) from None
        _clear_leftovers(path)
        yield
    finally:
        # If somebody cleared ours by hand, it is another's by now. One left behind is soon a dead process's.
        with contextlib.suppress(OSError):
            if path.read_bytes() == ours:
                path.unlink()


def live_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does, or its owner has died on this host."""
    holder = _holder(path)
    return None if holder is None or holder.state == "dead" else holder.owner


def remove_ended(path: Path, content: bytes, alive: Collection[str], cluster: str | None) -> bool:
    """Removes a lock of this user's whose job of Slurm is not among the jobs that are alive; whether it did.

    Only for who knows all of this user's jobs on the cluster, and has read the lock's content before: a job
    that has begun since is not among them.
    """
    holder = _holder(path)
    job = holder.owner.get("slurm") if holder is not None else None
    if (
        not isinstance(job, dict)
        or not job.get("job")
        or job["job"] in alive
        or job.get("cluster") != cluster
    ):
        return False
    try:
        if path.stat().st_uid != os.getuid() or path.read_bytes() != content:
            return False
    except FileNotFoundError:
        return False
    path.unlink(missing_ok=True)
    return True


def _take(path: Path, ours: bytes, what: str) -> None:
    owner = json.loads(ours)
    mine = path.with_name(f".{path.name}.{owner['host']}.{owner['pid']}.{owner['token']}")
    try:
        with mine.open("xb") as file:
            file.write(ours)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        for _ in range(100):  # in most cases once; again when a lock has just been given back or removed
            if _linked(mine, path, ours):
                return
            holder = _holder(path)
            if holder is not None and holder.state != "dead":
                raise _refusal(path, holder, what)
            if holder is not None:
                with _turn(path, what):
                    _remove_dead(path, mine.with_name(f"{mine.name}.dead"))
        raise BusyError(f"{what}: {path} cannot be taken, it comes and goes; try again")
    finally:
        # Not kept as long as the lock: by a second name, an NFS client might show one that has been removed.
        with contextlib.suppress(OSError):
            mine.unlink()


def _linked(mine: Path, path: Path, ours: bytes) -> bool:
    """Makes `path` a name of the file `mine`; False if another process's lock is there."""
    try:
        os.link(mine, path)
    except OSError as error:
        # NFS may report a failure for a link that it has made, its first answer being lost. The content shows
        # it better than the number of links, which the client may remember from before.
        with contextlib.suppress(OSError):
            if path.read_bytes() == ours:
                return True
        if not isinstance(error, FileExistsError):
            raise
        return False
    return True


@contextlib.contextmanager
def _turn(path: Path, what: str) -> Iterator[None]:
    """One process of this host at a time, by names of sockets: no files, and gone with their process.

    A folder has two: containers see it at different paths, and some file systems number it anew.

    Raises:
        BusyError: others keep the turn for too long, or this process may have no sockets.
    """
    folder = path.parent.stat()
    deadline = time.monotonic() + TURN_SECONDS
    with contextlib.ExitStack() as held:
        try:
            for place in (str(path.parent.resolve()), f"{folder.st_dev}:{folder.st_ino}"):
                digest = hashlib.sha256(os.fsencode(f"{place}/{path.name}")).hexdigest()
                held.enter_context(_bound(f"\0qlora-repeat-{digest}", deadline))
        except OSError as error:
            raise BusyError(
                f"{what}: the process that worked on it is dead, but its lock cannot be removed "
                f"({error.strerror}); try again, or: {_removal(path)}"
            ) from None
        yield


def _bound(name: str, deadline: float) -> socket.socket:
    """A socket of this name, once no other process has one."""
    while True:
        taken = socket.socket(socket.AF_UNIX)
        try:
            taken.bind(name)
        except OSError as error:
            taken.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        else:
            return taken
        time.sleep(0.01)


def _remove_dead(path: Path, aside: Path) -> None:
    """Removes a lock whose owner is dead. Only in this process's turn: else another may just have taken it.

    Another host still may, if somebody cleared it there: so it is moved aside, and put back if it is alive.
    """
    holder = _holder(path)
    if holder is None or holder.state != "dead":
        return
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    moved = _holder(aside)
    if moved is not None and moved.state != "dead":
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    """Removes the private files of processes that were killed while they took this lock."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            holder = _holder(left)
            if holder is not None and holder.state == "dead":
                left.unlink(missing_ok=True)


def _refusal(path: Path, holder: _Holder, what: str) -> BusyError:
    pid, host = holder.owner["pid"], holder.owner["host"]
    if holder.state == "unreadable":
        return BusyError(
            f"{what}: its lock is unreadable, so who works on it is unknown; if nobody does: {_removal(path)}"
        )
    if holder.state == "alive":
        return BusyError(f"{what}: process {pid} on {host} works on it; wait, or stop that process")
    hidden = (
        " (out of sight: another container or user, or before a restart)"
        if host == socket.gethostname()
        else ""
    )
    return BusyError(
        f"{what}: process {pid} on {host}{hidden} works on it; "
        f"wait, stop that process, or if it is no more: {_removal(path)}"
    )


def _removal(path: Path) -> str:
    return f"rm {shlex.quote(str(path.absolute()))}"


def _holder(path: Path) -> _Holder | None:
    """Whose lock a file is; None if it is not there."""
    owner = None
    try:
        with path.open("rb") as file:
            owner = json.loads(file.read(10_000))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # the latter from NFS: it has just been removed
            return None
    except (ValueError, RecursionError):
        pass
    if (
        isinstance(owner, dict)
        and isinstance(owner.get("pid"), int)
        and isinstance(owner.get("host"), str)
        and owner["host"].isprintable()
    ):
        return _Holder(owner, _judged(owner))
    return _Holder({"pid": "unknown", "host": "a host unknown"}, "unreadable")


def _judged(owner: dict[str, Any]) -> Literal["alive", "dead", "unjudged"]:
    """Whether the owner of a lock lives, where that is certain.

    Whoever judges shares its namespaces: that of pids, so that a number means the same process; that of the
    network, so that all who judge it take turns; that of time, so that they read the same start.
    """
    here = _this_process()
    ours, theirs = here["slurm"], owner.get("slurm")
    if ours and isinstance(theirs, dict) and _of_one_job(ours, theirs) and ours != theirs:
        return "dead"  # the same job before it was queued again, on whatever node
    if not here["namespaces"] or any(owner.get(key) != here[key] for key in ("host", "namespaces")):
        return "unjudged"
    if owner.get("boot") == here["boot"]:
        try:
            started = _start_ticks(owner["pid"])
        except (OSError, OverflowError):
            return "unjudged"
        return "alive" if started is not None and started == owner.get("started") else "dead"
    # An earlier start of this machine, if its id says so; that of a container's image may be on two machines.
    outside = FIRST_PID_NAMESPACE in here["namespaces"]
    return "dead" if outside and here["machine"] and owner.get("machine") == here["machine"] else "unjudged"


def _this_process() -> dict[str, Any]:
    """What tells this process from all others: of other machines, containers, and starts of this machine."""
    pid = os.getpid()
    namespaces: list[str] = []
    boot, started = "", None
    # Where /proc is of another pid namespace than this process, its numbers mean others: nothing is known.
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
        "slurm": slurm_job(),
    }


def slurm_job() -> dict[str, str] | None:
    """The job of Slurm that this process belongs to, and how often it was queued again."""
    names = {"cluster": "SLURM_CLUSTER_NAME", "job": "SLURM_JOB_ID", "restarts": "SLURM_RESTART_COUNT"}
    found = {key: os.environ.get(name, "") for key, name in names.items()}
    return found if found["job"] else None


def _of_one_job(ours: dict[str, str], theirs: dict[str, Any]) -> bool:
    return all(ours[key] == theirs.get(key) for key in ("cluster", "job"))


def _machine() -> str:
    """A digest of the machine's id, which itself is not to be shown (machine-id(5)); empty if it has none."""
    try:
        identity = Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
    if not re.fullmatch("[0-9a-f]{32}", identity):
        return ""
    return hashlib.sha256(f"qlora-repeat {identity}".encode()).hexdigest()[:32]


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the machine did (proc(5)); None if it is no more, or a zombie.

    With the number it identifies a process: a number alone may belong to a later one by now.

    Raises:
        PermissionError: it is there, but /proc hides it from this user.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            raise PermissionError(errno.EPERM, "hidden", f"/proc/{pid}") from None
        return None
    return None if state in "ZX" else int(fields[18])
