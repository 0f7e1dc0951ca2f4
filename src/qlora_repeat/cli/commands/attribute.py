"""`qlora-repeat attribute`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qlora_repeat.api.places import BUILD, TEMPLATES
from qlora_repeat.cli.commands.diff import DIFFERENT
from qlora_repeat.cli.options import (
    cache_option,
    cpu_option,
    jobs_option,
    out_option,
    runs_option,
    silence_libraries,
    study_argument,
    verbosity_options,
)
from qlora_repeat.system.printable import say, say_block

if TYPE_CHECKING:
    from qlora_repeat.analysis.attribution.experiment import Experiment
    from qlora_repeat.analysis.attribution.measurements import Measurements
    from qlora_repeat.system.determinism import Kernels


@click.command("attribute")
@study_argument
@click.option("--model", help="A model of the study.  [default: its first]")
@click.option("--optimizer", help="An optimizer of the study.  [default: adamw-32bit, if it has it]")
@click.option(
    "--sources",
    metavar="A,B,...",
    help="Some of adapter_init, data_order, dropout, split, kernels, nudge, optimizer."
    "  [default: all but split]",
)
@click.option(
    "--replicates",
    type=click.IntRange(2, 200),
    default=7,
    show_default=True,
    help="Trials of each condition.",
)
@click.option("--interactions", is_flag=True, help="Also free each pair of random sources.")
@click.option(
    "--kernels",
    type=click.Choice(["deterministic", "default"]),
    default="deterministic",
    show_default=True,
    help="Of the baseline. Use default if an operation has no deterministic kernel; bits are then not fixed.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be run, what it means and how long, and run nothing."
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make table and figure from an attribution.json alone.",
)
@jobs_option("Trials")
@cpu_option
@runs_option
@cache_option
@out_option
@verbosity_options
@click.pass_context
def command(
    context: click.Context,
    study_file: str,
    model: str | None,
    optimizer: str | None,
    sources: str | None,
    replicates: int,
    interactions: bool,
    kernels: "Kernels",
    dry_run: bool,
    results: Path | None,
    jobs: int | None,
    runs: Path | None,
    cache: Path | None,
    out: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Find which source of randomness makes the trials of one arm differ, by an experiment.

    The baseline fixes every source, at different levels in each replicate. Then each source gets another
    level, alone and all together; one weight is changed by one unit in the last place; and the other
    precision of optimizer state is tried. The same command resumes. It writes attribution.json, table S2 and
    a figure, and says in words what they show. The exit code is 7 if trials that must be equal are not: then
    the experiment shows nothing.

    \b
    Example:
      qlora-repeat attribute pocket --dry-run
    """
    silence_libraries(verbose)
    from qlora_repeat.analysis.attribution.experiment import (
        DEFAULT,
        make_experiment,
        measure,
        run_experiment,
    )
    from qlora_repeat.analysis.attribution.measurements import read_measured
    from qlora_repeat.api.progress import Terminal, console
    from qlora_repeat.study.loading import open_workspace

    if results is not None:
        _report(context, read_measured(results), None, out or BUILD / Path(study_file).stem, quiet)
        return
    chosen = [name.strip() for name in sources.split(",")] if sources is not None else DEFAULT
    workspace = open_workspace(study_file, runs=runs, cache=cache)
    experiment = make_experiment(workspace, model, optimizer, chosen, replicates, interactions, kernels)
    if dry_run:
        say_block(_plan(experiment, jobs))
        return
    run_experiment(experiment, Terminal(console(quiet)), jobs)
    folder = out or BUILD / workspace.study.label
    _report(context, measure(experiment), experiment.file, folder, quiet)


def _plan(experiment: "Experiment", jobs: int | None) -> str:
    """Return what would be run, by condition, and how long it takes."""
    from qlora_repeat.analysis.attribution.experiment import STAGES, conditions
    from qlora_repeat.analysis.attribution.time_needed import trial_seconds
    from qlora_repeat.execution.jobs import is_open
    from qlora_repeat.planning.trial_time import cpu_seconds
    from qlora_repeat.render.text.experiment import experiment_text
    from qlora_repeat.system.gpus import default_workers, visible_gpus

    found = conditions(experiment)
    missing = [trial for each in found for trial in each.trials if is_open(trial, STAGES)]
    workers = min(jobs or default_workers(experiment.study.threads), max(len(missing), 1))
    seconds = trial_seconds(experiment)
    rough = seconds is None
    if rough and missing and not visible_gpus():
        seconds = cpu_seconds(experiment.workspace, experiment.model)
    return experiment_text(experiment, found, missing, seconds, workers, rough=rough)


def _report(
    context: click.Context, measured: "Measurements", file: Path | None, folder: Path, quiet: bool
) -> None:
    """Write what was found, and print it in words; exit with code 7 if it cannot be interpreted."""
    os.environ["MPLBACKEND"] = "agg"
    from qlora_repeat.analysis.attribution.decompose import attribute
    from qlora_repeat.analysis.attribution.measurements import write_attribution
    from qlora_repeat.render.figures.attribution import render_attribution_figure
    from qlora_repeat.render.tables.attribution import attribution_table
    from qlora_repeat.render.tables.write import table_texts
    from qlora_repeat.render.text.attribution import sentences
    from qlora_repeat.system.files import write_text

    found = attribute(measured)
    words = sentences(measured, found)
    paths = []
    if file is not None:
        write_attribution(measured, found, words, file)
        paths.append(file)
    for name, text in table_texts(attribution_table(measured, found), TEMPLATES).items():
        write_text(folder / name, text)
        paths.append(folder / name)
    paths += render_attribution_figure(measured, found, folder)
    for line in words:
        say(line)
    if not quiet:
        for path in paths:
            say(path)
    if found.problems:
        context.exit(DIFFERENT)
