"""`qlora-repeat submit`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_repeat.api.places import BUILD
from qlora_repeat.cli.options import (
    only_option,
    out_option,
    silence_libraries,
    trials_option,
    workspace_argument,
)
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say, say_block

if TYPE_CHECKING:
    from qlora_repeat.planning.plan import Plan
    from qlora_repeat.slurm.submit import Request


def _minutes(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    from qlora_repeat.study.cluster import minutes_of

    return minutes_of(text) if text else None


def _gpus(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str | None, int | None]:
    """Return the type and the number of GPUs."""
    if text is None:
        return None, None
    kind, _, number = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,4}", number):
        raise UsageError(f"--gpus {text}: expected N or TYPE:N, such as a100:1")
    return kind or None, int(number)


def _extra(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str | bool] | None:
    """Return options of sbatch without dashes; a name alone is a switch, and ``=false`` removes one."""
    found: dict[str, str | bool] = {}
    for text in given:
        name, equals, value = text.lstrip("-").partition("=")
        found[name] = value != "false" and (value if equals else True)
    return found or None


@click.command("submit")
@click.option("--partition", help="The partition, as sbatch names it.")
@click.option("--account", help="The account that is charged.")
@click.option("--qos", help="The quality of service.")
@click.option(
    "--time",
    "minutes",
    metavar="TIME",
    callback=_minutes,
    help="Time limit of a task: minutes, H:MM:SS or D-HH.  [default: as planned]",
)
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), metavar="GB", help="Host memory of a task."
)
@click.option("--cpus", type=click.IntRange(1), help="Cores of a task.")
@click.option(
    "--gpus",
    metavar="[TYPE:]N",
    callback=_gpus,
    help="GPUs of a task, by the cluster's name of their type.  [default: 1]",
)
@click.option("--concurrent", type=click.IntRange(1), help="Tasks at a time.  [default: the cluster's limit]")
@click.option("--image", metavar="X.SIF", help="The Apptainer image in which tasks run.")
@click.option("--sbatch", metavar="NAME=VALUE", multiple=True, callback=_extra, help="Another sbatch option.")
@click.option(
    "--tables",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_extra,
    help="An sbatch option of the job that makes tables: --tables partition=cpu.",
)
@only_option
@trials_option
@click.option("--dry-run", is_flag=True, help="Show what would be requested, and submit nothing.")
@workspace_argument
@out_option
def command(
    workspace: Workspace,
    out: Path | None,
    dry_run: bool,
    only: tuple[str, ...],
    trials: int | None,
    gpus: tuple[str | None, int | None],
    **given: Any,
) -> None:
    """Submit a study to Slurm: a task for each trial that is not complete, then the tables.

    Defaults come from the study's [cluster] and from your own ~/.config/qlora-repeat/cluster.toml. Fetch the
    study first, because tasks use no network. The same command again submits only what is neither done nor
    queued.

    \b
    Example:
      qlora-repeat submit paper --partition=gpu --gpus=a100:1 --image=qlora-repeat.sif --dry-run
    """
    silence_libraries(verbose=False)
    from qlora_repeat.slurm.submit import make_request, submit
    from qlora_repeat.study.cluster import Cluster, from_options, over, read_user_file, requested
    from qlora_repeat.study.finding import came_in_archive
    from qlora_repeat.study.selection import select

    own = from_options(**given, gpu_type=gpus[0], gpus=gpus[1])
    asked = workspace.study.cluster
    if came_in_archive(workspace.file) and (ignored := requested(asked)):
        note = f"{workspace.file}: came in an archive, so its [cluster] is ignored: {_shown(ignored)}"
        say(note, error=True)
        asked = Cluster()
    cluster = over(over(asked, read_user_file()), own)
    chosen = select(workspace, only, trials)
    complete = cluster.minutes is not None and cluster.memory is not None
    request = make_request(workspace, cluster, None if complete else _plan(workspace), chosen)
    if dry_run:
        say_block(_asked(request, planned=not complete))
        return
    _require_fetched(workspace, chosen.models)
    jobs, render = submit(request, workspace, cluster, out or BUILD / workspace.study.label)
    for name, job in request.queued.items():
        say(f"{name}: queued already, as job {job}")
    for name, job in jobs.items():
        say(f"{name}: job {job}")
    if render is not None:
        say(f"tables and figures: job {render}, after these")
    elif not request.queued:
        every = "every chosen trial" if chosen.left_out else "every trial"
        say(f"study {workspace.study.label}: {every} is done; nothing is submitted")


def _plan(workspace: Workspace) -> "Plan | None":
    """Return what the study needs on the paper's GPU, or None if its bases are not known yet."""
    from qlora_repeat.api.results import paper_results
    from qlora_repeat.planning.gpu_catalog import find_gpu
    from qlora_repeat.planning.plan import make_plan

    try:
        published = paper_results().items
        return make_plan(workspace, find_gpu("a100-80gb"), 1, published)
    except KitError:
        return None


def _asked(request: "Request", *, planned: bool) -> str:
    """Return what would be requested, as text."""
    from tabulate import tabulate

    if not request.tasks:
        return f"nothing to submit: every trial is done or queued ({len(request.queued)} queued)"
    keys = [*request.array, *(key for key in request.render if key not in request.array)]
    rows = [
        (key, _shown(request.array.get(key)), _shown(request.render.get(key)))
        for key in keys
        if key not in ("stderr_to_stdout", "setup")
    ]
    table = tabulate(
        rows, headers=["", f"array of {len(request.tasks)}", "then tables"], disable_numparse=True
    )
    basis = ""
    if request.estimated:
        basis = "time and memory, if not given, are those of the largest task in `qlora-repeat plan`\n"
    elif planned:
        basis = "time and memory cannot be planned before the bases are fetched; give --time and --memory\n"
    first = "; ".join(request.array["setup"])
    return f"{table}\n\nfirst in each: {first}\n{basis}tasks: {', '.join(request.tasks)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name if each is True else f"{name}={each}" for name, each in value.items())
    return "" if value is None else str(value)


def _require_fetched(workspace: Workspace, models: list[str]) -> None:
    """Check that all is fetched: tasks use no network, and would fail only after their time in the queue."""
    from qlora_repeat.assets.fetch import needed

    lacking = [item.name for item in needed(workspace, models) if not item.present]
    if lacking:
        command = workspace.command("fetch")
        raise MissingError(f"not fetched: {', '.join(lacking)}; run `{command}` here first")
