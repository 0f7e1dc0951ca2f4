"""The charts of a report: their values, and the text beside them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlora_repeat.render.report.content import ArmRow
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.results.arms import Arm, base_perplexities, by_model, distinct
from qlora_repeat.results.number_format import decimals_of, number
from qlora_repeat.results.scope import examples_tested
from qlora_repeat.results.statistical_methods import spans_a_decade
from qlora_repeat.results.trial_result import TrialResult

MOST_POINTS = 240
"""Points of a curve; of a longer curve, each point is the mean of several steps."""
_FAR = 3.0
"""A base model's value is drawn within this multiple of the points' range."""
_LARGEST = 1e30


@dataclass(frozen=True)
class Chart:
    """A chart, with what a reader needs to know beside it."""

    title: str
    description: str
    """Description for readers who cannot see the chart."""
    notes: list[str]
    data: dict[str, Any]
    """What ``report.js`` draws: a kind of chart, columns, rows, and what the kind needs."""


def _data(
    kind: Literal["points", "lines", "ratios"],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    **more: object,
) -> dict[str, Any]:
    """Return the data of a chart, with seven digits."""
    shortened = [
        [float(f"{value:.7g}") if isinstance(value, float) else value for value in row] for row in rows
    ]
    return {"kind": kind, "columns": columns, "rows": shortened, **more}


def perplexity_charts(rows: Sequence[ArmRow]) -> Iterator[Chart]:
    """Make a chart for each model: perplexity of every trial, by optimizer, with the base model's."""
    for model in by_model(row.arm for row in rows):
        own = [row for row in rows if row.arm.model == model]
        points = [
            (row.arm.heading, cell.trial.trial, cell.trial.perplexity, cell.adapter or "", cell.digest or "")
            for row in own
            for cell in row.cells
            if cell.trial.measured and _is_drawn(cell.trial.perplexity)
        ]
        if not points:
            continue
        values = [perplexity for _, _, perplexity, _, _ in points if perplexity is not None]
        base = next(filter(_is_drawn, base_perplexities([row.arm for row in own])[:1]), None)
        shown = base if base is not None and _is_near(base, values) else None
        notes = []
        if hidden := sum(not _is_drawn(trial.perplexity) for row in own for trial in row.arm.done):
            notes.append(f"{hidden} not shown: not finite.")
        if base is not None and shown is None:
            side = "above" if base > max(values) else "below"
            notes.append(f"The model before fine-tuning is {side} the axis, which has no dashed line.")
        title, before = own[0].arm.title, "" if base is None else f"; {number(base)} before fine-tuning"
        examples = examples_tested([row.arm for row in own])
        tested = f" on {examples} test examples" if examples else ""
        description = f"Perplexity of each trial of {title}{tested}, by optimizer: {_range(values)}{before}."
        data = _data(
            "points",
            ("optimizer", "run", "perplexity", "identity", "digest"),
            points,
            optimizers=[row.arm.heading for row in own],
            base=shown,
            log=spans_a_decade(values if shown is None else [*values, shown]),
            digests=any(digest for *_, digest in points),
        )
        yield Chart(title, description, notes, data)


def loss_charts(rows: Sequence[ArmRow], files: TrialFiles) -> Iterator[Chart]:
    """Make a chart for each arm: loss of every run, by step, or by epoch without traces."""
    for row in rows:
        traced = any(trial.name in files.traces for trial in row.arm.done)
        unit = "step" if traced else "epoch"
        curves = {trial.trial: _curve(trial, files, traced) for trial in row.arm.done}
        every = math.ceil(max([1, *map(len, curves.values())]) / MOST_POINTS)
        points = [
            (run, place, loss)
            for run, curve in curves.items()
            for place, loss in _thinned(curve, every)
            if _is_drawn(loss)
        ]
        if not points:
            continue
        losses, runs = [loss for _, _, loss in points], "1 run" if len(curves) == 1 else f"{len(curves)} runs"
        description = f"Loss of {row.arm.name} by {unit}, {runs}: {_range(losses)}."
        notes = [f"Each point is the mean loss of {every} steps."] if every > 1 else []
        differing = [(cell.divergence.step, cell.trial.trial) for cell in row.cells if cell.divergence]
        step, first = min(differing, default=(None, None))
        if differing:
            when = f"first differ at step {step}" if step else "differ before the first step"
            description += f" Runs {when} (run {first})."
        if not traced:
            notes.append("Without traces, points are the collected losses; the first difference is unknown.")
        columns, log = ("run", unit, "loss"), spans_a_decade(losses)
        data = _data("lines", columns, points, runs=list(curves), step=step or None, log=log)
        yield Chart(row.arm.name, description, notes, data)


