"""`qlora-repeat figures`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import chosen_results, results_options, silence_libraries, study_argument
from qlora_repeat.system.printable import say


@click.command("figures")
@study_argument
@results_options
def command(study_file: str, runs: Path | None, results: Path | None, out: Path | None) -> None:
    """Draw the paper's Figure 4, as PDF and as PNG, from collected results alone.

    It shows the loss of every trial over the epochs, and the final losses side by side. Figure S2 is added
    after an attribution, and Figure S3 if an optimizer of the study has the old map of 8-bit state. In a
    study of models other than the paper's, without a counterpart, it is Figure 1.

    \b
    Example:
      qlora-repeat figures pocket
    """
    found = chosen_results(study_file, runs, results)
    silence_libraries(verbose=False)  # matplotlib writes about its caches
    from qlora_repeat.api.rendered import write_figures

    for path in write_figures(found, out):
        say(path)
