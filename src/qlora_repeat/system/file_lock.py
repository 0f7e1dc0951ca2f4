"""Let one process at a time work on a trial, by a lock file that names its owner.

It does not use flock, which NFS and similar file systems do not always support. The lock is a hard link,
which appears completely or not at all on those too. Only a lock whose owner has died on this host is removed.
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
from qlora_repeat.system.files import create, flush, link, make_folder, open_regular, remove, rename

TURN_SECONDS = 10.0
"""How long a process waits for another one that is removing the same dead lock."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The namespace outside all containers, which has this number in Linux after every start."""
_JOB_KEYS = ("cluster", "job")
_PLACE = ("host", "machine", "namespaces")
_NAMESPACES = ("net", "pid", "time")  # an old kernel has no time namespaces


@dataclass(frozen=True)
class _Holder:
    """The content of a lock, and whether its owner is alive."""

    owner: dict[str, Any]
    state: Literal["alive", "dead", "unknown", "unreadable"]


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock during the block. A lock whose owner has died on this host is taken over.

    Raises:
        BusyError: another process holds it; names the process, and the command that removes the lock if that
            process may be dead.
        MissingError: the folder cannot hold a lock (read-only, full, or no hard links).
    """
    ours = (json.dumps(_this_process(), indent=2, sort_keys=True) + "\n").encode()
    try:
        try:
            make_folder(path.parent)
            _take(path, ours, what)
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
            if read_lock(path) == ours:
                remove(path)


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
    if not isinstance(job, dict) or not isinstance(job.get("job"), str) or not job["job"]:
        return False
    if job["job"] in alive or job.get("cluster") != cluster:
        return False
    try:
        if path.stat().st_uid != os.getuid() or read_lock(path) != content:
            return False
    except FileNotFoundError:
        return False
    remove(path)
    return True


def read_lock(path: Path) -> bytes:
    """Return the first bytes of a lock, which no lock of the kit exceeds.

    Raises:
        OSError: there is none, or it is not a regular file.
    """
    with open_regular(path) as file:
        return file.read(10_000)


def _take(path: Path, ours: bytes, what: str) -> None:
    owner = json.loads(ours)
    mine = path.with_name(f".{path.name}.{owner['host']}.{owner['pid']}.{owner['token']}")
    try:
        with create(mine) as file:
            file.write(ours)
            flush(file)
        for _ in range(100):  # usually once; again if a lock has just been released or removed
            if _linked(mine, path, ours):
                return
            holder = _holder(path)
            if holder is not None and holder.state != "dead":
                raise _refusal(path, holder, what)
            if holder is not None:
                with _turn(path, what):
                    _remove_dead(path, mine.with_name(f"{mine.name}.dead"))
        raise BusyError(f"{what}: the lock {path} keeps changing; try again")
    finally:
        # Removed at once: with a second name, an NFS client might show a lock that was removed.
        with contextlib.suppress(OSError):
            remove(mine)


def _linked(mine: Path, path: Path, ours: bytes) -> bool:
    """Make `path` a name of the file `mine`, and return False if another process's lock is there."""
    try:
        link(mine, path)
    except OSError as error:
        # NFS may report a failure for a link that it has made, if its first answer is lost. The content is
        # better evidence than the number of links, of which the client may remember an old value.
        with contextlib.suppress(OSError):
            if read_lock(path) == ours:
                return True
        if not isinstance(error, FileExistsError):
            raise
        return False
    return True


@contextlib.contextmanager
def _turn(path: Path, what: str) -> Iterator[None]:
    """Let one process of this host at a time run the block, by socket names, which end with their process.

    A folder has two names: containers see it at different paths, and some file systems change its number.

    Raises:
        BusyError: others take too long, or this process cannot open sockets.
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
                f"({error.strerror}); try again, or run: {_removal(path)}"
            ) from None
        yield


def _bound(name: str, deadline: float) -> socket.socket:
    """Return a socket of this name, as soon as no other process has one."""
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
    """Remove a lock whose owner is dead, in this process's turn, so that no other on this host takes it.

    Another host may take it at the same time, if somebody removed it there. So the lock is moved aside first,
    and put back if its owner turns out to be alive.
    """
    holder = _holder(path)
    if holder is None or holder.state != "dead":
        return
    with contextlib.suppress(FileNotFoundError):
        rename(path, aside)
    moved = _holder(aside)
    if moved is not None and moved.state != "dead":
        with contextlib.suppress(FileExistsError):
            link(aside, path)
    remove(aside)


def _clear_leftovers(path: Path) -> None:
    """Remove the private files of processes that were killed while they took this lock."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            holder = _holder(left)
            if holder is not None and (holder.state == "dead" or _ended_while_writing(left, path, holder)):
                remove(left)


