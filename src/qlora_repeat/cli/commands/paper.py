"""`qlora-repeat paper`."""

import shlex
from pathlib import Path

import click

from qlora_repeat.api.places import BUILD
from qlora_repeat.cli.options import out_option, study_argument
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.system.printable import say


@click.command("paper")
@study_argument
@out_option
def command(study_file: str, out: Path | None) -> None:
    """Compile the tables and the figure of a study into one PDF, all.pdf, with pdflatex.

    They must be in the folder already: `make paper` makes them first.

    \b
    Example:
      qlora-repeat paper pocket
    """
    from qlora_repeat.render.pdf import compile_paper

    label = PUBLISHED if study_file == PUBLISHED else load_study(study_file).label
    tables = ["qlora-repeat", "tables", study_file, *(["--out", str(out)] if out else [])]
    say(compile_paper(out or BUILD / label, shlex.join(tables)))
