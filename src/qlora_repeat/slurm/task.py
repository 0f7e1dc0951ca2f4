"""The task of a cluster job: commands of the kit, each in its own process."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, StageError, StoppedError
from qlora_repeat.system.printable import say

SECONDS_TO_REQUEUE = 30
"""Seconds of the warning that submitit needs to requeue the task."""
MOST_KILLED = 2
"""A task that was killed this number of times in a row makes no progress and is not requeued."""
SECONDS_TO_BE_ENDED = 900
"""The longest time in which Slurm ends a task after it has stopped the process."""
STOPPED = (StoppedError.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that Slurm has stopped; the last two if it was still starting."""


def image_state(path: Path) -> tuple[str, int, int]:
    """Return the path, the size and the time of the last change of an image file."""
    now = path.stat()
    return str(path), now.st_size, now.st_mtime_ns


@dataclass
class Task:
    """Commands that a job runs one after the other. submitit pickles the task and calls it."""

    commands: list[list[str]]
    folder: str
    """The working directory."""
    warning: int
    """Seconds between the signal to stop and the end of the job's time."""
    image: tuple[str, int, int] | None = None
    """The `image_state` of the image that the commands run in, which must not change."""
    killed: int = 0
    """The number of times in a row that the task was killed."""
    _running: "subprocess.Popen[bytes] | None" = field(default=None, init=False, repr=False, compare=False)

    def __call__(self) -> None:
        """Run all commands, even if one fails.

        Raises:
            MissingError: the image was changed or removed after the submission.
            StageError: a command has failed.
        """
        if self.image is not None:
            path = Path(self.image[0])
            if not path.is_file() or image_state(path) != self.image:
                raise MissingError(f"{path}: changed since this task was submitted; submit it again")
        failed = []
        for command in self.commands:
            self._running = subprocess.Popen(command, cwd=self.folder)
            if (code := self._running.wait()) in STOPPED:
                # Slurm preempts or cancels the job. A job that ends by itself in its grace time counts as
                # failed and is not requeued, so wait until Slurm ends it.
                time.sleep(SECONDS_TO_BE_ENDED)
            if code:
                failed.append(f"{' '.join(command)}: exit code {code}")
        if failed:
            raise StageError("; ".join(failed))

    def checkpoint(self) -> Any:
        """Stop the process and return the task to requeue.

        Returns:
            The same task; None if the process repeatedly needs longer to stop than the warning allows.
        """
        from submitit.helpers import DelayedSubmission

        killed = 0
        running = self._running if self._running and self._running.returncode is None else None
        if running is not None and not _stopped(running.pid, self.warning - SECONDS_TO_REQUEUE):
            killed = self.killed + 1
            if killed >= MOST_KILLED:
                text = (
                    f"killed {killed} times: a step took longer than {self.warning} seconds, the time between"
                )
                say(f"{text} the warning and the time limit; submit the task with a longer --time")
                return None
        return DelayedSubmission(replace(self, killed=killed))


def _stopped(pid: int, seconds: float) -> bool:
    """Ask a child to stop and wait; kill it if it does not stop in time. Return whether it stopped.

    Popen's methods are not used: the interrupted code may be waiting in them and hold their lock.
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
