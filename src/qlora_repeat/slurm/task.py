"""What a job of a cluster does: the kit's commands, each in a process of its own below submitit's."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, StageError, StoppedError

SECONDS_TO_REQUEUE = 30
"""Of the warning before a limit: for submitit to have the task queued again."""
MOST_KILLED = 2
"""So often in a row may a task be killed for not having stopped in time: it makes no progress."""
SECONDS_TO_BE_ENDED = 900
"""A task whose process was told to stop by Slurm is ended by Slurm: at the latest after a grace time."""
STOPPED = (StoppedError.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that Slurm has stopped; the latter two of one that was still starting."""


@dataclass(frozen=True)
class ImageFile:
    """An image, as it was when a task was submitted: its record is to have the digest of what it runs in."""

    path: str
    size: int
    changed: int
    """Nanoseconds since 1970."""

    @classmethod
    def at(cls, path: Path) -> "ImageFile":
        """The image as it is now."""
        now = path.stat()
        return cls(str(path), now.st_size, now.st_mtime_ns)


@dataclass
class Task:
    """What a job does: commands one after the other. submitit keeps it in a file, and calls it."""

    commands: list[list[str]]
    folder: str
    """Where they are started."""
    warning: int
    """Seconds between the signal to stop and the end of the job's time."""
    image: ImageFile | None = None
    """The file that they run in."""
    killed: int = 0
    """How often in a row it had to be killed."""
    _running: "subprocess.Popen[bytes] | None" = field(default=None, init=False, repr=False, compare=False)

    def __call__(self) -> None:
        """Runs them all, also where one fails.

        Raises:
            MissingError: the image has changed since.
            StageError: a command has failed.
        """
        self._require_same_image()
        failed = []
        for command in self.commands:
            self._running = subprocess.Popen(command, cwd=self.folder)
            if (code := self._running.wait()) in STOPPED:
                # By Slurm, not by `checkpoint`: it preempts or cancels. A job that ends by itself in its
                # grace time counts as failed, and is not queued again; one that waits is.
                time.sleep(SECONDS_TO_BE_ENDED)
            if code:
                failed.append(f"{' '.join(command)}: exit code {code}")
        if failed:
            raise StageError("; ".join(failed))

    def checkpoint(self) -> Any:
        """What goes on in its place when it is queued again: the same, once the process has stopped.

        Returns:
            None where nothing is to be queued again: the process needs longer to stop than there is.
        """
        from submitit.helpers import DelayedSubmission

        killed = 0
        running = self._running if self._running and self._running.returncode is None else None
        if running is not None and not _stopped(running.pid, self.warning - SECONDS_TO_REQUEUE):
            killed = self.killed + 1
            if killed >= MOST_KILLED:
                print(
                    f"Killed {killed} times in a row, for a step took longer than the {self.warning} seconds "
                    "between the warning and the end of the job's time: no progress is to be expected. "
                    "Submit it with a longer --time.",
                    file=sys.stderr,
                    flush=True,
                )
                return None
        return DelayedSubmission(replace(self, killed=killed))

    def _require_same_image(self) -> None:
        if self.image is None:
            return
        path = Path(self.image.path)
        if not path.is_file():
            raise MissingError(f"{path}: not there, where it was submitted")
        if ImageFile.at(path) != self.image:
            raise MissingError(f"{path}: changed since this task was submitted; submit it again")


def _stopped(pid: int, seconds: float) -> bool:
    """Asks a child to stop, and waits; one that has not stopped in time is killed.

    Not by the methods of Popen: what the signal interrupts may be waiting there, and hold its lock.
    """
    ends = time.monotonic() + max(seconds, 1)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGUSR1)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > ends:
                os.kill(pid, signal.SIGKILL)
                return False
            time.sleep(0.1)
    return True
