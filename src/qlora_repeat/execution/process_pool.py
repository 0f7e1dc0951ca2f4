"""Run jobs in processes that are forked from a server which has imported the libraries.

The server (multiprocessing's forkserver) has not touched a model or a device. So each job starts like a new
process, but without the time for imports.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any, Protocol

from qlora_repeat.errors import BusyError, KitError, StageError, StoppedError
from qlora_repeat.study.trial import Progress
from qlora_repeat.system.files import append_to, disk_error, make_folder
from qlora_repeat.system.gpus import DEVICE, on_cpu, visible_gpus
from qlora_repeat.system.signals import defer, deferrable, signals_blocked, stop_if_requested, stop_on_signals

PRELOAD = ["qlora_repeat.execution.preload"]


class Job(Protocol):
    """The work of one process; picklable.

    The output of the process goes to `log`. `kind` is the model, and whether the job only tests; jobs of one
    kind take about the same time. `run` does the work. If the process ends without a message, the parent
    calls `failed`.
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
    """Receives the progress of jobs."""

    def started(self, job: Job) -> None: ...
    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None: ...
    def ended(self, job: Job, error: KitError | None, seconds: float) -> None: ...


def run_jobs(jobs: Sequence[Job], workers: int, watcher: Watcher) -> list[KitError]:
    """Run jobs, at most `workers` at the same time; a failed job does not stop the others.

    Returns:
        The errors of jobs: StageError, BusyError (another process works on the same), or StoppedError.

    Raises:
        KeyboardInterrupt, StoppedError: after all running jobs have stopped; a fine-tuning first finishes its
            step and writes a checkpoint. A second Ctrl-C kills the jobs.
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
                    defer()  # otherwise a started job could get lost
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
    """Return the context of processes forked from a server that ignores signals and ends with its parent.

    A scheduler sends signals to every process of a job, also to the server. Its children start with blocked
    signals, so that no signal is lost before they can handle it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD if on_cpu() else [])
    for helper in (resource_tracker, forkserver):
        with signals_blocked():
            helper.ensure_running()
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
"""The error for each last message of a job."""


class _Child:
    """A running job: its process, and the pipe that receives its messages."""

    def __init__(self, job: Job, process: Any, pipe: connection.Connection, gpu: str | None) -> None:
        self.job, self.process, self.pipe, self.gpu = job, process, pipe, gpu
        self.began = time.monotonic()
        self.error: KitError | None = None
        self._reported = False

    def listen(self, watcher: Watcher) -> bool:
        """Pass on one message; return False if the job has ended."""
        try:
            kind, *rest = self.pipe.recv()
        except EOFError:
            kind = "ended"
        if kind == "progress":
            watcher.progress(self.job, *rest)
            return True
        if kind in _ERRORS:
            self._reported = True
            error = _ERRORS[kind]
            self.error = error(*rest) if error else None
            return True
        self.process.join()
        if not self._reported:
            code = self.process.exitcode
            how = (
                f"was killed by {signal.Signals(-code).name}"
                if code and code < 0
                else f"ended with exit code {code}"
            )
            self.error = StageError(f"{self.job.name}: its process {how}; see {self.job.log}")
            self.job.failed(f"its process {how}")
        watcher.ended(self.job, self.error, time.monotonic() - self.began)
        return False


def _ready(running: list[_Child]) -> list[_Child]:
    if not running:  # no job could be started
        return []
    pipes = connection.wait([child.pipe for child in running])
    return [child for child in running if child.pipe in pipes]


def _start(context: Any, job: Job, gpu: str | None, watcher: Watcher) -> _Child:
    make_folder(job.log.parent)
    append_to(job.log).close()  # fails here, with one line, if the folder is not writable
    ours, theirs = context.Pipe(duplex=False)
    chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu, DEVICE: "gpu"}
    # The server has the environment of the first run of this process; this may be another one.
    process = context.Process(target=_work, args=(theirs, {**os.environ, **chosen}, job))
    with _without_main():
        process.start()
    theirs.close()
    watcher.started(job)
    return _Child(job, process, ours, gpu)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes in the block that do not import the caller's script again.

    multiprocessing imports ``__main__`` in each process, so that scripts need a guard. A job is of the kit
    alone and needs nothing of the script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: connection.Connection, environment: dict[str, str], job: Job) -> None:
    """Run a job in its process, with all output in its log."""
    # Ctrl-C reaches the whole process group; the parent stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with append_to(job.log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    os.environ.clear()
    os.environ.update(environment)

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        try:
            pipe.send(("progress", stage, done, total, loss))
        except OSError:
            sys.exit(128 + signal.SIGHUP)  # the parent is gone

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
