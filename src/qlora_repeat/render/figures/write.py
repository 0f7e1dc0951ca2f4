"""Write the figures of a study: Figure 4 of the paper, and S2, S3 and S9 where a study has what they show."""

from collections.abc import Sequence
from pathlib import Path

from qlora_repeat.analysis.attribution.decompose import attribute
from qlora_repeat.analysis.attribution.measurements import Measurements
from qlora_repeat.errors import MissingError
from qlora_repeat.render.figures.attribution import render_attribution_figure
from qlora_repeat.render.figures.averaging import draw_averaging, has_averaging_figure
from qlora_repeat.render.figures.collapse import draw_collapse, has_collapse_figure
from qlora_repeat.render.figures.drawing import save_figure
from qlora_repeat.render.figures.loss_curves import draw_loss_curves
from qlora_repeat.render.footnotes import study_names
from qlora_repeat.results.arms import Arm, trained
from qlora_repeat.results.scope import of_paper
from qlora_repeat.system.files import remove


def render_figures(every: list[Arm], out: Path, experiments: Sequence[Measurements] = ()) -> list[Path]:
    """Write Figure 4 as ``figure-04.pdf`` and ``.png``; return the paths of all figures written.

    Without one of the paper's models or a counterpart of one, it is ``figure-01``. If an
    optimizer has an old map of 8-bit state, also ``figure-S3``; with attribution `experiments`,
    ``figure-S2-ARM`` for each; with averages, ``figure-S9``. Earlier figures that these results do not have
    are removed.

    Raises:
        MissingError: no finished trial has a loss curve.
    """
    of_experiments = [
        path
        for measured in experiments
        for path in render_attribution_figure(measured, attribute(measured), out)
    ]
    arms = trained(every)
    has_curves = any(trial.loss_curve for arm in arms for trial in arm.done)
    losses = "figure-04" if of_paper(arms) else "figure-01"
    drawn = {losses: draw_loss_curves} if has_curves else {}
    if has_collapse_figure(arms):
        drawn["figure-S3"] = draw_collapse
    if has_averaging_figure(every):
        drawn["figure-S9"] = draw_averaging
    paths = {name: [out / f"{name}.{kind}" for kind in ("pdf", "png")] for name in drawn}
    written = [path for own in paths.values() for path in own] + of_experiments
    possible = [
        out / f"figure-{number}.{kind}" for number in ("01", "04", "S3", "S9") for kind in ("pdf", "png")
    ]
    for path in {*possible, *out.glob("figure-S2-*")} - set(written):
        remove(path)
    if not has_curves:
        raise MissingError(
            f"collected results of study {study_names(arms) or '(none)'}: no finished trial has a loss curve "
            "to draw; run and collect them first"
        )
    for name, draw in drawn.items():
        save_figure(draw(every if draw is draw_averaging else arms), paths[name])
    return written
