"""The charts of a report, as Vega-Lite specifications.

Colours of text and lines are the page's (``currentColor``), so that they follow dark mode and print.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_repeat.render.arms import base_perplexities, by_model, distinct
from qlora_repeat.render.summary import number
from qlora_repeat.report.content import ArmRow
from qlora_repeat.report.kept import Kept, key_of
from qlora_repeat.results import TrialResult

Specification = dict[str, Any]

MOST_POINTS = 240
"""Of a curve: of a longer one each point is the mean of so many steps that no more are drawn."""
_DECADES = 10.0
"""Values that span so large a factor are on a log scale."""
_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"]
"""Told apart also by most people who see few colours, on white and on black."""
_FAR = 3.0
"""A base model's value is drawn where it is no further from the points than so often their range."""
_LARGEST = 1e30


@dataclass(frozen=True)
class Chart:
    """A chart, with what a reader needs to know beside it."""

    title: str
    description: str
    """What is seen, for those who do not see it."""
    specification: Specification
    notes: list[str]


def perplexity_charts(rows: Sequence[ArmRow]) -> list[Chart]:
    """Of each model: the perplexity of every trial, by optimizer, with the base model's."""
    charts = []
    for own in _of_models(rows):
        points = [
            (
                row.arm.optimizer,
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
                specification=_every_point(
                    points, [*values, *base], [row.arm.optimizer for row in own], base[0] if base else None
                ),
                notes=notes,
            )
        )
    return charts


def loss_charts(rows: Sequence[ArmRow], kept: Kept) -> list[Chart]:
    """Of each arm: the loss of every run, by step, or by epoch where there are no traces."""
    return [chart for row in rows if (chart := _loss_chart(row, kept)) is not None]


def distance_charts(rows: Sequence[ArmRow], kept: Kept) -> list[Chart]:
    """Of each arm: how far the loss of each run is from that of the first, by step, relative to it."""
    return [chart for row in rows if (chart := _distance_chart(row, kept)) is not None]


def beside_the_paper(rows: Sequence[ArmRow], published: Sequence[ArmRow]) -> Chart | None:
    """The perplexity of every trial relative to its base model's, ours and the paper's."""
    points = [
        (row.arm.trials[0].counterpart or row.arm.model, row.arm.optimizer, whose, trial.trial, ratio)
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
        for optimizer in distinct(row.arm.optimizer for row in rows)
        for whose in ("paper", "here")
    ]
    return Chart(
        title="Perplexity relative to the base model's",
        description="Of each trial, in the paper and here: below 1 fine-tuning has helped, above it harmed.",
        specification=_styled(
            {
                "data": _data(("model", "arm", "run", "ratio"), named),
                "facet": {"column": {"field": "model", "type": "nominal", "title": None, "sort": None}},
                "spec": {
                    "width": 150,
                    "height": 240,
                    "layer": [
                        {
                            "mark": {
                                "type": "rule",
                                "strokeDash": [4, 3],
                                "color": "currentColor",
                                "opacity": 0.6,
                            },
                            "encoding": {"y": {"datum": 1}},
                        },
                        {
                            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75},
                            "encoding": {
                                "x": {
                                    "field": "arm",
                                    "type": "nominal",
                                    "title": None,
                                    "sort": columns,
                                    "axis": {"labelAngle": -40},
                                },
                                "xOffset": {"field": "run", "type": "ordinal"},
                                "y": {
                                    "field": "ratio",
                                    "type": "quantitative",
                                    "title": "perplexity / base perplexity",
                                    "scale": {"type": "log"},
                                },
                                "color": {"field": "arm", "type": "nominal", "legend": None, "sort": columns},
                                "tooltip": [
                                    _shown("model"),
                                    _shown("arm"),
                                    _shown("run"),
                                    _shown("ratio", ".4~g"),
                                ],
                            },
                        },
                    ],
                },
            }
        ),
        notes=[],
    )


