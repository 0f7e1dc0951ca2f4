"""Show the state of a trial from its files, for example on a login node while a compute node works on it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import failure_of
from qlora_repeat.slurm.submit import jobs_folder, submitted_tasks
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.files import open_regular
from qlora_repeat.system.printable import one_line

_MOST_BYTES = 1_000_000
"""Only the last bytes of a file are read."""


def trial_logs(trial: Trial, lines: int) -> Iterator[str]:
    """Yield the state of a trial, and the last lines of each log that its processes wrote.

    Raises:
        MissingError: the trial has no files yet.
    """
    job = _job_log(trial)
    if not trial.folder.is_dir() and job is None:
        command = trial.workspace.command("status")
        raise MissingError(f"{trial.folder}: no files yet; `{command}` lists all trials")
    yield from _state(trial)
    for path in (trial.log, job):
        if path is not None and path.is_file():
            yield f"--- {path}, {_when(path)}"
            yield from _tail(path, lines)


def _state(trial: Trial) -> Iterator[str]:
    done = [stage for stage in trial.stages if trial.record(stage).is_file()]
    yield f"{trial.name}: {'finished: ' + ', '.join(done) if done else 'no stage is finished'}"
    if (owner := live_owner(trial.lock)) is not None:
        yield f"process {owner['pid']} on {owner['host']} works on it, or died there"
    elif trial.failure.is_file():
        yield f"failed: {one_line(str(failure_of(trial)))}"
    path = trial.unfinished / "trace.jsonl"
    if path.is_file():
        try:
            last = read_trace(path, unfinished=True)[-1]
        except (UsageError, IndexError):
            return
        loss = "" if last.loss is None else f", loss {last.loss:.4f}"
        yield f"fine-tuning: step {last.step}{loss}, {_when(path)}"


def _job_log(trial: Trial) -> Path | None:
    """Return the output of the last job that was submitted for the trial."""
    folder = jobs_folder(trial.workspace)
    job = submitted_tasks(folder).get(trial.name)
    return folder / f"{job}_0_log.out" if job else None


def _when(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _tail(path: Path, lines: int) -> list[str]:
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _MOST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    # A progress bar overwrites its line; keep what it wrote last.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [one_line(line) for line in shown if line.strip()][-lines:]
