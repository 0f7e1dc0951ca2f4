"""Figure 4 from made-up results."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.checkout import ROOT, kit
from support.made_curves import texts, trial

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.render.figures.loss_curves import draw_loss_curves
from qlora_repeat.render.figures.write import render_figures
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.trial_result import TrialResult, write_results

OPTIMIZERS = ("adamw-8bit", "adamw-32bit")
NAN, INF = math.nan, math.inf


def falling(run: int) -> list[float]:
    """Return losses like those of 32-bit trials."""
    return [2.6 - 0.03 * place + 0.01 * math.sin(place * run) for place in range(30)]


def rising(run: int) -> list[float]:
    """Return losses like those of some 8-bit trials."""
    return [2.6 * 10 ** (place * run / 50) for place in range(30)]


def like_the_paper(runs: int = 7, models: int = 4) -> list[TrialResult]:
    """Return 8-bit trials that rise by orders of magnitude or diverge, and 32-bit trials with two missing."""
    results = [
        trial(
            rising(run % 5) if low and run % 2 else falling(run),
            model=f"model-{number}",
            model_title=f"Model {number}",
            optimizer=optimizer,
            trial=run,
        )
        for number in range(1, models + 1)
        for optimizer, low in zip(OPTIMIZERS, (True, False), strict=True)
        for run in range(1, runs + 1)
    ]
    results[2] = replace(results[2], loss_curve=trial([*rising(3)[:12], *[NAN] * 18]).loss_curve)
    results[4] = replace(results[4], loss_curve=trial([*rising(5)[:29], INF]).loss_curve)
    for place, status in ((runs + 3, "missing"), (runs + 5, "failed")):
        results[place] = replace(results[place], status=status, loss_curve=[])
    return results


def drawn(results: list[TrialResult]) -> Figure:
    return draw_loss_curves(group_arms(results))


def curves_of(axes: Axes) -> dict[str, list[float]]:
    """Return the losses of the curves of trials, by color."""
    lines = [line for line in axes.lines if line.get_marker() != "x"]
    return {to_hex(line.get_color()): list(line.get_ydata()) for line in lines}


@pytest.fixture(scope="module")
def paper_like() -> Figure:
    figure = drawn(like_the_paper())
    figure.draw_without_rendering()
    return figure


def test_each_model_has_a_row_with_curves_and_bars_for_each_optimizer(paper_like: Figure) -> None:
    headings = [axes.get_title(loc="left") for axes in paper_like.axes]
    assert (
        headings
        == [
            "8-bit: loss by epoch",
            "8-bit: final loss by run",
            "32-bit: loss by epoch",
            "32-bit: final loss by run",
        ]
        * 4
    )
    tops = [round(axes.get_position().y1, 6) for axes in paper_like.axes]
    assert [len(list(group)) for _, group in itertools.groupby(tops)] == [4] * 4
    titles = [text for text in texts(paper_like) if text.startswith("Model ")]
    assert titles == ["Model 1", "Model 2", "Model 3", "Model 4"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in paper_like.axes)


def test_every_trial_has_a_curve_and_a_final_loss() -> None:
    results = [trial(falling(run), trial=run) for run in (1, 2, 3)]
    curves, bars = drawn(results).axes
    assert list(curves_of(curves).values()) == [falling(run) for run in (1, 2, 3)]
    assert [bar.get_width() for bar in bars.patches] == [falling(run)[-1] for run in (1, 2, 3)]
    assert [f"{falling(run)[-1]:.3f}" for run in (1, 2, 3)] == [text.get_text() for text in bars.texts]
    assert [to_hex(bar.get_facecolor()) for bar in bars.patches] == list(curves_of(curves))


def test_rising_losses_are_on_a_log_scale_and_do_not_compress_the_others(paper_like: Figure) -> None:
    low, low_bars, high, high_bars = paper_like.axes[:4]
    assert [low.get_yscale(), low_bars.get_xscale()] == ["log", "log"]
    assert [high.get_yscale(), high_bars.get_xscale()] == ["linear", "linear"]
    assert "log" in low.get_ylabel()
    assert "curves and bars: scales differ between the optimizers" in texts(paper_like)


def test_optimizers_with_similar_losses_share_their_scales() -> None:
    figure = drawn([trial(falling(run), optimizer=name, trial=run) for name in OPTIMIZERS for run in (1, 2)])
    low, low_bars, high, high_bars = figure.axes
    assert low.get_ylim() == high.get_ylim()
    assert low_bars.get_xlim() == high_bars.get_xlim()
    assert not any("differ" in text for text in texts(figure))


def test_a_loss_that_is_not_finite_is_marked_in_both_panels(paper_like: Figure) -> None:
    curves, bars = paper_like.axes[:2]
    assert {"run 3 diverged", "run 5 diverged"} <= set(texts(curves))
    crosses = [line for line in curves.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[pytest.approx(1.3)], [pytest.approx(3.0)]]
    assert {"diverged (nan)", "diverged (inf)"} <= set(texts(bars))
    assert len(bars.patches) == 5


def test_a_trial_that_recovers_has_a_gap_and_a_final_loss() -> None:
    curves, bars = drawn([trial([2.0, NAN, 1.8, INF, 1.5])]).axes
    (losses,) = curves_of(curves).values()
    assert [math.isnan(loss) for loss in losses] == [False, True, False, True, False]
    assert curves.lines[0].get_markevery() == [0, 1, 2, 3, 4]  # a single point needs a marker
    assert "1.500" in texts(bars)
    assert "run 1 diverged" in texts(curves)


@pytest.mark.parametrize("status", ["missing", "failed", "stale", "running"])
def test_a_trial_without_a_curve_is_a_gap_with_a_note(status: str) -> None:
    gone = trial([], trial=2, status=status)
    figure = drawn([trial(falling(1)), gone, trial(falling(3), trial=3), trial([], trial=4)])
    curves, bars = figure.axes
    assert len(curves_of(curves)) == len(bars.patches) == 2
    notes = {text.get_text(): text.xy[1] for text in bars.texts}
    assert (notes[status], notes["no curve"]) == (1, 3)
    counted = ", ".join(sorted(("1 no curve", f"1 {status}"), key=lambda one: one[2:]))
    assert any(f"No curve from 2 of 4 trials: {counted}." in text for text in texts(figure))


def test_a_requested_stale_trial_has_its_curve_and_a_note() -> None:
    figure = drawn([trial(falling(1)), trial(falling(2), trial=2, status="stale", stale_inputs=["code"])])
    curves, bars = figure.axes
    assert len(curves_of(curves)) == len(bars.patches) == 2
    assert any("Stale (changed since: code): NeoX 8-bit run 2." in text for text in texts(figure))


def test_a_trial_of_only_one_optimizer_is_missing_from_the_other() -> None:
    figure = drawn(
        [trial(falling(1)), trial(falling(1), trial=2), trial(falling(1), optimizer="adamw-32bit")]
    )
    assert "missing" in texts(figure.axes[3])


def test_an_optimizer_without_curves_says_so() -> None:
    figure = drawn([trial(falling(1)), trial([], optimizer="adamw-32bit", status="failed")])
    assert "no curves" in texts(figure.axes[2])


def test_a_third_optimizer_is_in_another_row() -> None:
    figure = drawn([trial(falling(1), optimizer=name) for name in (*OPTIMIZERS, "lion")])
    assert len(figure.axes) == 6
    assert figure.axes[4].get_position().y1 < figure.axes[0].get_position().y0
    assert figure.axes[4].get_title(loc="left") == "lion: loss by epoch"


def test_twenty_trials_look_different_and_have_their_values() -> None:
    figure = drawn([trial(falling(run), trial=run) for run in range(1, 21)])
    curves, bars = figure.axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in curves.lines}
    assert len(looks) == 20
    assert len(bars.texts) == 20
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["run 1", "run 11"]
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent().y0, text.get_window_extent().y1) for text in bars.texts)
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(boxes))


def test_a_hundred_trials_are_drawn_and_some_are_labeled() -> None:
    figure = drawn([trial(falling(run)[:3], trial=run) for run in range(1, 101)])
    assert len(figure.axes[1].patches) == 100
    assert 20 <= len(figure.axes[1].texts) <= 30
    assert any("only one bar in 4" in text for text in texts(figure))
    assert figure.get_figheight() < 7


ODD = r"$x^2$ \alpha {\frac %s 100% _a_ # & 中文🙂 \\ " + "long " * 60 + "W" * 300


def test_all_text_is_inside_the_figure_and_large_enough(paper_like: Figure) -> None:
    odd = [replace(row, model_title=ODD, device=ODD, optimizer=ODD) for row in like_the_paper(models=1)[:7]]
    hostile = drawn(odd)
    hostile.draw_without_rendering()
    for figure in (paper_like, hostile):
        assert figure.get_figwidth() == pytest.approx(7.16)
        width, height = figure.bbox.size
        for text in figure.findobj(
            lambda one: isinstance(one, Text) and one.get_text() and one.get_visible()
        ):
            assert text.get_fontsize() >= 6
            box = text.get_window_extent()
            assert min(box.x0, box.y0) >= -1, text.get_text()
            assert (box.x1 <= width + 1, box.y1 <= height + 1) == (True, True), text.get_text()


def test_titles_are_shown_unchanged() -> None:
    figure = drawn([trial([2.0], model_title=r"$x^2$ \alpha 中 " + "\u202e", device="$1")])
    assert r"$x^2$ \alpha <U+4E2D> \u{202e}" in texts(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


@pytest.mark.parametrize(
    "losses", [[0.0], [0.0, 0.0], [2.0] * 30, [3e38, 2.0], [1e-30], [0.0, 1e5], [NAN], [INF, -INF], [1e39]]
)
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    curves, bars = drawn([trial(losses)]).axes
    curves.figure.draw_without_rendering()
    assert len(bars.texts) == 1
    assert ("diverged" in bars.texts[0].get_text()) == (not abs(losses[-1]) < 1e39)


def test_the_figure_is_the_same_in_another_process_with_other_settings(tmp_path: Path) -> None:
    results = like_the_paper(models=1)
    write_results(results, tmp_path / "results.jsonl")
    first, second = (
        [path.read_bytes() for path in render_figures(group_arms(results), tmp_path / name)] for name in "ab"
    )
    assert [content[:4] for content in first] == [b"%PDF", b"\x89PNG"]
    assert first == second
    home = tmp_path / "home"
    (home / ".config" / "matplotlib").mkdir(parents=True)
    (home / ".config" / "matplotlib" / "matplotlibrc").write_text(
        "font.family: serif\nfont.size: 20\nlines.linewidth: 5\nfigure.facecolor: red\npdf.fonttype: 3\n"
        "savefig.bbox: tight\nsavefig.transparent: True\n"
    )
    other = {
        "HOME": str(home), "MPLBACKEND": "svg", "TZ": "Pacific/Kiritimati", "LANG": "de_DE.UTF-8",
        "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT / "src"),
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    script = (
        "import sys; from pathlib import Path; from qlora_repeat.results.trial_result import read_results;"
        "from qlora_repeat.render.figures.write import render_figures;"
        "from qlora_repeat.results.arms import group_arms;"
        "render_figures(group_arms(read_results(Path(sys.argv[1]))), Path(sys.argv[2]));"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", script, tmp_path / "results.jsonl", tmp_path / "c"]
    subprocess.run(command, env=other, check=True)
    assert [path.read_bytes() for path in sorted((tmp_path / "c").iterdir())] == first


def test_results_without_curves_give_no_figure_and_remove_an_old_one(tmp_path: Path) -> None:
    render_figures(group_arms([trial([2.0])]), tmp_path)
    (tmp_path / "table-01.md").write_text("kept")
    write_results([trial([]), trial([2.0], trial=2, status="stale")], tmp_path / "results.jsonl")
    done = kit("figures", "--results", tmp_path / "results.jsonl", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        "Error: collected results of study paper: no finished trial has a loss curve"
    )
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "table-01.md"]
    with pytest.raises(MissingError):
        render_figures([], tmp_path)


def test_two_rows_of_a_trial_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trial neox/adamw-8bit/1 has 2 rows"):
        render_figures(group_arms([trial([2.0]), trial([2.0])]), tmp_path)


def test_only_a_stand_in_for_the_papers_models_has_the_papers_number(tmp_path: Path) -> None:
    own = trial([2.0])
    for row, number in ((own, "01"), (replace(own, counterpart="llama2-7b"), "04")):
        render_figures(group_arms([row]), tmp_path)
        names = [f"figure-{number}.pdf", f"figure-{number}.png"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_command_lists_its_files_with_any_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "none of those there are")
    write_results([trial([2.0])], tmp_path / "results.jsonl")
    done = kit("figures", "--results", tmp_path / "results.jsonl", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths == [tmp_path / "out" / "figure-01.pdf", tmp_path / "out" / "figure-01.png"]
    assert all(path.is_file() for path in paths)
