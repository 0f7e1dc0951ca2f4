"""Charts as Vega-Lite specifications.

Colors of text and lines are the page's (``currentColor``), so that they follow dark mode and print.
"""

from collections.abc import Iterable, Sequence
from typing import Any

Specification = dict[str, Any]

_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"]
"""Told apart also by most people who see few colors, on white and on black."""
_ONCE: Specification = {"data": {"values": [{}]}}
"""For what is drawn once, and not for each point."""
_DRAWN: Specification = {"color": "currentColor", "aria": False}
"""Of marks that are no data."""


def every_point(
    points: Sequence[tuple[str, int, float | None, str, str]],
    optimizers: list[str],
    base: float | None,
    *,
    log: bool,
) -> Specification:
    """A point for each optimizer, run, perplexity, adapter's letter and digest; medians, and the base."""
    known = any(digest for *_, digest in points)
    y = _quantity("perplexity", title="perplexity", scale=_scale(log=log), axis={"grid": True})
    x = _category("optimizer", title=None, sort=optimizers, axis={"labelAngle": 0})
    median = {
        "mark": _DRAWN | {"type": "rule", "strokeWidth": 2, "opacity": 0.45},
        "encoding": {
            "x": x | {"bandPosition": 0.08},
            "x2": {"field": "optimizer", "bandPosition": 0.92},
            "y": y | {"aggregate": "median"},
        },
    }
    shown = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.8},
        "encoding": {
            "x": x,
            "xOffset": {"field": "run", "type": "ordinal"},
            "y": y,
            "color": _category("optimizer", legend=None, sort=optimizers),
            "tooltip": [
                _shown("optimizer"),
                _shown("run"),
                _shown("perplexity", ".6~g"),
                *([_shown("identity", title="adapter"), _shown("digest")] if known else []),
            ],
        },
    }
    columns = ("optimizer", "run", "perplexity", "identity", "digest")
    return _wide(_data(columns, points), [*([] if base is None else [_level(base)]), median, shown])


def lines(
    points: Sequence[tuple[int, float, float]],
    unit: str,
    measure: str,
    runs: list[int],
    parted: int | None,
    *,
    log: bool,
) -> Specification:
    """A line for each run, of points at a `unit` with a `measure`; a rule at the step at which runs part."""
    axis = {"format": ".0e", "tickCount": 6} if measure == "difference" else {}
    encoding = {
        "x": _quantity(unit, title=unit, scale={"nice": False}),
        "y": _quantity(measure, title=measure, scale=_scale(log=log), axis=axis),
        "color": _category(
            "run",
            scale={"domain": runs, "range": [_PALETTE[(run - 1) % len(_PALETTE)] for run in runs]},
            title="run",
            legend={"orient": "right", "symbolType": "stroke", "symbolStrokeWidth": 3},
        ),
    }
    near = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    line = {
        "params": [{"name": "chosen", "select": {"type": "point", "fields": ["run"]}, "bind": "legend"}],
        "mark": {"type": "line", "strokeWidth": 1.4, "interpolate": "linear", "aria": False},
        "encoding": {"opacity": {"condition": {"param": "chosen", "value": 0.9}, "value": 0.08}},
    }
    pointed = {
        "params": [{"name": "near", "select": near}],
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {
            "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
            "tooltip": [_shown("run"), _shown(unit), _shown(measure, ".5~g")],
        },
    }
    layers: list[Specification] = [{"encoding": encoding, "layer": [line, pointed]}]
    if parted is not None:
        at = {"x": {"datum": parted, "type": "quantitative"}}
        label = {"type": "text", "align": "left", "dx": 4, "dy": 4, "y": 0, "baseline": "top"}
        text = {"text": {"value": f"first differs at step {parted}"}}
        layers += [
            _ONCE | {"mark": _DRAWN | {"type": "rule", "strokeDash": [2, 3]}, "encoding": at},
            _ONCE | {"mark": _DRAWN | label, "encoding": at | text},
        ]
    return _wide(_data(("run", unit, measure), points), layers)


def ratios(points: Sequence[tuple[str, str, int, float]], columns: list[str]) -> Specification:
    """A point for each model, arm, run and ratio, a panel for each model; the level of 1."""
    shown = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.75},
        "encoding": {
            "x": _category("arm", title=None, sort=columns, axis={"labelAngle": -40}),
            "xOffset": {"field": "run", "type": "ordinal"},
            "y": _quantity("ratio", title="perplexity / base perplexity", scale={"type": "log"}),
            "color": _category("arm", legend=None, sort=columns),
            "tooltip": [_shown("model"), _shown("arm"), _shown("run"), _shown("ratio", ".4~g")],
        },
    }
    panel = {"width": 150, "height": 240, "layer": [_level(1, once=False), shown]}
    facet = {"column": _category("model", title=None, sort=None)}
    return _styled({"data": _data(("model", "arm", "run", "ratio"), points), "facet": facet, "spec": panel})


def _quantity(field: str, **more: Any) -> Specification:
    return {"field": field, "type": "quantitative", **more}


def _category(field: str, **more: Any) -> Specification:
    return {"field": field, "type": "nominal", **more}


def _level(value: float, *, once: bool = True) -> Specification:
    """A dashed line; in panels, which share their data, it cannot have its own."""
    mark = _DRAWN | {"type": "rule", "strokeDash": [4, 3], "opacity": 0.6}
    return (_ONCE if once else {}) | {"mark": mark, "encoding": {"y": {"datum": value}}}


def _scale(*, log: bool) -> dict[str, Any]:
    return {"type": "log"} if log else {"zero": False}


def _data(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Specification:
    """Data in the least room; the page's script makes of each row what Vega wants."""
    shortened = [
        [float(f"{value:.7g}") if isinstance(value, float) else value for value in row] for row in rows
    ]
    return {"columns": list(columns), "rows": shortened}


def _shown(field: str, form: str | None = None, title: str | None = None) -> Specification:
    """A value of the point that the pointer, or the keyboard, is at."""
    if form is None:
        return _category(field, title=title or field)
    return _quantity(field, format=form, title=title or field)


def _wide(data: Specification, layers: list[Specification]) -> Specification:
    """A chart as wide as its place on the page."""
    return _styled({"data": data, "width": "container", "height": 220, "layer": layers})


def _styled(specification: Specification) -> Specification:
    """With the page's colors."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"}
    lines = {f"{part}Color": "currentColor" for part in ("grid", "domain", "tick")} | {"gridOpacity": 0.15}
    config = {
        "font": "inherit",
        "view": {"stroke": None},
        "axis": text | lines,
        "legend": text,
        "header": text,
        "text": {"color": "currentColor"},
        "range": {"category": _PALETTE},
    }
    return specification | {"background": "transparent", "config": config}
