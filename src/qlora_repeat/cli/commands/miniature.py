"""`qlora-repeat miniature`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import silence_libraries, study_argument
from qlora_repeat.system.printable import say


@click.command("miniature")
@study_argument
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/rehearsal/hub"),
    show_default=True,
    help="Folder; it then serves as HF_HOME.",
)
def command(study_file: str, out: Path) -> None:
    """Write a hub cache of miniature models and data under a study's own repository names.

    With HF_HOME set to it and HF_HUB_OFFLINE=1, the study runs on a CPU in minutes: `make rehearsal`.

    \b
    Example:
      qlora-repeat miniature paper
    """
    silence_libraries(False)
    from qlora_repeat.assets.miniature import write_hub
    from qlora_repeat.study.loading import load_study

    study = load_study(study_file)
    write_hub(study, out)
    say(f"{out}: miniatures of what study {study.name} takes from a hub")
