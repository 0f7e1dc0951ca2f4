"""`qlora-repeat interlab`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.api.places import BUILD, TEMPLATES
from qlora_repeat.cli.options import out_option, runs_option
from qlora_repeat.system.printable import say, say_json

if TYPE_CHECKING:
    from qlora_repeat.analysis.interlab import Laboratory


@click.command("interlab")
@click.argument("laboratories", metavar="[NAME=]RESULTS...", nargs=-1, required=True)
@runs_option
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, and write nothing.")
def command(laboratories: tuple[str, ...], runs: Path | None, out: Path | None, as_json: bool) -> None:
    """Compare what several laboratories measured: Table S5.

    RESULTS is an archive made by `pack` (.zip), a results file (.jsonl), a study's name, or `published`. For
    each arm, the table shows the spread within laboratories (repeatability), the spread across laboratories
    (reproducibility), and how many adapters are bitwise equal in several. The table is written to
    paper/build/laboratories, unless --out names another folder.

    \b
    Example:
      qlora-repeat interlab tampa.zip oslo.zip
    """
    import dataclasses

    from qlora_repeat.analysis.interlab import compare_laboratories
    from qlora_repeat.render.tables.interlab import laboratory_table, sentences
    from qlora_repeat.render.tables.write import table_texts
    from qlora_repeat.system.files import json_text, strict, write_text

    found = [_laboratory(given, runs) for given in laboratories]
    arms = compare_laboratories(found)
    if as_json:
        say_json(json_text(strict([dataclasses.asdict(arm) for arm in arms])))
        return
    folder = out or BUILD / "laboratories"
    for line in sentences(arms):
        say(line)
    for name, text in table_texts(laboratory_table(found, arms), TEMPLATES).items():
        write_text(folder / name, text)
        say(folder / name)


def _laboratory(given: str, runs: Path | None) -> "Laboratory":
    from qlora_repeat.analysis.interlab import laboratory
    from qlora_repeat.api.results import results_of
    from qlora_repeat.archive.laboratory import read_laboratory

    name, equals, source = given.rpartition("=")
    path = Path(source)
    if path.suffix in (".zip", ".jsonl"):
        return read_laboratory(name if equals else path.stem, path)
    results = results_of(source, runs)
    return laboratory(name if equals else results.label, results)
