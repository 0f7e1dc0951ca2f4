"""Folders that nobody else can change, for results that must not be planted."""

import os
import stat
from pathlib import Path

from qlora_repeat.errors import UsageError

_PRIVATE = 0o700


def make_private(folder: Path) -> None:
    """Make a folder with mode 0700, with its parents, or take the mode of an existing one back to 0700.

    Raises:
        UsageError: the folder is a link or belongs to somebody else, or everybody can rename it or a folder
            above it.
    """
    folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{folder}: a link; give the folder itself")
    if found.st_uid != os.geteuid():
        raise UsageError(
            f"{folder}: belongs to another user, who could change results; give a folder of your own"
        )
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UsageError(
                f"{folder}: everybody can write to {above}, and so replace results; give a folder elsewhere"
            )
    if stat.S_IMODE(found.st_mode) != _PRIVATE:
        folder.chmod(_PRIVATE)


def is_private(folder: Path) -> bool:
    """Return whether a folder is one of this user's that nobody else could write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
