"""Many trials, each in a process of its own, forked from a server that has imported the libraries.

The server (multiprocessing's forkserver) has touched no model and no device, so every trial starts as fresh
as the paper's did, without paying for the imports again.
"""

import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any, Protocol

from qlora_repeat.errors import BusyError, KitError, StageError, StoppedError, UsageError
from qlora_repeat.execution.run_trial import run_base, run_stages
from qlora_repeat.records.record import now
from qlora_repeat.records.trial_state import base_state, stage_states
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial, all_trials, base_record, base_tests, find_trial
from qlora_repeat.system.files import disk_error, write_json
from qlora_repeat.system.fingerprint import nvidia_smi
from qlora_repeat.system.signals import SIGNALS, defer, deferrable, heeded, held_back, stop_if_requested

PRELOAD = ["qlora_repeat.execution.preload"]


@dataclass(frozen=True)
class Job:
    """A trial's missing stages, or a test of a model's base (then `trial` is None)."""

    name: str
    model: str
    trial: Trial | None
    log: Path
    base_test: int | None = None


class Watcher(Protocol):
    """What is told how the jobs go."""

    def started(self, job: Job) -> None: ...
    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None: ...
    def ended(self, job: Job, error: KitError | None, seconds: float) -> None: ...


def open_jobs(
    study: Study, stages: Sequence[Stage], runs: Path, cache: Path, *, force: bool = False
) -> list[Job]:
    """What of a study is still to be done, in its order; the base of each model comes before its trials."""
    jobs = []
    for model in study.models:
        for number in base_tests(study) if "evaluate" in stages else ():
            if base_state(study, model, number, runs, cache).state != "done":
                log = base_record(study, model, number, runs).with_name(f"log-{number}.txt")
                jobs.append(Job(f"{model}/base/{number}", model, None, log, number))
        for trial in all_trials(study, runs):
            if trial.model_name != model:
                continue
            states = stage_states(trial, cache)
            if force or any(states[stage].state != "done" for stage in stages):
                jobs.append(Job(trial.name, model, trial, trial.log))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    stages: Sequence[Stage],
    study: Study,
    runs: Path,
    cache: Path,
    workers: int,
    watcher: Watcher,
    *,
    force: bool = False,
) -> list[KitError]:
    """Runs jobs, so many at a time; one that fails does not stop the others.

    Trials may be of studies derived from `study`, such as the conditions of an experiment.

    Returns:
        Why jobs did not end well: StageError, or BusyError where another process works on the trial.

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
                whose = job.trial.study if job.trial else study
                arguments = (gpu, whose, list(stages), runs, cache, force)
                with deferrable():
                    defer()  # or a job could be started that nobody knows of
                    try:
                        running.append(_start(context, job, arguments, watcher))
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
    with held_back():
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
            if self.job.trial is not None:
                with contextlib.suppress(OSError):
                    write_json(self.job.trial.failure, {"time": now(), "error": f"its process was {how}"})
        watcher.ended(self.job, self.error, time.monotonic() - self.began)
        return False


def _ready(running: list[_Child]) -> list[_Child]:
    if not running:  # none could be started: there is nothing to wait for
        return []
    pipes = connection.wait([child.pipe for child in running])
    return [child for child in running if child.pipe in pipes]


def _start(context: Any, job: Job, arguments: tuple[Any, ...], watcher: Watcher) -> _Child:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.touch()  # a folder that takes no log is told here, in a line
    ours, theirs = context.Pipe(duplex=False)
    # The study goes over once: its trials would bring it again.
    sent = (job.trial.name if job.trial else None, job.model, job.base_test, job.log)
    process = context.Process(target=_work, args=(theirs, *sent, *arguments))
    process.start()
    theirs.close()
    watcher.started(job)
    return _Child(job, process, ours, arguments[0])


def _work(
    pipe: connection.Connection,
    trial: str | None,
    model: str,
    base_test: int | None,
    log: Path,
    gpu: str | None,
    study: Study,
    stages: list[Stage],
    runs: Path,
    cache: Path,
    force: bool,
) -> None:
    """The body of a job's process. What libraries print goes to the log."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent stops this process
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def watch(stage: str, done: int, total: int, loss: float | None) -> None:
        try:
            pipe.send(("progress", stage, done, total, loss))
        except OSError:
            sys.exit(128 + signal.SIGHUP)  # nobody is left to work for

    def end(kind: str, *rest: str) -> None:
        with contextlib.suppress(OSError):
            pipe.send((kind, *rest))

    try:
        with heeded(keyboard=False):
            if base_test is not None:
                run_base(study, model, base_test, runs, cache, watch)
            if trial is not None:
                run_stages(find_trial(study, trial, runs), stages, cache, watch, force=force)
    except BusyError as error:
        end("busy", str(error))
    except StoppedError as error:
        end("stopped", f"{trial or model}: {error}")
    except (KitError, OSError) as error:
        end("failed", f"{error if isinstance(error, KitError) else f'{trial or model}: {error}'}; see {log}")
        raise
    else:
        end("done")


def on_cpu() -> bool:
    """Whether this is torch's CPU build.

    With CUDA, importing bitsandbytes asks the device for its kind, and a process forked after that cannot use
    it: there, every trial pays for its own imports.
    """
    return importlib.metadata.version("torch").endswith("+cpu")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by names for CUDA_VISIBLE_DEVICES; none with torch's CPU build."""
    if on_cpu():
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return list(_gpus_here().values())


def choose_gpus(text: str) -> None:
    """Leaves this process, and those that it starts, the GPUs of these numbers or UUIDs.

    Raises:
        UsageError: there is no such GPU, or torch's build has no use for one.
    """
    if on_cpu():
        raise UsageError(
            "--gpus: torch is its CPU build here; `make setup ACCELERATOR=cuda` installs the other. "
            "Without a GPU, --jobs says how many trials run at a time"
        )
    here = _gpus_here()
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in here and name not in here.values():
            known = ", ".join(here) or "none"
            raise UsageError(f"--gpus {text}: nvidia-smi shows no GPU {name or '(empty)'}; it shows: {known}")
    # By UUID: CUDA may number GPUs in another order.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(here.get(name, name) for name in wanted))


def _gpus_here() -> dict[str, str]:
    """The UUIDs of this machine's GPUs, by the numbers that nvidia-smi gives them."""
    lines = nvidia_smi("--query-gpu=index,uuid", "--format=csv,noheader")
    pairs = (line.split(",") for line in lines if line.count(",") == 1)
    return {number.strip(): uuid.strip() for number, uuid in pairs}


def default_workers(study: Study) -> int:
    """One trial on each GPU; without, as many as the cores that this process may use give threads for."""
    return max(1, len(visible_gpus()) if not on_cpu() else len(os.sched_getaffinity(0)) // study.threads)
