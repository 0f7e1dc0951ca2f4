"""What the paper's Figure 4 shows of a study's results: its curves, rows and notes."""

import math
from collections import Counter
from dataclasses import dataclass

from qlora_repeat.render.footnotes import source_of, stale
from qlora_repeat.results.arms import Arm

_PAIRS = 2
"""So many optimizers, of two panels each, are side by side."""
_MOST_LABELS = 30
"""With more runs, not every bar has its number and value."""
_MARKED = 6
"""On a long curve, every sixth point has a marker."""
_LARGEST = 3.5e38
"""Beyond the range of float32, in which losses are computed."""


@dataclass(frozen=True)
class Curve:
    """The losses of a run, or why there are none."""

    run: int
    points: list[list[float]]
    """As collected: epochs and loss; the loss may be infinite or not a number."""
    lack: str | None
    """Such as ``missing`` or ``failed``; of a trial that was measured, ``no curve``."""

    @property
    def losses(self) -> list[float]:
        """Not a number where the loss is not finite."""
        return [loss if _is_finite(loss) else math.nan for _, loss in self.points]

    @property
    def finite(self) -> list[float]:
        return [loss for _, loss in self.points if _is_finite(loss)]

    @property
    def last(self) -> list[float]:
        """The final loss, if there is one and it is finite."""
        return self.finite[-1:] if self.points and _is_finite(self.points[-1][1]) else []

    @property
    def breaks(self) -> list[float]:
        """The epochs at which the loss ceases to be finite."""
        before = [True, *(_is_finite(loss) for _, loss in self.points)]
        return [
            epoch
            for was_finite, (epoch, loss) in zip(before, self.points, strict=False)
            if was_finite and not _is_finite(loss)
        ]

    @property
    def marked(self) -> list[int]:
        """The points with a marker: some, and those without a neighbor, which no line would show."""
        shown = [False, *map(_is_finite, (loss for _, loss in self.points)), False]
        every = _MARKED if len(self.points) > 2 * _MARKED else 1
        return [
            place
            for place in range(len(self.points))
            if place % every == self.run % every or not (shown[place] or shown[place + 2])
        ]


@dataclass(frozen=True)
class ArmCurves:
    """The panels of an arm: curves and bars."""

    arm: Arm
    curves: list[Curve]


def make_curves(arm: Arm, runs: list[int]) -> list[Curve]:
    """One for each run that any arm has."""
    trials = {trial.trial: trial for trial in arm.trials}
    curves = []
    for run in runs:
        trial = trials.get(run)
        measured = trial is not None and trial.measured
        points = trial.loss_curve if trial and measured else []
        lack = None if points else "no curve" if measured else trial.status if trial else "missing"
        curves.append(Curve(run, points, lack))
    return curves


def in_rows(pairs: list[ArmCurves]) -> list[list[ArmCurves]]:
    """The arms that are side by side: those of a model, at most two."""
    rows = []
    for model in dict.fromkeys(pair.arm.model for pair in pairs):
        own = [pair for pair in pairs if pair.arm.model == model]
        rows += [own[start : start + _PAIRS] for start in range(0, len(own), _PAIRS)]
    return rows


def label_every(runs: int) -> int:
    """The n for which every n-th bar has its number and value."""
    return math.ceil(runs / _MOST_LABELS)


def make_notes(pairs: list[ArmCurves]) -> list[str]:
    """What the panels mean, how many curves there are none of, and where the results come from."""
    curves = [curve for pair in pairs for curve in pair.curves]
    notes = [
        "A point of a curve is the mean loss of the steps since the point before; "
        "the final loss is the last point of the curve."
    ]
    if any(loss <= 0 for curve in curves for loss in curve.finite):
        notes.append("On a log scale, a loss of 0 is at the lower edge.")
    if (every := label_every(len(pairs[0].curves))) > 1:
        notes.append(f"For lack of room, only one bar in {every} has its number and value.")
    notes += stale((pair.arm for pair in pairs), lambda trial: bool(trial.loss_curve))
    lacking = Counter(curve.lack for curve in curves if curve.lack)
    if lacking:
        counted = ", ".join(f"{count} {lack}" for lack, count in sorted(lacking.items()))
        notes.append(f"No curve from {lacking.total()} of {len(curves)} trials: {counted}.")
    return [*notes, source_of([pair.arm for pair in pairs])]


def _is_finite(loss: float) -> bool:
    return abs(loss) < _LARGEST  # false also where it is not a number
