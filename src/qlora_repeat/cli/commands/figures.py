"""`qlora-repeat figures`."""

import os
from pathlib import Path

import click

from qlora_repeat.cli.options import (
    BUILD,
    chosen_experiments,
    chosen_results,
    results_options,
    silence_libraries,
    study_argument,
)


@click.command("figures")
@study_argument
@results_options
def command(study_file: str, runs: Path, results: Path | None, out: Path | None) -> None:
    """Draw the paper's Figure 4, as PDF and as PNG, from collected results alone.

    It shows the loss of every run over the epochs, and the final losses side by side. Of a study that has an
    optimizer with an old map of 8-bit state, Figure S3 shows what that does; of an attribution, Figure S2.

    \b
    Example:
      qlora-repeat figures pocket
    """
    label, rows = chosen_results(study_file, runs, results)
    silence_libraries(verbose=False)  # matplotlib tells about its caches
    os.environ["MPLBACKEND"] = "agg"  # and refuses to start with a backend that it does not know
    from qlora_repeat.render.figures.write import render_figures
    from qlora_repeat.results.arms import group_arms

    experiments = chosen_experiments(label, runs, results)
    for path in render_figures(group_arms(rows), out or BUILD / label, experiments):
        click.echo(path)
