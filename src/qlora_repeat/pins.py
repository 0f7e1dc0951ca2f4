"""A study's lock file, ``studies/NAME.lock``: which commit and which bytes each hub repository was at first.

Written by the first fetch and to be kept with the study file: a later fetch that finds other bytes refuses.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.files import write_json
from qlora_repeat.sources import Hub
from qlora_repeat.study import study_path

_STRICT = ConfigDict(extra="forbid", strict=True)
Kind = Literal["model", "dataset"]

SOURCE = "source.json"
"""The pin that a folder of the cache was made from, where that was a hub's."""


@checked_dataclass(frozen=True, config=_STRICT)
class PinnedFile:
    """A file of a repository."""

    size: int
    """Bytes."""
    digest: str
    """SHA-256, or the SHA-1 of a Git blob where a hub has told no better and nothing was downloaded yet."""


@checked_dataclass(frozen=True, config=_STRICT)
class Pin:
    """A repository as it was at its first fetch."""

    kind: Kind
    revision: str
    """What the study asks for."""
    commit: str
    """What that was."""
    files: dict[str, PinnedFile]
    converted: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the safetensors made from its pickled weights, where it has no other."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class LockFile:
    """A study's lock file, which may not be there yet."""

    path: Path

    def pin(self, hub: Hub) -> Pin | None:
        """The pin of a repository, or None.

        Raises:
            UsageError: the file is not a lock file, or pins another revision than the study asks for.
        """
        pin = self._read().get(hub.repository)
        if pin is not None and pin.revision != hub.revision:
            raise UsageError(
                f"{self.path}: {hub.repository} is locked at revision {pin.revision}, the study asks for "
                f"{hub.revision}; delete that entry if the study is right"
            )
        return pin

    def add(self, hub: Hub, pin: Pin) -> None:
        """Writes a repository's pin, keeping the others.

        Raises:
            MissingError: the file cannot be written.
        """
        try:
            write_json(
                self.path,
                {name: asdict(each) for name, each in self._read().items()} | {hub.repository: asdict(pin)},
            )
        except OSError as error:
            raise MissingError(
                f"{self.path}: cannot be written ({error.strerror}); set QLORA_REPEAT_LOCK to another path"
            ) from None

    def _read(self) -> dict[str, Pin]:
        try:
            text = self.path.read_text(encoding="utf-8")
            return TypeAdapter(dict[str, Pin]).validate_json(text)
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{self.path}: not a readable lock file ({reason}); delete it to lock anew"
            ) from None


def lock_file(study: str) -> LockFile:
    """The lock file of a study given by name or path: $QLORA_REPEAT_LOCK, or beside the study file."""
    given = os.environ.get("QLORA_REPEAT_LOCK")
    return LockFile(Path(given) if given else study_path(study).with_suffix(".lock"))


def read_source(path: Path) -> Pin | None:
    """The pin that a folder in the cache was made from, or None where it says nothing readable."""
    try:
        return TypeAdapter(Pin).validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def source_json(pin: Pin) -> dict[str, Any]:
    """A pin as JSON."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(pin)))
    return found
