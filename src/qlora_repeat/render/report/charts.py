"""The charts of a report: their values, and the text beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_repeat.render.report.content import ArmRow
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.render.report.vega import Specification, every_point, lines, ratios
from qlora_repeat.results.arms import base_perplexities, by_model, distinct
from qlora_repeat.results.number_format import number
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
    specification: Specification
    notes: list[str]


def perplexity_charts(rows: Sequence[ArmRow]) -> list[Chart]:
    """Make a chart for each model: perplexity of every trial, by optimizer, with the base model's."""
    charts = []
    for own in _of_models(rows):
        points = [
            (
                row.arm.heading,
                cell.trial.trial,
                cell.trial.perplexity,
                cell.adapter or "",
                cell.digest or "",
            )
            for row in own
            for cell in row.cells
            if cell.trial.measured and _is_drawn(cell.trial.perplexity)
        ]
        if not points:
            continue
        values = [perplexity for _, _, perplexity, _, _ in points if perplexity is not None]
        before = [value for value in base_perplexities([row.arm for row in own])[:1] if _is_drawn(value)]
        base = [value for value in before if _is_near(value, values)]
        hidden = sum(not _is_drawn(trial.perplexity) for row in own for trial in row.arm.done)
        title = own[0].arm.title
        notes = [f"{hidden} not shown: not finite."] if hidden else []
        if before and not base:
            notes.append("The model before fine-tuning is beyond the axis.")
        charts.append(
            Chart(
                title=title,
                description=f"Perplexity of each trial of {title}, by optimizer: {_range(values)}"
                + (f"; {number(before[0])} before fine-tuning." if before else "."),
                specification=every_point(
                    points,
                    [row.arm.heading for row in own],
                    base[0] if base else None,
                    log=spans_a_decade([*values, *base]),
                ),
                notes=notes,
            )
        )
    return charts


def loss_charts(rows: Sequence[ArmRow], files: TrialFiles) -> list[Chart]:
    """Make a chart for each arm: loss of every run, by step, or by epoch without traces."""
    return [chart for row in rows if (chart := _loss_chart(row, files)) is not None]


def distance_charts(rows: Sequence[ArmRow], files: TrialFiles) -> list[Chart]:
    """Make a chart for each arm: relative difference of each run's loss from the first run's, by step."""
    return [chart for row in rows if (chart := _distance_chart(row, files)) is not None]


def beside_the_paper(rows: Sequence[ArmRow], published: Sequence[ArmRow]) -> Chart | None:
    """Make a chart of perplexity relative to the base model's, for this study and the paper."""
    points = [
        (row.arm.counterpart, row.arm.heading, whose, trial.trial, ratio)
        for whose, own in (("here", rows), ("paper", published))
        for row in own
        for trial in row.arm.done
        if (ratio := _to_base(trial)) is not None
    ]
    here = {model for model, _, whose, _, _ in points if whose == "here"}
    points = [each for each in points if each[0] in here]
    if not any(whose == "paper" for _, _, whose, _, _ in points):
        return None
    titles = {row.arm.model: row.arm.title for row in published}
    named = [
        (titles.get(model, model), f"{optimizer}, {whose}", run, ratio)
        for model, optimizer, whose, run, ratio in points
    ]
    columns = [
        f"{optimizer}, {whose}"
        for optimizer in distinct(row.arm.heading for row in rows)
        for whose in ("paper", "here")
    ]
    return Chart(
        title="Perplexity relative to the base model's",
        description="Each trial, in the paper and here: below 1, fine-tuning helped; above 1, it harmed.",
        specification=ratios(named, columns),
        notes=distinct(
            f"Here {row.arm.title} stands in for {titles[model]}."
            for row in rows
            if (model := row.arm.counterpart) in titles and row.arm.model != model
        ),
    )


def _loss_chart(row: ArmRow, files: TrialFiles) -> Chart | None:
    traced = any(trial.name in files.traces for trial in row.arm.done)
    curves = {trial.trial: _curve(trial, files, traced) for trial in row.arm.done}
    longest = max((len(points) for points in curves.values()), default=0)
    if longest == 0:
        return None
    every = math.ceil(longest / MOST_POINTS)
    points = [
        (run, place, loss)
        for run, curve in curves.items()
        for place, loss in _thinned(curve, every)
        if _is_drawn(loss)
    ]
    if not points:
        return None
    unit = "step" if traced else "epoch"
    parted = [(cell.parting.step, cell.trial.trial) for cell in row.cells if cell.parting]
    first = min(parted, default=None)
    losses = [loss for _, _, loss in points]
    runs = list(curves)
    said = f" Runs first differ at step {first[0]} (run {first[1]})." if first and traced else ""
    notes = [f"Each point is the mean loss of {every} steps."] if every > 1 else []
    if not traced:
        notes.append(
            "There are no traces: points are the collected losses, and the first difference is unknown."
        )
    return Chart(
        title=row.name,
        description=f"Loss of {row.name} by {unit}, {len(runs)} run{'' if len(runs) == 1 else 's'}: "
        f"{_range(losses)}.{said}",
        specification=lines(
            points,
            unit,
            "loss",
            runs,
            first[0] if first and traced else None,
            log=spans_a_decade(losses),
        ),
        notes=notes,
    )


def _distance_chart(row: ArmRow, files: TrialFiles) -> Chart | None:
    """Return None if no loss differs: a log scale has no zero, and the grid shows this already."""
    curves = [curve for trial in row.arm.done if (curve := _curve(trial, files, traced=True))]
    runs = [trial.trial for trial in row.arm.done if trial.name in files.traces]
    points = [
        (run, step, abs(loss - first) / abs(first))
        for run, curve in zip(runs[1:], curves[1:], strict=True)
        for (step, loss), (_, first) in zip(curve, curves[0], strict=False)
        if _is_drawn(loss) and _is_drawn(first) and first and loss != first
    ]
    if not points:
        return None
    every = math.ceil(len(curves[0]) / MOST_POINTS)
    drawn = [point for point in points if point[1] % every == 0] or points
    values = [distance for _, _, distance in drawn]
    return Chart(
        title=row.name,
        description=f"Relative difference of the loss of each run of {row.name} from run {runs[0]}, "
        f"by step: {_range(values)}.",
        specification=lines(drawn, "step", "difference", runs[1:], None, log=True),
        notes=[f"One step in {every} is shown."] if every > 1 else [],
    )


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


def _of_models(rows: Sequence[ArmRow]) -> list[list[ArmRow]]:
    models = by_model(row.arm for row in rows)
    return [[row for row in rows if row.arm.model == model] for model in models]


def _to_base(trial: TrialResult) -> float | None:
    if trial.perplexity is None or not trial.base_perplexity:
        return None
    ratio = trial.perplexity / trial.base_perplexity
    return ratio if _is_drawn(ratio) and ratio > 0 else None


def _is_near(value: float, values: Sequence[float]) -> bool:
    """Return whether a value can be drawn without squeezing the others; on a log scale any can."""
    if spans_a_decade(values) or len(values) == 1:
        return True
    low, high = min(values), max(values)
    return low - _FAR * (high - low) <= value <= high + _FAR * (high - low)


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def _is_drawn(value: float | None) -> bool:
    """Return whether a chart can show the value."""
    return value is not None and abs(value) < _LARGEST  # false also where it is not a number
