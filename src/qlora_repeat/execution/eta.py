"""The remaining time of a run, estimated from finished jobs and from the steps of running jobs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_repeat.execution.process_pool import Job

_Kind = tuple[str, bool]
"""The model of a job, and whether the job only tests: the base, or an average."""


@dataclass(frozen=True)
class Left:
    """The remaining seconds of a run."""

    seconds: float
    at_least: bool
    """Whether no trial has ended, so that later stages are not counted."""


class TimeLeft:
    """Estimates the remaining time of jobs from events. Times are seconds of any one clock."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._workers = workers
        self._waiting = {job.name: job.kind for job in jobs}
        self._running: dict[str, _Running] = {}
        self._ended: dict[_Kind, list[float]] = {}

    def started(self, job: Job, now: float) -> None:
        self._running[job.name] = _Running(self._waiting.pop(job.name), now)

    def progress(self, job: Job, stage: str, done: int, total: int, now: float) -> None:
        self._running[job.name].progress(stage, done, total, now)

    def ended(self, job: Job, now: float, *, well: bool) -> None:
        """Note the end of a job; the duration of a failed job is not used."""
        running = self._running.pop(job.name)
        if well:
            self._ended.setdefault(running.kind, []).append(now - running.began)

    def left(self, now: float) -> Left | None:
        """Return the remaining time, or None before a trial or two of its steps are done."""
        kinds = [*(each.kind for each in self._running.values()), *self._waiting.values()]
        ended = {kind: statistics.fmean(seconds) for kind, seconds in self._ended.items()}
        known = self._begun() | ended
        trials, bases = (_mean(known, of_bases) for of_bases in (False, True))
        only_bases = all(is_base for _, is_base in kinds)
        if trials is None and not only_bases:
            return None
        expected = {kind: known.get(kind, (bases if kind[1] else trials) or 0.0) for kind in kinds}
        rest = [
            max(each.began + expected[each.kind] - now, (each.end or now) - now, 0.0)
            for each in self._running.values()
        ]
        together = sum(rest) + sum(expected[kind] for kind in self._waiting.values())
        at_least = _mean(ended, of_bases=False) is None and not only_bases
        return Left(max(together / self._workers, *rest, 0.0), at_least)

    def _begun(self) -> dict[_Kind, float]:
        """Return for each kind the mean duration of running jobs until their current stage ends."""
        found: dict[_Kind, list[float]] = {}
        for each in self._running.values():
            if each.end is not None:
                found.setdefault(each.kind, []).append(each.end - each.began)
        return {kind: statistics.fmean(seconds) for kind, seconds in found.items()}


@dataclass
class _Running:
    kind: _Kind
    began: float
    stage: str = ""
    first: tuple[float, int] | None = None
    """Time and number of the stage's first step; the time before it, for loading, is not used."""
    end: float | None = None
    """The estimated end of the stage."""

    def progress(self, stage: str, done: int, total: int, now: float) -> None:
        if stage != self.stage:
            self.stage, self.first = stage, None
            self.end = None if self.end is None else now
        if self.first is None:
            self.first = (now, done) if done else None
        elif done > self.first[1]:
            seconds_a_step = (now - self.first[0]) / (done - self.first[1])
            self.end = now + seconds_a_step * (total - done)


def _mean(seconds: dict[_Kind, float], of_bases: bool) -> float | None:
    found: Iterable[float] = [each for (_, is_base), each in seconds.items() if is_base is of_bases]
    return statistics.fmean(found) if found else None
