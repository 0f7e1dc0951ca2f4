"""The figure of an attribution, from made-up outcomes."""

import itertools
import math
from pathlib import Path

from matplotlib.axes import Axes
from support.made_attribution import additive, changed, interacting, made

from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.measurements import REPEAT, Measurements
from qlora_repeat.render.figures.attribution import draw_attribution, render_attribution_figure


def axes_of(measured: Measurements) -> list[Axes]:
    return draw_attribution(measured, attribute(measured)).axes


def rows(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def points(axes: Axes) -> int:
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o")


def test_conditions_are_sorted_by_spread_and_each_replicate_is_a_point() -> None:
    conditions, sums = axes_of(made(additive))
    assert set(rows(conditions)[:2]) == {"all together", "adapter init"}
    assert rows(conditions)[2:] == ["data order", "8-bit state", "dropout", "one weight by one ulp"]
    assert points(conditions) == 6 * 7
    assert sorted(text.get_text() for text in sums.texts) == list("1234567")


def test_spreads_over_decades_have_a_logarithmic_scale() -> None:
    assert axes_of(made(additive, noise=1e-7))[0].get_xscale() == "symlog"
    assert axes_of(made(additive, noise=0.1))[0].get_xscale() == "linear"


def test_labels_of_ticks_do_not_overlap() -> None:
    for noise in (1e-9, 1e-6, 1e-3, 0.1):
        figure = draw_attribution(*(lambda made: (made, attribute(made)))(made(additive, noise=noise)))
        figure.canvas.draw()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            inside = [box for box in boxes if axes.bbox.x0 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1]
            assert len(inside) >= 3
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(inside)), noise


def test_names_of_conditions_fit() -> None:
    figure = draw_attribution(*(lambda made: (made, attribute(made)))(made(additive, pairs=True)))
    figure.canvas.draw()
    assert all(label.get_window_extent().x0 >= 0 for label in figure.axes[0].get_yticklabels())


def test_a_different_repetition_and_values_that_are_not_finite_are_shown() -> None:
    measured = changed(changed(made(additive), REPEAT, 1, perplexity=9.0), "dropout", 3, perplexity=math.inf)
    conditions, _ = axes_of(measured)
    assert "nothing (repeated)" in rows(conditions)
    assert rows(conditions)[0] == "dropout"
    assert [len(line.get_xdata()) for line in conditions.lines if line.get_marker() == "x"] == [1]


def test_one_source_has_no_sums() -> None:
    assert len(axes_of(made(additive, freed=["dropout"]))) == 1


def test_the_files_are_reproducible(tmp_path: Path) -> None:
    measured = made(interacting, pairs=True)
    first, second = (
        [
            path.read_bytes()
            for path in render_attribution_figure(measured, attribute(measured), tmp_path / name)
        ]
        for name in ("first", "second")
    )
    assert first == second
    assert first[0].startswith(b"%PDF")
    assert first[1].startswith(b"\x89PNG")