def _every_point(
    points: Sequence[tuple[str, int, float | None, str, str]],
    values: Sequence[float],
    optimizers: list[str],
    base: float | None,
) -> Specification:
    known = any(digest for *_, digest in points)
    scale: dict[str, Any] = {"type": "log"} if _spans_decades(values) else {"zero": False}
    axis = {"grid": True}
    y = {"field": "perplexity", "type": "quantitative", "title": "perplexity", "scale": scale, "axis": axis}
    x = {
        "field": "optimizer",
        "type": "nominal",
        "title": None,
        "sort": optimizers,
        "axis": {"labelAngle": 0},
    }
    layers: list[Specification] = []
    if base is not None:
        layers.append(
            {
                "data": {"values": [{}]},
                "mark": {
                    "type": "rule",
                    "strokeDash": [4, 3],
                    "color": "currentColor",
                    "opacity": 0.6,
                    "aria": False,
                },
                "encoding": {"y": {"datum": base}},
            }
        )
    layers += [
        {
            "mark": {
                "type": "rule",
                "color": "currentColor",
                "strokeWidth": 2,
                "opacity": 0.45,
                "aria": False,
            },
            "encoding": {
                "x": x | {"bandPosition": 0.08},
                "x2": {"field": "optimizer", "bandPosition": 0.92},
                "y": y | {"aggregate": "median"},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.8},
            "encoding": {
                "x": x,
                "xOffset": {"field": "run", "type": "ordinal"},
                "y": y,
                "color": {"field": "optimizer", "type": "nominal", "legend": None, "sort": optimizers},
                "tooltip": [
                    _shown("optimizer"),
                    _shown("run"),
                    _shown("perplexity", ".6~g"),
                    *([_shown("identity", title="adapter"), _shown("digest")] if known else []),
                ],
            },
        },
    ]
    columns = ("optimizer", "run", "perplexity", "identity", "digest")
    return _styled({"data": _data(columns, points), "width": "container", "height": 220, "layer": layers})


def _loss_chart(row: ArmRow, kept: Kept) -> Chart | None:
    traced = any(key_of(trial) in kept.traces for trial in row.arm.done)
    curves = {trial.trial: _curve(trial, kept, traced) for trial in row.arm.done}
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
    said = f" Runs first part at step {first[0]} (run {first[1]})." if first and traced else ""
    notes = [f"Each point is the mean loss of {every} steps."] if every > 1 else []
    if not traced:
        notes.append(
            "Traces are not at hand: the points are those collected, and where runs part is not known."
        )
    return Chart(
        title=row.name,
        description=f"Loss of {row.name} by {unit}, {len(runs)} run{'' if len(runs) == 1 else 's'}: "
        f"{_range(losses)}.{said}",
        specification=_lines(
            points,
            unit,
            "loss",
            runs,
            "log" if _spans_decades(losses) else "linear",
            first[0] if first and traced else None,
        ),
        notes=notes,
    )


def _distance_chart(row: ArmRow, kept: Kept) -> Chart | None:
    """None where no loss differs: a log scale has no zero, and the grid says so already."""
    curves = [curve for trial in row.arm.done if (curve := _curve(trial, kept, traced=True))]
    runs = [trial.trial for trial in row.arm.done if key_of(trial) in kept.traces]
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
        description=f"Relative difference of the loss of each run of {row.name} from that of run {runs[0]}, "
        f"by step: {_range(values)}.",
        specification=_lines(drawn, "step", "difference", runs[1:], "log", None),
        notes=[f"One step in {every} is shown."] if every > 1 else [],
    )


