"""What the cache keeps of work that gives the same each time: copies, whole, verified, and expendable.

A copy is a folder with a manifest, named after the digest of all that its content depends on.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_repeat.system.files import new_folder, write_json
from qlora_repeat.system.hashing import MANIFEST, folder_digests, json_digest, known_digest


def copy_folder(cache: Path, kind: str, name: str, depends_on: list[Any]) -> Path:
    """Where a copy stands in the cache, or would."""
    return cache / kind / f"{name}-{json_digest(depends_on)[:16]}"


def has_copy(folder: Path) -> bool:
    """Whether a copy is there, and every byte of it as it was written; one that is not is deleted."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [file for file, digest in manifest.items() if known_digest(folder / file) != digest]
    except FileNotFoundError:
        damaged = [MANIFEST] if folder.exists() else []
        if not damaged:
            return False
    except (OSError, ValueError, AttributeError):
        damaged = [MANIFEST]
    if damaged:
        print(f"{folder / damaged[0]}: not as it was written; it is made anew", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    return not damaged


def keep_copy(folder: Path, write: Callable[[Path], None]) -> None:
    """Keeps what `write` puts into a folder; where the disk has no room for it, there is no copy.

    One that another process was first to keep has the same content, and may be being read: it stays.
    """
    if folder.exists():
        return
    try:
        with new_folder(folder, replace=False) as new:
            write(new)
            write_json(new / MANIFEST, folder_digests(new))
    except OSError as error:
        print(f"{folder}: no copy was kept ({error.strerror or error})", file=sys.stderr)
