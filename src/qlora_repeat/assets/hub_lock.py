"""Read and write a study's lock, ``studies/NAME.lock``: the commit and files of each hub repository.

It also has the digests and numbers of rows of other sources, if the study file does not give them.

The first fetch writes it, and it belongs with the study file. A later fetch refuses other bytes.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qlora_repeat.assets.pins import Found, Pin, read_lock, read_pin, shipped_lock
from qlora_repeat.errors import BusyError, MissingError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import make_folder, write_json

WAIT_SECONDS = 10.0
"""How long a process waits for another one that adds a pin."""


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
        """Return the pin of a repository, or None; raises as `read_pin`."""
        return read_pin(self.current, hub, self.path)

    def add(self, hub: Hub, pin: Pin) -> Pin:
        """Add a repository's pin unless the file has one now, and return the pin in the file.

        What was converted is added to a pin that lacks it. Only call it with files that come from the hub or
        from its cache, because anybody who can write to the kit's cache could otherwise choose the pin.

        Raises:
            MissingError: the file cannot be written.
        """
        with self._writable(), self._alone():
            found = self.pin(hub)
            kept = found or pin
            if (kept.commit, kept.files) == (pin.commit, pin.files):
                kept = replace(kept, converted=pin.converted | kept.converted)
            if kept != found:
                self._write(hub.repository, kept)
            return kept

    def add_found(self, key: str, found: Found) -> None:
        """Add what a fetch found of a base or data set, in place of an entry for another source.

        Raises:
            MissingError: the file cannot be written.
        """
        with self._writable(), self._alone():
            if read_lock(self.current).get(key) != found:
                self._write(key, found)

    def _write(self, key: str, entry: Pin | Found) -> None:
        others = {name: asdict(each) for name, each in read_lock(self.current).items()}
        write_json(self.path, others | {key: asdict(entry)})

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
        make_folder(self.path.parent)
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


def lock_file(workspace: Workspace) -> LockFile:
    """Return the lock file of a study; for a study of the kit it starts as a copy of the kit's file."""
    return LockFile(workspace.lock, shipped_lock(workspace))