def _lines(
    points: Sequence[tuple[int, float, float]],
    unit: str,
    measure: str,
    runs: list[int],
    kind: str,
    parted: int | None,
) -> Specification:
    scale: dict[str, Any] = {"type": "log"} if kind == "log" else {"zero": False}
    axis = {"format": ".0e", "tickCount": 6} if measure == "difference" else {}
    color = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": runs, "range": [_PALETTE[(run - 1) % len(_PALETTE)] for run in runs]},
        "title": "run",
        "legend": {"orient": "right", "symbolType": "stroke", "symbolStrokeWidth": 3},
    }
    encoding = {
        "x": {"field": unit, "type": "quantitative", "title": unit, "scale": {"nice": False}},
        "y": {"field": measure, "type": "quantitative", "title": measure, "scale": scale, "axis": axis},
        "color": color,
    }
    chosen = {"condition": {"param": "chosen", "value": 0.9}, "value": 0.08}
    layers: list[Specification] = [
        {
            "params": [{"name": "chosen", "select": {"type": "point", "fields": ["run"]}, "bind": "legend"}],
            "mark": {"type": "line", "strokeWidth": 1.4, "interpolate": "linear", "aria": False},
            "encoding": {"opacity": chosen},
        },
        {
            "params": [
                {
                    "name": "near",
                    "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"},
                }
            ],
            "mark": {"type": "point", "filled": True, "size": 45},
            "encoding": {
                "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
                "tooltip": [_shown("run"), _shown(unit), _shown(measure, ".5~g")],
            },
        },
    ]
    specification: Specification = {
        "data": _data(("run", unit, measure), points),
        "width": "container",
        "height": 220,
        "layer": [{"encoding": encoding, "layer": layers}],
    }
    if parted is not None:
        mark = {"color": "currentColor", "aria": False}
        once: Specification = {"data": {"values": [{}]}}  # and not for each point
        at = {"x": {"datum": parted, "type": "quantitative"}}
        specification["layer"] += [
            once | {"mark": mark | {"type": "rule", "strokeDash": [2, 3]}, "encoding": at},
            once
            | {
                "mark": mark | {"type": "text", "align": "left", "dx": 4, "dy": 4, "y": 0, "baseline": "top"},
                "encoding": at | {"text": {"value": f"first differs at step {parted}"}},
            },
        ]
    return _styled(specification)


def _curve(trial: TrialResult, kept: Kept, traced: bool) -> list[tuple[float, float]]:
    """A run's losses: of each step, or those that were collected."""
    if not traced:
        return [(epoch, loss) for epoch, loss in trial.loss_curve]
    steps = kept.traces.get(key_of(trial), [])
    return [(step.step, step.loss) for step in steps if step.loss is not None]


def _thinned(curve: Sequence[tuple[float, float]], every: int) -> list[tuple[float, float]]:
    """Means of so many points; not finite where one is not."""
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


def _data(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Specification:
    """Data in the least room; the page's script makes of each row what Vega wants."""
    shortened = [
        [float(f"{value:.7g}") if isinstance(value, float) else value for value in row] for row in rows
    ]
    return {"columns": list(columns), "rows": shortened}


def _shown(field: str, form: str | None = None, title: str | None = None) -> dict[str, str]:
    """A value of the point that the pointer, or the keyboard, is at."""
    if form is None:
        return {"field": field, "type": "nominal", "title": title or field}
    return {"field": field, "type": "quantitative", "format": form, "title": title or field}


def _styled(specification: Specification) -> Specification:
    """With the page's colours."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"}
    lines = {
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "domainColor": "currentColor",
        "tickColor": "currentColor",
    }
    return specification | {
        "background": "transparent",
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": text | lines,
            "legend": text,
            "header": text,
            "text": {"color": "currentColor"},
            "range": {"category": _PALETTE},
        },
    }


def _is_near(value: float, values: Sequence[float]) -> bool:
    """Whether a value can be drawn without pressing the others together; on a log scale any can."""
    if _spans_decades(values) or len(values) == 1:
        return True
    low, high = min(values), max(values)
    return low - _FAR * (high - low) <= value <= high + _FAR * (high - low)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _DECADES


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def _is_drawn(value: float | None) -> bool:
    """Whether a chart can show it."""
    return value is not None and abs(value) < _LARGEST  # false also where it is not a number