def distance_charts(rows: Sequence[ArmRow], files: TrialFiles) -> Iterator[Chart]:
    """Make a chart for each arm: relative difference of each run's loss from the first run's, by step.

    There is none if no loss differs: a log scale has no zero, and the grid shows this already.
    """
    for row in rows:
        traced = [trial for trial in row.arm.done if trial.name in files.traces]
        if not traced:
            continue
        curves = {trial.trial: _curve(trial, files, traced=True) for trial in traced}
        reference, *others = curves
        points = [
            (run, step, abs(loss - first) / abs(first))
            for run in others
            for (step, loss), (_, first) in zip(curves[run], curves[reference], strict=False)
            if _is_drawn(loss) and _is_drawn(first) and first and loss != first
        ]
        points = [point for point in points if _is_drawn(point[2])]
        if not points:
            continue
        every = math.ceil(len(curves[reference]) / MOST_POINTS)
        drawn = [point for point in points if point[1] % every == 0] or points
        distances = _range([distance for _, _, distance in drawn])
        what = f"Relative difference of the loss of each run of {row.arm.name} from run {reference}"
        notes = [f"One step in {every} is shown."] if every > 1 else []
        data = _data("lines", ("run", "step", "difference"), drawn, runs=others, step=None, log=True)
        yield Chart(row.arm.name, f"{what}, by step: {distances}.", notes, data)


def beside_the_paper(arms: Sequence[Arm], published: Sequence[Arm]) -> Chart | None:
    """Make a chart of perplexity relative to the base model's, for this study and the paper."""
    titles = {arm.model: arm.title for arm in published}
    models = {arm.counterpart for arm in arms if any(_to_base(trial) for trial in arm.done)}
    points = [
        (titles.get(arm.counterpart, arm.counterpart), f"{arm.heading}, {whose}", trial.trial, ratio)
        for whose, own in (("here", arms), ("paper", published))
        for arm in own
        for trial in arm.done
        if arm.counterpart in models and (ratio := _to_base(trial)) is not None
    ]
    if not models & set(titles):
        return None
    headings = distinct(arm.heading for arm in arms)
    return Chart(
        title="Perplexity relative to the base model's",
        description="Each trial, in the paper and here"
        + (f" (on {examples} test examples)" if (examples := examples_tested(arms)) else "")
        + ": below 1, fine-tuning helped; above 1, it harmed.",
        notes=distinct(
            f"Here {arm.title} stands in for {titles[arm.counterpart]}."
            for arm in arms
            if arm.counterpart in titles and arm.model != arm.counterpart
        ),
        data=_data(
            "ratios",
            ("model", "arm", "run", "ratio"),
            points,
            arms=[f"{heading}, {whose}" for heading in headings for whose in ("paper", "here")],
        ),
    )


def _to_base(trial: TrialResult) -> float | None:
    if trial.perplexity is None or not trial.base_perplexity:
        return None
    ratio = trial.perplexity / trial.base_perplexity
    return ratio if _is_drawn(ratio) and ratio > 0 else None


def _curve(trial: TrialResult, files: TrialFiles, traced: bool) -> list[tuple[float, float]]:
    """Return a run's losses: of each step, or the collected ones."""
    if not traced:
        return [(epoch, loss) for epoch, loss in trial.loss_curve]
    steps = files.traces.get(trial.name, [])
    return [(step.step, step.loss) for step in steps if step.loss is not None]


def _thinned(curve: Sequence[tuple[float, float]], every: int) -> list[tuple[float, float]]:
    """Return means of `every` points; not finite if one of them is not."""
    parts = [curve[start : start + every] for start in range(0, len(curve), every)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _is_near(value: float, values: Sequence[float]) -> bool:
    """Return whether a value can be drawn without squeezing the others; on a log scale any can."""
    if spans_a_decade(values) or len(values) == 1:
        return True
    low, high = min(values), max(values)
    return low - _FAR * (high - low) <= value <= high + _FAR * (high - low)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    decimals = 0 if spans_a_decade(values) else decimals_of([low, high])
    return " to ".join(distinct(str(number(value, decimals)) for value in (low, high)))


def _is_drawn(value: float | None) -> bool:
    """Return whether a chart can show the value."""
    return value is not None and abs(value) < _LARGEST  # false also where it is not a number
