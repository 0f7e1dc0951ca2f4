"""One process per trial: a lock file that names its owner."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.errors import BusyError
from qlora_repeat.files import write_json


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock for the block. A lock whose owner has died on this host is taken over.

    Raises:
        BusyError: another process holds it; says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_ticks(os.getpid())}
    mine = path.with_name(f".{path.name}.{owner['host']}.{owner['pid']}")
    write_json(mine, owner)
    try:
        _take(path, mine, what)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def _take(path: Path, mine: Path, what: str) -> None:
    """Makes `path` a name of the file `mine`.

    Processes of one host take turns on the folder's own lock, which the kernel releases however one ends:
    none removes what another has just taken. Another host's lock is never removed; a link is all or nothing.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if live_owner(path) is None:
            path.unlink(missing_ok=True)
        os.link(mine, path)
    except FileExistsError:
        holder = live_owner(path) or {"pid": "?", "host": "?"}
        raise BusyError(
            f"{what}: process {holder['pid']} on {holder['host']} works on it; "
            f"wait, stop that one, or delete {path} if it is no more"
        ) from None
    finally:
        os.close(folder)


def live_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does, or its owner has died on this host."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        dead = owner["host"] == socket.gethostname() and _start_ticks(owner["pid"]) != owner["started"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {"pid": "unknown", "host": "a host unknown"}
    return None if dead else owner


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the machine did (proc(5)); None if it is no more, or a zombie.

    With the number it identifies a process: a number alone may belong to a later one by now.
    """
    try:
        state, *fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(fields[18])
