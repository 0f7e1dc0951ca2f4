"""Keep copies of reproducible work in the cache: complete, verified, and safe to delete.

A copy is a folder with a manifest. Its name has the digest of everything that its content depends on.
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
    """Return the cache folder for a copy."""
    return cache / kind / f"{name}-{json_digest(depends_on)[:16]}"


def has_copy(folder: Path) -> bool:
    """Return whether a copy exists and its bytes are unchanged. Delete a changed copy."""
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
        print(f"{folder / damaged[0]}: its content has changed; it is written again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    return not damaged


def keep_copy(folder: Path, write: Callable[[Path], None]) -> None:
    """Keep what `write` puts into a folder, or no copy if the disk is full.

    A copy that another process has kept in the meantime stays: it has the same content, and may be in use.
    """
    if folder.exists():
        return
    try:
        with new_folder(folder, replace=False) as new:
            write(new)
            write_json(new / MANIFEST, folder_digests(new))
    except OSError as error:
        print(f"{folder}: no copy was kept ({error.strerror or error})", file=sys.stderr)
