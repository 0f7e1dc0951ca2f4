"""How a run looks: live bars in a terminal, a line per finished job elsewhere."""

import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from qlora_repeat.errors import KitError
from qlora_repeat.runner import Job


class Display:
    """Shows each running job (stage, step, loss) and, over all, how many are done and the time left."""

    def __init__(
        self,
        console: Console,
        jobs: list[Job],
        workers: int,
        after: Callable[[Job], None] | None = None,
    ) -> None:
        """`after` is told of each job that ended well."""
        self._console, self._workers, self._after = console, workers, after
        self._left = {job.name: job.model for job in jobs}
        self._seconds: dict[str, list[float]] = {}
        self._began = time.monotonic()
        self._total = len(jobs)
        self._bars = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all = self._bars.add_task("all", total=self._total, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        self._tasks[job.name] = self._bars.add_task(job.name, total=1, note="starting")

    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None:
        note = stage if loss is None else f"{stage} loss {loss:.3f}"
        self._bars.update(self._tasks[job.name], completed=done, total=total, note=note)

    def ended(self, job: Job, error: KitError | None, seconds: float) -> None:
        self._bars.remove_task(self._tasks.pop(job.name))
        self._left.pop(job.name)
        self._seconds.setdefault(job.model, []).append(seconds)
        done = self._total - len(self._left)
        left = (
            f"{_clock(self._time_left())} left"
            if self._left
            else f"{_clock(time.monotonic() - self._began)} in all"
        )
        self._bars.update(self._all, completed=done, note=left)
        outcome = f"{job.name} done" if error is None else f"not done: {error}"
        self._console.print(f"[{done}/{self._total}] {outcome} ({seconds:.0f} s, {left})")
        if error is None and self._after is not None:
            self._after(job)

    def _time_left(self) -> float:
        """From the mean time of finished jobs, of the same model where there are any."""
        overall = statistics.fmean(seconds for each in self._seconds.values() for seconds in each)
        mean = {model: statistics.fmean(each) for model, each in self._seconds.items()}
        return sum(mean.get(model, overall) for model in self._left.values()) / self._workers


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
