"""`qlora-repeat status`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, output, runs_option, study_option
from qlora_repeat.system.printable import one_line, say


@click.command("status")
@click.argument("name", metavar="[STUDY|TRIAL]", required=False)
@study_option
@click.option(
    "--lines",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="For a TRIAL: show this many lines from the end of each log.",
)
@runs_option
@cache_option
def command(name: str | None, study_file: str, lines: int, runs: Path | None, cache: Path | None) -> None:
    """Show which trials of a study are done, running, stale, damaged, failed or missing, and why.

    For a TRIAL, named model/optimizer/number, show its state, its last step, and the end of its log and of
    the log of its cluster job. Files are not hashed: `qlora-repeat check` does that.

    \b
    Examples:
      qlora-repeat status pocket
      qlora-repeat status smollm2-135m/adamw-8bit/3 --study pocket
    """
    if name is not None and _is_trial(name):
        _show_trial(study_file, name, lines, runs)
    else:
        _, at, profile = study_file.partition("@")  # of --randomness
        _show_study(study_file if name is None else f"{name}{at}{profile}", runs, cache)


def _is_trial(name: str) -> bool:
    return name.count("/") == 2 and not name.partition("@")[0].endswith(".toml")


def _show_trial(study_file: str, name: str, lines: int, runs: Path | None) -> None:
    from qlora_repeat.slurm.logs import trial_logs
    from qlora_repeat.study.loading import open_workspace

    for line in trial_logs(open_workspace(study_file, runs=runs).trial(name), lines):
        say(line)


def _show_study(study_file: str, runs: Path | None, cache: Path | None) -> None:
    from qlora_repeat.api.colors import STATES, with_colored
    from qlora_repeat.records.trial_state import base_damages, base_state, explanations, trial_state
    from qlora_repeat.render.text.status import status_text
    from qlora_repeat.study.loading import open_workspace

    workspace, out = open_workspace(study_file, runs=runs, cache=cache), output()
    trials = [trial_state(trial, rehash=False) for trial in workspace.trials()]
    base_tests = {test.name: base_state(test).state for test in workspace.base_tests()}
    out.print(with_colored(status_text(trials, base_tests, out.width if out.is_terminal else None), STATES))
    for line in base_damages(workspace) + explanations(trials):
        out.print(with_colored(one_line(line), STATES, most=1))
