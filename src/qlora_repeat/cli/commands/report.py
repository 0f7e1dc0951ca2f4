"""`qlora-repeat report`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import chosen_results, results_options, silence_libraries, study_argument
from qlora_repeat.system.printable import say


@click.command("report")
@study_argument
@results_options
def command(study_file: str, runs: Path | None, results: Path | None, out: Path | None) -> None:
    """Write one HTML file of a study's results, to read without a network.

    It has a verdict in one sentence, every trial with its adapter, the losses and the first step at which
    trials differ, responses side by side, the paper's numbers beside the study's, and the command that
    repeats each trial.

    \b
    Example:
      qlora-repeat report pocket
    """
    found = chosen_results(study_file, runs, results)
    silence_libraries(verbose=False)
    from qlora_repeat.api.rendered import report

    path = report(found).write(out)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
