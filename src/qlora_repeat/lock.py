"""One process per trial: a lock file that names its owner."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from qlora_repeat.errors import BusyError
from qlora_repeat.files import write_json


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock for the block. A lock whose owner has died on this host is taken over.

    Raises:
        BusyError: another process holds it; says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
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
    if _linked(mine, path):
        return
    if (holder := live_owner(path)) is not None:
        raise BusyError(
            f"{what}: process {holder['pid']} on {holder['host']} works on it; wait, or stop that one"
        )
    # The owner is dead. Only one process at a time may act on that, and it looks again: by now another may
    # have taken the lock over and be alive.
    guard = path.with_name(f"{path.name}.takeover")
    if not _linked(mine, guard):
        if live_owner(guard) is None:
            guard.unlink(missing_ok=True)
        raise BusyError(f"{what}: another process is taking it over from one that died; try again")
    try:
        if live_owner(path) is None:
            path.unlink(missing_ok=True)
        if not _linked(mine, path):
            raise BusyError(f"{what}: another process took it just now")
    finally:
        guard.unlink(missing_ok=True)


def _linked(mine: Path, path: Path) -> bool:
    """Whether `path` could be made a name of the file `mine`: at once and never half written, even over NFS."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    return True


def live_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does, or its owner has died on this host."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return owner if owner["host"] != socket.gethostname() or _lives(owner) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _lives(owner: dict[str, Any]) -> bool:
    process = psutil.Process(owner["pid"])
    # A number may belong to a later process by now, and a zombie keeps its number.
    return process.create_time() == owner["started"] and process.status() != psutil.STATUS_ZOMBIE
