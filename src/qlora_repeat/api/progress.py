"""Progress of jobs: live lines in a terminal or notebook, plain lines elsewhere."""

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

from qlora_repeat.api.colors import colored
from qlora_repeat.api.console import PrintableConsole
from qlora_repeat.errors import KitError
from qlora_repeat.execution.eta import Left, TimeLeft
from qlora_repeat.execution.process_pool import Job
from qlora_repeat.study.trial import Progress
from qlora_repeat.system.printable import one_line

SIGN_OF_LIFE = 600.0
"""Seconds after which a log gets another line if no job has ended; some jobs take hours."""
_WIDEST = 100
_WARNED: set[str] = set()
"""The warnings that this process has shown; one is enough for many trials."""


def console(quiet: bool = False) -> PrintableConsole:
    """Return the console for progress: a notebook's output, or standard error.

    Lines are live only in a terminal, but not in CI, whose log may look like a terminal. In a notebook, they
    are live if ipywidgets is installed, which rich needs for that.
    """
    shown = PrintableConsole(
        stderr=True, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
    if shown.is_jupyter:
        shown.is_interactive = importlib.util.find_spec("ipywidgets") is not None
    elif not sys.stderr.isatty() or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        shown.is_interactive = False
    return shown


def _moving(shown: PrintableConsole) -> PrintableConsole:
    """Return the console for live lines; in a notebook another one, or each line would repeat them."""
    return PrintableConsole(quiet=shown.quiet) if shown.is_jupyter else shown


@dataclass
class _Shown:
    """The last known progress of a running job."""

    stage: str = "starting"
    done: int = 0
    total: int = 0
    loss: float | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        steps = f"{self.done}/{self.total}" if self.done else ""
        return self.stage, steps, "" if self.loss is None else f"loss {self.loss:.3f}"


@dataclass(frozen=True)
class Terminal:
    """Show the progress of a study on a console: an `execution.run_study.Observer`."""

    console: PrintableConsole

    def tell(self, line: str) -> None:
        self.console.print(one_line(line))

    def warn(self, line: str) -> None:
        if line not in _WARNED:
            _WARNED.add(line)
            console().print(one_line(line))

    def watch_jobs(self, jobs: Sequence[Job], workers: int) -> "Display":
        return Display(self.console, jobs, workers)

    def watch_trial(self, name: str) -> AbstractContextManager[Progress]:
        return stage_bars(self.console, name)


class Display:
    """Show each running job (stage, step, loss), how many jobs are done, and the remaining time."""

    def __init__(
        self,
        console: PrintableConsole,
        jobs: Sequence[Job],
        workers: int,
        sign_of_life: float = SIGN_OF_LIFE,
    ) -> None:
        self._console, self._sign_of_life = console, sign_of_life
        self._total, self._ended = len(jobs), 0
        self._running: dict[str, _Shown] = {}
        self._time_left = TimeLeft(jobs, workers)
        self._began = self._last_line = time.monotonic()
        self._drawing = threading.Lock()  # rich draws lines in a thread
        self._live = Live(
            console=_moving(console), get_renderable=self._drawn, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Self:
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        with self._drawing:
            self._running[job.name] = _Shown()
            self._time_left.started(job, time.monotonic())

    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None:
        now = time.monotonic()
        with self._drawing:
            shown = self._running[job.name] = _Shown(stage, done, total, loss)
            self._time_left.progress(job, stage, done, total, now)
        if not self._console.is_interactive and now - self._last_line >= self._sign_of_life:
            self._say(Text(f"{job.name}: {' '.join(filter(None, shown.cells))}"), self._left(now))

    def ended(self, job: Job, error: KitError | None, seconds: float) -> None:
        now = time.monotonic()
        with self._drawing:
            self._running.pop(job.name)
            self._time_left.ended(job, now, well=error is None)
            self._ended += 1
        outcome = Text(f"{job.name} ") + colored("done", "done")
        if error is not None:
            outcome = colored("not done", "failed") + f": {one_line(str(error))}"
        # The live lines have the time left.
        left = "" if self._console.is_interactive or self._ended == self._total else self._left(now)
        self._say(outcome, ", ".join(filter(None, [f"{seconds:.0f} s", left])))
        if self._ended == self._total:
            self._console.print(f"{self._total} jobs in {_clock(now - self._began)}")

    def _say(self, what: Text, more: str) -> None:
        counted = Text(f"[{self._ended}/{self._total}] ")
        self._console.print(counted + what + Text(f" ({more})" if more else ""))
        self._last_line = time.monotonic()

    def _left(self, now: float) -> str:
        with self._drawing:
            return _words(self._time_left.left(now))

    def _drawn(self) -> Group:
        """Return the bar of all jobs and, below it, a line for each running job, as the terminal has room."""
        now, width = time.monotonic(), min(self._console.width, _WIDEST)
        with self._drawing:
            running, left, ended = dict(self._running), self._time_left.left(now), self._ended
        so_far = now - self._began
        share = so_far / (so_far + left.seconds) if left and so_far else 0.0
        count = f"{ended}/{self._total}"
        more = ", ".join(filter(None, [_words(left), f"{_clock(so_far)} so far"]))
        bar = ProgressBar(1, share, width=max(width - len(count) - len(more) - 2, 4))
        overall = Table.grid(padding=(0, 1, 0, 0))
        overall.add_row(count, bar, Text(more, no_wrap=True, overflow="crop"))
        return Group(overall, *_lines(running, width))


def _lines(running: dict[str, _Shown], width: int) -> Iterator[Text]:
    """Yield a line for each running job, at most `width` wide; a long name is cut, but not its number."""
    cells = [shown.cells for shown in running.values()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = max(min(max(map(len, running), default=0), width - sum(widths) - 3), 1)
    for name, (stage, steps, loss) in zip(running, cells, strict=True):
        end = name if len(name) <= room else f"…{name[len(name) - room + 1 :]}"
        line = f"{end:<{room}} {stage:<{widths[0]}} {steps:>{widths[1]}} {loss:>{widths[2]}}"
        yield Text(line.rstrip(), no_wrap=True, overflow="crop")


class OneLine:
    """Show the running job in one line of a terminal, and nothing elsewhere: an `execution` Watcher."""

    def __init__(self, console: PrintableConsole) -> None:
        self._console, self._status = console, Status("", console=_moving(console))

    def __enter__(self) -> Self:
        if self._console.is_interactive:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def started(self, job: Job) -> None:
        self._status.update(Text(one_line(job.name)))

    def progress(self, job: Job, stage: str, done: int, total: int, loss: float | None) -> None:
        cells = _Shown(stage, done, total, loss).cells
        self._status.update(Text(one_line(" ".join(filter(None, (f"{job.name}:", *cells))))))

    def ended(self, job: Job, error: KitError | None, seconds: float) -> None:
        pass


@contextlib.contextmanager
def stage_bars(console: PrintableConsole, name: str) -> Iterator[Progress]:
    """Show the progress of one trial: a line when a stage begins and, in a terminal, a bar of the stage."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=_moving(console), transient=True, disable=not console.is_interactive) as bars:
        current: tuple[str, TaskID] | None = None

        def told(stage: str, done: int, total: int, loss: float | None) -> None:
            nonlocal current
            if current is None or current[0] != stage:  # a stage may run twice, for another adapter
                console.print(f"{name}: {stage}")
                for before in bars.task_ids:
                    bars.remove_task(before)
                current = stage, bars.add_task(stage)
            note = stage if loss is None else f"{stage} loss {loss:.3f}"
            bars.update(current[1], completed=done, total=total, description=note)

        yield told


def _words(left: Left | None) -> str:
    if left is None:
        return ""
    return f"{'at least ' if left.at_least else ''}{_clock(left.seconds)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
