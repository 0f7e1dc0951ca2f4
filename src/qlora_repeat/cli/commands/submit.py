"""`qlora-repeat submit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_repeat.api.places import BUILD
from qlora_repeat.cli.options import (
    out_option,
    silence_libraries,
    workspace_argument,
)
from qlora_repeat.study.workspace import Workspace

if TYPE_CHECKING:
    from qlora_repeat.planning.plan import Plan
    from qlora_repeat.slurm.submit import Request


@click.command("submit")
@click.option("--partition", help="The queue.")
@click.option("--account", help="What is charged.")
@click.option("--qos", help="The quality of service.")
@click.option(
    "--time", "limit", metavar="TIME", help="Of a task: minutes, H:MM:SS or D-HH.  [default: as planned]"
)
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), metavar="GB", help="Of the host, for a task."
)
@click.option("--cpus", type=click.IntRange(1), help="Of a task.")
@click.option(
    "--gpus", metavar="[TYPE:]N", help="Of a task, by the cluster's name of their type.  [default: 1]"
)
@click.option(
    "--concurrent", type=click.IntRange(1), help="Tasks at a time.  [default: as the cluster has it]"
)
@click.option("--image", metavar="X.SIF", help="The Apptainer image that tasks run in.")
@click.option("--sbatch", "extra", metavar="NAME=VALUE", multiple=True, help="Any other option of sbatch.")
@click.option(
    "--tables",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of sbatch for the job with the tables: --tables partition=cpu.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be asked of Slurm, and ask nothing.")
@workspace_argument
@out_option
def command(
    partition: str | None,
    account: str | None,
    qos: str | None,
    limit: str | None,
    memory: float | None,
    cpus: int | None,
    gpus: str | None,
    concurrent: int | None,
    image: str | None,
    extra: tuple[str, ...],
    tables: tuple[str, ...],
    dry_run: bool,
    workspace: Workspace,
    out: Path | None,
) -> None:
    """Submit a study to Slurm: a task for each trial that is not complete, then the tables.

    Defaults come from the study's [cluster] and from your own ~/.config/qlora-repeat/cluster.toml. Fetch the
    study first: tasks use no network. Submitted again, it asks only for what is neither done nor queued.

    \b
    Example:
      qlora-repeat submit paper --partition=gpu --gpus=a100:1 --image=qlora-repeat.sif --dry-run
    """
    silence_libraries(verbose=False)
    from qlora_repeat.slurm.submit import make_request, submit
    from qlora_repeat.study.cluster import Cluster, minutes_of, over, read_user_file

    study = workspace.study
    kind, number = _gpus(gpus)
    given = Cluster(
        partition=partition,
        account=account,
        qos=qos,
        minutes=minutes_of(limit) if limit else None,
        memory=memory,
        cpus=cpus,
        gpus=number,
        gpu_type=kind,
        concurrent=concurrent,
        image=image,
        sbatch=_extra(extra) or None,
        tables=_extra(tables) or None,
    )
    cluster = over(over(study.cluster, read_user_file()), given)
    told = cluster.minutes is not None and cluster.memory is not None
    request = make_request(workspace, cluster, None if told else _plan(workspace))
    if dry_run:
        click.echo(_asked(request, planned=not told))
        return
    _require_fetched(workspace)
    jobs, render = submit(request, workspace, cluster, out or BUILD / study.label)
    for name, job in request.queued.items():
        click.echo(f"{name}: queued already, as job {job}")
    for name, job in jobs.items():
        click.echo(f"{name}: job {job}")
    if render is not None:
        click.echo(f"tables and figures: job {render}, after these")
    elif not request.queued:
        click.echo(f"study {study.label}: every trial is done; nothing is submitted")


def _gpus(text: str | None) -> tuple[str | None, int | None]:
    """The type and the number that an option asks for."""
    from qlora_repeat.errors import UsageError

    if text is None:
        return None, None
    kind, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise UsageError(
            f"--gpus {text}: give a number, or the cluster's name of a type and a number: a100:1"
        )
    return kind or None, int(number)


def _extra(options: tuple[str, ...]) -> dict[str, Any]:
    """More options of sbatch, without dashes: one without a value is a switch, ``=false`` takes one back."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.lstrip("-").partition("=")
        found[name] = value != "false" and (value if equals else True)
    return found


def _plan(workspace: Workspace) -> "Plan | None":
    """What the study needs on the paper's GPU; None where its bases are not known yet."""
    from qlora_repeat.api.results import paper_results
    from qlora_repeat.errors import KitError
    from qlora_repeat.planning.gpu_catalog import find_gpu
    from qlora_repeat.planning.plan import make_plan

    try:
        published = paper_results().items
        return make_plan(workspace, find_gpu("a100-80gb"), 1, published)
    except KitError:
        return None


def _asked(request: "Request", *, planned: bool) -> str:
    """What would be asked, for people."""
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
        basis = "time and memory: the largest task's, by `qlora-repeat plan`, where they are not given\n"
    elif planned:
        basis = "time and memory are not planned, for the bases are not fetched: give --time and --memory\n"
    first = "; ".join(request.array["setup"])
    return f"{table}\n\nfirst in each: {first}\n{basis}tasks: {', '.join(request.tasks)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(name if each is True else f"{name}={each}" for name, each in value.items())
    return "" if value is None else str(value)


def _require_fetched(workspace: Workspace) -> None:
    """Tasks use no network: what is not here now, they would miss, each after it has waited for its turn."""
    from qlora_repeat.assets.fetch import needed
    from qlora_repeat.errors import MissingError

    lacking = [item.name for item in needed(workspace) if not item.present]
    if lacking:
        raise MissingError(
            f"not fetched: {', '.join(lacking)}; run `qlora-repeat fetch {workspace.given}` here first"
        )