def _ended_while_writing(left: Path, path: Path, holder: _Holder) -> bool:
    """Return whether the process that began this private file ended before it wrote who it is.

    Then only the file's name says so. A process of another container may have this host's name: it would
    have to write its file at this moment, and it would be told to try again.
    """
    prefix = f".{path.name}.{socket.gethostname()}."
    if holder.state != "unreadable" or not left.name.startswith(prefix):
        return False
    pid = left.name.removeprefix(prefix).partition(".")[0]
    return pid.isascii() and pid.isdigit() and len(pid) < 20 and _start_ticks(int(pid)) is None


def _refusal(path: Path, holder: _Holder, what: str) -> BusyError:
    if holder.state == "unreadable":
        return BusyError(
            f"{what}: its lock cannot be read, so its owner is unknown; "
            f"if no process works on it: {_removal(path)}"
        )
    process = f"process {holder.owner['pid']} on {holder.owner['host']}"
    if holder.state == "alive":
        return BusyError(f"{what}: {process} works on it; wait, or stop that process")
    if holder.owner["host"] == socket.gethostname():
        process += " (in another container, of another user, or from before a restart)"
    return BusyError(
        f"{what}: {process} works on it; wait, stop that process, or if it no longer exists: {_removal(path)}"
    )


def _removal(path: Path) -> str:
    return f"rm {shlex.quote(str(path.absolute()))}"


def _holder(path: Path) -> _Holder | None:
    """Return who holds a lock, or None if there is no lock."""
    owner = None
    try:
        owner = json.loads(read_lock(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: NFS, and it has just been removed
            return None
    except (ValueError, RecursionError):
        pass
    if (
        isinstance(owner, dict)
        and isinstance(owner.get("pid"), int)
        and abs(owner["pid"]) < 2**128
        and isinstance(owner.get("host"), str)
        and owner["host"].isprintable()
        and len(owner["host"]) <= 255
    ):
        return _Holder(owner, _owner_state(owner))
    return _Holder({"pid": "unknown", "host": "an unknown host"}, "unreadable")


def _owner_state(owner: dict[str, Any]) -> Literal["alive", "dead", "unknown"]:
    """Return whether the owner of a lock is alive.

    It is known only to a process on the same machine and in the same namespaces: of pids, so that a number
    means the same process; of the network, so that processes that remove locks take turns; of time, so that
    start times are comparable.
    """
    here = _this_process()
    ours, theirs = here["slurm"], owner.get("slurm")
    same_job = ours and isinstance(theirs, dict) and all(ours[key] == theirs.get(key) for key in _JOB_KEYS)
    if same_job and ours != theirs:
        return "dead"  # the job before it was requeued, on any node
    if not here["namespaces"] or any(owner.get(key) != here[key] for key in _PLACE):
        return "unknown"
    if owner.get("boot") == here["boot"]:
        try:
            started = _start_ticks(owner["pid"])
        except (OSError, OverflowError):
            return "unknown"
        return "alive" if started is not None and started == owner.get("started") else "dead"
    # From before a restart of this machine. In a container, its identity may be that of the image.
    return "dead" if FIRST_PID_NAMESPACE in here["namespaces"] and here["machine"] else "unknown"


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
    """Return the Slurm job of this process, and how often it was requeued."""
    names = {"cluster": "SLURM_CLUSTER_NAME", "job": "SLURM_JOB_ID", "restarts": "SLURM_RESTART_COUNT"}
    found = {key: os.environ.get(name, "") for key, name in names.items()}
    return found if found["job"] else None


def _machine() -> str:
    """Return a digest of the machine's id and of the addresses of its network cards, or "" if it lacks one.

    A cloned machine has the same id and perhaps the same host name, but other cards. The id is confidential
    (machine-id(5)).
    """
    try:
        identity = Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
        cards = [card for card in Path("/sys/class/net").iterdir() if (card / "device").exists()]
        addresses = sorted((card / "address").read_text("ascii", "replace").strip() for card in cards)
    except OSError:
        return ""
    addresses = [each for each in addresses if re.fullmatch("(..:){5}..", each)]  # InfiniBand's may change
    if not re.fullmatch("[0-9a-f]{32}", identity) or not addresses:
        return ""
    return hashlib.sha256(" ".join(["qlora-repeat", identity, *addresses]).encode()).hexdigest()[:32]


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
