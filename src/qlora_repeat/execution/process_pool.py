"""Many jobs, each in a process of its own, forked from a server that has imported the libraries.

The server (multiprocessing's forkserver) has touched no model and no device, so every job starts as fresh
as a new process would, without paying for the imports again.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any, Protocol

from qlora_repeat.errors import BusyError, KitError, StageError, StoppedError
from qlora_repeat.study.trial import Progress
from qlora_repeat.system.files import disk_error
from qlora_repeat.system.gpus import on_cpu, visible_gpus
from qlora_repeat.system.signals import (
    SIGNALS,
    defer,
    deferrable,
    signals_blocked,
    stop_if_requested,
    stop_on_signals,
)

PRELOAD = ["qlora_repeat.execution.preload"]


class Job(Protocol):
    """What a process of its own does; it is pickled.

    What the process prints goes to `log`. Jobs of one `kind` take about as long as each other: that is a
    model, and whether its base is tested. `run` does the work; where its process ends without a word of its
    own, the parent calls `failed`.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> tuple[str, bool]: ...
    @property
    def log(self) -> Path: ...
    def run(self, progress: Progress) -> None: ...
    def failed(self, error: str) -> None: ...


class Watcher(Protocol):
    """Sees how the jobs go."""

    def started(self, job: Job) -> None: ...
    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None: ...
    def ended(self, job: Job, error: KitError | None, seconds: float) -> None: ...


def run_jobs(jobs: Sequence[Job], workers: int, watcher: Watcher) -> list[KitError]:
    """Run jobs, at most `workers` at a time; one that fails does not stop the others.

    Returns:
        Why jobs did not end well: StageError, BusyError where another process works on the same, or
        StoppedError.

    Raises:
        KeyboardInterrupt, StoppedError: after every running job has been asked to stop, and has: those that
            fine-tune end their step and keep a checkpoint. Another Ctrl-C kills them.
    """
    context = _server()
    waiting, errors, gpus = list(jobs), list[KitError](), visible_gpus()
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                busy = [child.gpu for child in running]
                gpu = min(gpus, key=busy.count, default=None)
                job = waiting.pop(0)
                with deferrable():
                    defer()  # or a job could be started that nobody knows of
                    try:
                        running.append(_start(context, job, gpu, watcher))
                    except OSError as error:
                        errors.append(StageError(f"{job.name}: {disk_error(error, job.log.parent)}"))
                        watcher.started(job)
                        watcher.ended(job, errors[-1], 0)
                stop_if_requested()
            for child in _ready(running):
                if child.listen(watcher):
                    continue
                running.remove(child)
                if child.error is not None:
                    errors.append(child.error)
    finally:
        _stop(running)
    return errors


def _server() -> Any:
    """The context of processes forked from a server, which heeds no signal but its parent's end.

    A scheduler sends its signals to every process of a job, and the server is one too. Its children are born
    with signals held back, so that none is lost before they can heed it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD if on_cpu() else [])
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        resource_tracker.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with signals_blocked():
        forkserver.ensure_running()
    return context


def _stop(running: Sequence["_Child"]) -> None:
    try:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.join()
    except BaseException:
        for child in running:
            child.process.kill()
        raise


_ERRORS = {"done": None, "failed": StageError, "busy": BusyError, "stopped": StoppedError}
"""What a job's last message makes of it."""


class _Child:
    """A running job: its process, and the pipe on which it tells how it goes."""

    def __init__(self, job: Job, process: Any, pipe: connection.Connection, gpu: str | None) -> None:
        self.job, self.process, self.pipe, self.gpu = job, process, pipe, gpu
        self.began = time.monotonic()
        self.error: KitError | None = None
        self._closed_well = False

    def listen(self, watcher: Watcher) -> bool:
        """Passes on one message; False once the job has ended."""
        try:
            kind, *rest = self.pipe.recv()
        except EOFError:
            kind = "ended"
        if kind == "progress":
            watcher.progress(self.job, *rest)
            return True
        if kind in _ERRORS:
            self._closed_well = True
            error = _ERRORS[kind]
            self.error = error(*rest) if error else None
            return True
        self.process.join()
        if not self._closed_well:
            code = self.process.exitcode
            how = (
                f"killed by {signal.Signals(-code).name}"
                if code and code < 0
                else f"ended with exit code {code}"
            )
            self.error = StageError(f"{self.job.name}: its process was {how}; see {self.job.log}")
            self.job.failed(f"its process was {how}")
        watcher.ended(self.job, self.error, time.monotonic() - self.began)
        return False


def _ready(running: list[_Child]) -> list[_Child]:
    if not running:  # none could be started: there is nothing to wait for
        return []
    pipes = connection.wait([child.pipe for child in running])
    return [child for child in running if child.pipe in pipes]


def _start(context: Any, job: Job, gpu: str | None, watcher: Watcher) -> _Child:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.touch()  # a folder that takes no log is told here, in a line
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, gpu, job))
    process.start()
    theirs.close()
    watcher.started(job)
    return _Child(job, process, ours, gpu)


def _work(pipe: connection.Connection, gpu: str | None, job: Job) -> None:
    """The body of a job's process. What libraries print goes to the log."""
    # Ctrl-C reaches the whole group; the parent stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with job.log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        try:
            pipe.send(("progress", stage, done, total, loss))
        except OSError:
            sys.exit(128 + signal.SIGHUP)  # nobody is left to work for

    def end(kind: str, *rest: str) -> None:
        with contextlib.suppress(OSError):
            pipe.send((kind, *rest))

    try:
        with stop_on_signals(keyboard=False):
            job.run(progress)
    except BusyError as error:
        end("busy", str(error))
    except StoppedError as error:
        end("stopped", f"{job.name}: {error}")
    except (KitError, OSError) as error:
        what = str(error) if isinstance(error, KitError) else f"{job.name}: {error}"
        end("failed", f"{what}; see {job.log}")
        raise
    else:
        end("done")
