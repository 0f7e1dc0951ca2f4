"""Figure S3 from made-up results."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.made_curves import texts, trial

from qlora_repeat.errors import MissingError
from qlora_repeat.render.figures.collapse import draw_collapse
from qlora_repeat.render.figures.write import render_figures
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.trial_result import TrialResult

OPTIMIZERS = ("adamw-8bit+bitsandbytes-0.41.0", "adamw-8bit", "adamw-32bit")
HEADINGS = ["8-bit, map of bitsandbytes 0.41.0", "8-bit", "32-bit"]
NAN, INF = math.nan, math.inf
BASE = 94.0


def arm(model: str, optimizer: str, ends: list[float], **changes: Any) -> list[TrialResult]:
    """Return trials with these final losses and the exponentials as perplexities."""
    return [
        trial(
            [4.5 + (end - 4.5) * place / 30 for place in range(1, 31)],
            **{
                "model": model,
                "model_title": model.title(),
                "optimizer": optimizer,
                "trial": number,
                "perplexity": math.exp(end),
                "base_perplexity": BASE,
                "base_perplexities": [BASE],
            }
            | changes,
        )
        for number, end in enumerate(ends, 1)
    ]


def study(models: int = 3, old: float = 7.0) -> list[TrialResult]:
    """Return seven trials for each arm; with the old map, each model ends higher than the one before."""
    rows = []
    for number in range(models):
        ends = (4 + number * (old - 4) / max(models - 1, 1), 3.9, 3.9)
        for optimizer, end in zip(OPTIMIZERS, ends, strict=True):
            rows += arm(f"rate {number}", optimizer, [end + 0.01 * place for place in range(7)])
    return rows


def drawn(results: list[TrialResult]) -> Figure:
    figure = draw_collapse(group_arms(results))
    figure.draw_without_rendering()
    return figure


def lines(axes: Axes, thick: bool) -> list[Any]:
    """Return the thin curves of trials or the thick curves of medians, without base levels and crosses."""
    curves = [line for line in axes.lines if line.get_marker() != "x" and len(line.get_xdata()) > 2]
    return [line for line in curves if (line.get_linewidth() > 1) == thick]


def test_each_model_has_a_panel_of_losses_and_one_of_perplexities() -> None:
    figure = drawn(study())
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "loss by epoch",
        "perplexity after fine-tuning",
    ] * 3
    assert {"Rate 0", "Rate 1", "Rate 2"} <= set(texts(figure))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*HEADINGS, "base, on the test examples"]


def test_optimizers_have_the_same_color_and_line_style_in_all_panels() -> None:
    figure = drawn(study())
    looks = [
        [(to_hex(line.get_color()), line.get_linestyle()) for line in lines(axes, thick=True)]
        for axes in figure.axes[::2]
    ]
    assert looks[0] == looks[1] == looks[2]
    assert [len(set(column)) for column in zip(*looks[0], strict=True)] == [3, 2]  # all dashes are "--"
    dashes = {str(line._dash_pattern) for line in lines(figure.axes[0], thick=True)}
    assert len(dashes) == 3


def test_trials_are_thin_lines_and_their_median_is_a_thick_line() -> None:
    results = arm("rate", OPTIMIZERS[0], [5.0, 6.0, 9.0])
    axes = drawn(results).axes[0]
    thin, (median,) = lines(axes, thick=False), lines(axes, thick=True)
    assert [[loss for _, loss in row.loss_curve] for row in results] == [
        list(line.get_ydata()) for line in thin
    ]
    assert list(median.get_ydata()) == pytest.approx([loss for _, loss in results[1].loss_curve])


def test_the_base_is_a_horizontal_line_in_both_panels() -> None:
    losses, perplexities = drawn(arm("rate", OPTIMIZERS[0], [5.0, 6.0])).axes
    for axes, level in ((losses, math.log(BASE)), (perplexities, BASE)):
        assert [level, level] in [pytest.approx(list(line.get_ydata())) for line in axes.lines]
        low, high = axes.get_ylim()
        assert low < level < high


def test_only_values_over_decades_are_on_log_scales() -> None:
    figure = drawn(study(models=2, old=80.0))
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "log"]
    assert [("log" in axes.get_ylabel()) for axes in figure.axes] == [False, False, True, True]


def test_collapses_are_counted_under_their_dots() -> None:
    results = [*arm("rate", OPTIMIZERS[0], [5.0, 4.0, INF]), *arm("rate", OPTIMIZERS[1], [3.9, 4.0])]
    axes = drawn(results).axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2 of 3", "0 of 2"]
    crosses = [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1


def test_losses_that_are_not_finite_are_marked_and_rank_highest_in_the_median() -> None:
    results = arm("rate", OPTIMIZERS[0], [5.0, 6.0, 7.0])
    results[0] = replace(results[0], loss_curve=[[each[0], NAN] for each in results[0].loss_curve])
    figure = drawn(results)
    (median,) = lines(figure.axes[0], thick=True)
    assert list(median.get_ydata()) == pytest.approx([loss for _, loss in results[2].loss_curve])
    assert any(line.get_marker() == "x" for line in figure.axes[0].lines)
    assert any("is not finite" in text for text in texts(figure))


@pytest.mark.parametrize(
    "ends", [[4.0], [0.0, 0.0], [INF, INF], [NAN], [-1.0, 4.0], [80.0, 4.0, 4.0, 4.0, 4.0, 4.0]]
)
def test_any_losses_can_be_drawn(ends: list[float]) -> None:
    drawn([*arm("rate", OPTIMIZERS[0], ends), *arm("rate", OPTIMIZERS[1], [4.0])])
    drawn(arm("rate", OPTIMIZERS[0], ends, loss_curve=[], base_perplexity=None, base_perplexities=[]))


def test_missing_trials_are_noted() -> None:
    results = study(models=1)
    results[3] = replace(results[3], status="failed", loss_curve=[], perplexity=None)
    assert any("Not shown: 1 of 21 trials: 1 failed." in text for text in texts(drawn(results)))


def test_all_text_is_inside_the_figure_and_large_enough() -> None:
    figure = drawn(study(models=5, old=600.0))
    width, height = figure.bbox.size
    for text in figure.findobj(lambda one: isinstance(one, Text) and one.get_text() and one.get_visible()):
        assert text.get_fontsize() >= 6
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert (box.x1 <= width + 1, box.y1 <= height + 1) == (True, True), text.get_text()


def test_the_figure_is_reproducible_and_removed_without_its_arm(tmp_path: Path) -> None:
    results = study(models=1)
    first, second = (
        [path.read_bytes() for path in render_figures(group_arms(results), tmp_path / name)] for name in "ab"
    )
    assert first == second
    names = ["figure-01.pdf", "figure-01.png", "figure-S3.pdf", "figure-S3.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    today = [row for row in results if "+" not in row.optimizer]
    assert [path.name for path in render_figures(group_arms(today), tmp_path / "a")] == names[:2]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names[:2]
    with pytest.raises(MissingError):
        render_figures(group_arms([replace(row, loss_curve=[]) for row in results]), tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
