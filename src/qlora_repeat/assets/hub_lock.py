"""Read and write a study's hub lock, ``studies/NAME.lock``: the commit and files of each hub repository.

The first fetch writes it, and it belongs with the study file. A later fetch refuses other bytes.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from qlora_repeat.errors import BusyError, MissingError, UsageError
from qlora_repeat.study.data_sources import Hub, Repository, Revision, Sha256
from qlora_repeat.study.toml_file import one_line
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import read_file, write_json
from qlora_repeat.system.package_data import in_wheel

_STRICT = ConfigDict(extra="forbid", strict=True)
COMMIT = r"^[0-9a-f]{40}$"
RepositoryKind = Literal["model", "dataset"]
LARGEST = 20_000_000
"""Bytes of a lock file."""
MOST_KEYS = 300_000
"""Keys of a lock file; each file of a repository has three."""
WAIT_SECONDS = 10.0
"""How long a process waits for another one that adds a pin."""


def _file_name(name: str) -> str:
    """Return a path in a repository. It becomes a path in the cache, and a pattern of what to download."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or re.search(r"[*?\[\]\\]", name):
        raise ValueError(f"file {name[:80]!r} is not a path in the repository")
    return one_line(name)


FileName = Annotated[str, Field(max_length=1000), AfterValidator(_file_name)]


@checked_dataclass(frozen=True, config=_STRICT)
class PinnedFile:
    """A file of a repository."""

    size: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes."""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
    """SHA-256, or the SHA-1 of a Git blob if the hub gives nothing else and nothing was downloaded yet."""


@checked_dataclass(frozen=True, config=_STRICT)
class Pin:
    """The state of a repository at its first fetch."""

    kind: RepositoryKind
    revision: Revision
    """The revision in the study file."""
    commit: Annotated[str, Field(pattern=COMMIT)]
    """The commit of that revision."""
    files: dict[FileName, PinnedFile]
    """By their paths in the repository."""
    converted: dict[FileName, Sha256] = field(default_factory=dict)
    """SHA-256 of the safetensors that were made from pickled weights."""


@dataclass(frozen=True)
class LockFile:
    """A study's lock file, which may not exist yet."""

    path: Path
    shipped: Path | None = None
    """The lock file in the kit, which is read until `path` exists."""

    @property
    def current(self) -> Path:
        """The file that is read."""
        return self.shipped if self.shipped and not self.path.exists() else self.path

    def pin(self, hub: Hub) -> Pin | None:
        """Return the pin of a repository, or None.

        Raises:
            UsageError: the file is not a lock file, or pins another revision than the study file has.
        """
        pin = self._read().get(hub.repository)
        if pin is not None and pin.revision != hub.revision:
            raise UsageError(
                f"{self.path}: {hub.repository} is locked at revision {pin.revision}, the study asks for "
                f"{hub.revision}; delete that entry if the study is right"
            )
        return pin

    def add(self, hub: Hub, pin: Pin) -> Pin:
        """Add a repository's pin unless the file has one now, and return the pin in the file.

        Raises:
            MissingError: the file cannot be written.
        """
        with self._writable(), self._alone():
            found = self.pin(hub)
            if found is None:
                others = {name: asdict(each) for name, each in self._read().items()}
                write_json(self.path, others | {hub.repository: asdict(pin)})
            return found or pin

    def require_writable(self) -> None:
        """Check, before a long download, that pins can be added.

        Raises:
            MissingError: the file cannot be written.
        """
        with self._writable(), self._alone():
            pass

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "its folder is a file" if isinstance(error, FileExistsError) else error.strerror
            raise MissingError(
                f"{self.path}: cannot be written ({reason}); set QLORA_REPEAT_LOCK to another path"
            ) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for other processes that add pins, so that no pin is lost."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path.parent), contextlib.ExitStack() as held:
            last_try = time.monotonic() + WAIT_SECONDS
            beside = self.path.with_name(f".{self.path.name}.json")
            while True:
                try:
                    held.enter_context(exclusive(beside, str(self.path)))
                    break
                except BusyError:
                    if time.monotonic() > last_try:
                        raise
                    time.sleep(0.05)
            yield

    def _read(self) -> dict[str, Pin]:
        try:
            content = read_file(self.current, LARGEST, follow=True)
            if content.count(b":") > MOST_KEYS:
                raise ValueError(f"it has more than {MOST_KEYS} keys")
            return TypeAdapter(dict[Repository, Pin]).validate_json(content)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValidationError as error:
            reason = validation_message(error, [])
        except OSError as error:
            reason = error.strerror or str(error)
        except ValueError as error:
            reason = str(error)
        raise UsageError(f"{self.current}: not a readable lock file ({reason}); delete it to lock again")


def lock_file(workspace: Workspace) -> LockFile:
    """Return the lock file of a study; for a study of the kit it starts as a copy of the kit's file."""
    beside = workspace.file.with_suffix(".lock")
    shipped = beside if in_wheel(beside) and beside.is_file() else None
    return LockFile(workspace.lock, shipped)


def read_source(path: Path) -> Pin | None:
    """Return the pin that a cache folder was made from, or None if it has no readable one."""
    try:
        return TypeAdapter(Pin).validate_json(read_file(path, LARGEST, follow=True))
    except (OSError, ValueError):
        return None
