"""`qlora-repeat report`."""

import os
from pathlib import Path

import click

from qlora_repeat.cli.options import (
    BUILD,
    PUBLISHED_NUMBERS,
    chosen_experiments,
    chosen_results,
    results_options,
    silence_libraries,
    study_argument,
)


@click.command("report")
@study_argument
@results_options
def command(study_file: str, runs: Path, results: Path | None, out: Path | None) -> None:
    """Write one HTML file of a study's results, to read without a network.

    It has the verdict in a sentence, every trial and its adapter, losses and where runs part, responses side
    by side, the paper's numbers beside the study's, and the command that runs each trial again.

    \b
    Example:
      qlora-repeat report pocket
    """
    label, rows = chosen_results(study_file, runs, results)
    silence_libraries(verbose=False)
    os.environ["MPLBACKEND"] = "agg"
    from qlora_repeat.render.report.page import report_html
    from qlora_repeat.render.report.trial_files import TrialFiles, read_trial_files
    from qlora_repeat.results.arms import group_arms
    from qlora_repeat.results.published import read_published
    from qlora_repeat.study.loading import open_workspace, portable_name
    from qlora_repeat.study.study import PUBLISHED
    from qlora_repeat.system.files import write_text

    arms = group_arms(rows)
    at_hand = results is None and study_file != PUBLISHED
    path = (out or BUILD / label) / "report.html"
    text = report_html(
        arms,
        study_name=study_file if study_file == PUBLISHED else portable_name(study_file),
        files=read_trial_files(open_workspace(study_file, runs=runs), arms) if at_hand else TrialFiles(),
        published=[] if study_file == PUBLISHED else group_arms(read_published(PUBLISHED_NUMBERS)),
        experiments=chosen_experiments(label, runs, results),
    )
    write_text(path, text)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
