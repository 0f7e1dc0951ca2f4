"""`qlora-repeat run`."""

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.cli.options import (
    compare_option,
    cpu_option,
    jobs_option,
    only_option,
    out_option,
    silence_libraries,
    stages_option,
    track_option,
    trials_option,
    verbosity_options,
    workspace_argument,
)
from qlora_repeat.study.trial import ALL_STAGES, Stage
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say

if TYPE_CHECKING:
    from qlora_repeat.api.results import Results


@click.command("run")
@jobs_option("Trials")
@click.option(
    "--gpus",
    metavar="0,1,...",
    help="The GPUs to use, by nvidia-smi's numbers (0:1 is an instance of MIG) or UUIDs.  [default: all]",
)
@cpu_option
@stages_option
@track_option
@only_option
@trials_option
@click.option("--no-report", is_flag=True, help="Write results, but no tables, figures and report.")
@compare_option
@out_option
@workspace_argument
@verbosity_options
def command(
    jobs: int | None,
    gpus: str | None,
    stages: list[Stage],
    only: tuple[str, ...],
    trials: int | None,
    no_report: bool,
    compare: str | None,
    out: Path | None,
    workspace: Workspace,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run every trial that is not complete, then write results, tables, figures and report.

    Each trial, and each test of a base model before fine-tuning, is a job: a process of its own. Missing
    models and data are fetched first. Run the same command again to resume. If some trials fail, the results
    of the others are written. With --stages, only these stages run, and only their records are written.
    --only and --trials are for a first look: tables and report then say that the study is cut short, and a
    later run without them runs the rest.

    \b
    Examples:
      qlora-repeat run pocket --compare published
      qlora-repeat run pocket --only smollm2-135m/adamw-8bit --trials 2
    """
    silence_libraries(verbose)
    from qlora_repeat.api.results import results_of
    from qlora_repeat.api.studies import collect, run
    from qlora_repeat.errors import BusyError, KitError, StageError
    from qlora_repeat.system.gpus import choose_gpus

    if gpus is not None:
        choose_gpus(gpus)
    others = None if compare is None else results_of(compare, workspace.runs)  # fail now, not after hours
    whole = stages == [*ALL_STAGES]
    try:
        results = run(workspace, jobs=jobs, stages=stages, only=only, trials=trials, quiet=quiet)
    except (StageError, BusyError):
        if whole:  # an error while writing matters less than why trials failed
            with contextlib.suppress(KitError, OSError):
                _show(collect(workspace), whole, no_report, out, others, quiet)
        raise
    _show(results, whole, no_report, out, others, quiet)
    if (only or trials) and not quiet and not all(row.status == "done" for row in results):
        say(f"`qlora-repeat run {shlex.quote(workspace.given)}` runs the other trials")


def _show(
    results: "Results", whole: bool, no_report: bool, out: Path | None, others: "Results | None", quiet: bool
) -> None:
    """Write tables, figures and report, unless left out, and print what there is now."""
    from qlora_repeat.api.rendered import write_all
    from qlora_repeat.cli.commands.collect import summary
    from qlora_repeat.results.arms import distinct_adapters

    lines = distinct_adapters(results.arms())
    if all(row.status == "done" for row in results):
        lines.append(f"study {results.label}: every trial is done")
    if whole:
        lines += summary(results)
    if whole and not no_report:
        paths = write_all(results, out, compare=others)
        lines.append(f"{paths[-1].parent}: tables, figures and {paths[-1].name}, {len(paths)} files")
    for line in () if quiet else lines:
        say(line)
