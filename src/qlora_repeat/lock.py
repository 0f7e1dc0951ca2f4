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
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            os.link(mine, path)  # atomic, and a complete file: unlike O_EXCL, also over NFS
            return
        if (holder := live_owner(path)) is not None:
            raise BusyError(
                f"{what}: process {holder['pid']} on {holder['host']} works on it; wait, or stop that one"
            )
        # By renaming, only one of several processes takes over a dead owner's lock.
        gone = mine.with_name(f"{mine.name}.dead")
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, gone)
            gone.unlink()
    raise BusyError(f"{what}: another process took it just now")


def live_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does, or its owner has died on this host."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if owner["host"] != socket.gethostname():
            return owner
        return owner if psutil.Process(owner["pid"]).create_time() == owner["started"] else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
