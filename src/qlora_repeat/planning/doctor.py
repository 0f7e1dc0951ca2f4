"""What would stop a study from running on this machine, and how to mend it: `qlora-repeat doctor`.

Nothing is fetched, no hub is asked, and nothing is left on disk. What is looked at besides the study is in
`qlora_repeat.planning.machine_checks`.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_bytes
from qlora_repeat.assets.fetch import Item, Missing, fetch_command, needed, what_it_takes
from qlora_repeat.assets.hub import cached_files, hub_cache
from qlora_repeat.assets.hub_lock import RepositoryKind, lock_file
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.planning.machine_checks import (
    Finding,
    checkout_findings,
    environment_findings,
    folder_findings,
    gpu_of_this_machine,
    latex_findings,
    nearest,
    package_findings,
    precision_findings,
    python_findings,
    thread_findings,
    torch_findings,
)
from qlora_repeat.planning.plan import DTYPE_BYTES, make_plan, train_examples
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import megabytes

CPU_SECONDS = 0.55 / 134.5e6
"""Of a step, for each parameter: measured with SmolLM2-135M on two cores."""
DAY = 24 * 3600.0
GATED = ("meta-llama/",)
"""Owners of repositories whose license has to be accepted on the hub, which then wants a token."""


@dataclass(frozen=True)
class Stock:
    """What is known, without asking a hub, of something that a study needs."""

    item: Item
    weights: int | None = None
    """Of a base: bytes, in half precision; None where nothing tells."""
    missing: Missing | None = None
    """What it takes to bring it, where that can be told."""
    problem: KitError | None = None
    """Why it cannot be brought."""
    in_hub_cache: bool = False
    """Whether all of it is in the hub's own cache."""


def examine(workspace: Workspace, machine: Mapping[str, Any]) -> list[Finding]:
    """Looks at everything; `machine` is the fingerprint of a process, with the variables that it was given.

    A check that fails itself is a warning that names it.
    """
    study, stocks = workspace.study, list[Stock]()

    def take_stock() -> list[Finding]:
        stocks.extend([stock_of(workspace, item) for item in needed(workspace)])  # all or none
        return []

    def of_study(check: Callable[[], Iterable[Finding]]) -> Callable[[], Iterable[Finding]]:
        return lambda: check() if stocks else []

    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "Python": python_findings,
        "packages": package_findings,
        "torch": torch_findings,
        "study": take_stock,
        "device": of_study(lambda: device_findings(workspace, stocks, gpu_of_this_machine())),
        "precision": lambda: precision_findings(study.precision.compute, machine),
        "threads": lambda: thread_findings(study.threads, machine["usable_cores"]),
        "models and data": of_study(lambda: stock_findings(workspace, stocks)),
        "folders": lambda: _folders(workspace, stocks),
        "disk": of_study(lambda: disk_findings(workspace, stocks)),
        "environment": lambda: environment_findings(
            machine["environment"], study.randomness.kernels, study.threads
        ),
        "checkout": lambda: checkout_findings(machine),
        "LaTeX": latex_findings,
    }
    return [finding for name, check in checks.items() for finding in _safely(name, check)]


def _safely(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except KitError as error:
        return [_told(name, error, "correct that, and run `qlora-repeat doctor` again")]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [Finding("warning", name, f"this check itself failed ({reason})", "look at it by hand")]


def _told(subject: str, error: KitError, otherwise: str) -> Finding:
    """An error as a finding: after what is wrong, most say what to do."""
    text, _, mend = " ".join(str(error).split()).partition("; ")
    return Finding("stops", subject, text, mend or otherwise)


def stock_of(workspace: Workspace, item: Item) -> Stock:
    """What is known of something that a study needs.

    Raises:
        UsageError: the lock file cannot be read, or contradicts the study.
    """
    if item.present:
        weights = base_bytes(workspace, item.name) if item.kind == "base" else None
        return Stock(item, weights)
    if item.hub is None:
        try:
            missing = what_it_takes(workspace, item)
        except MissingError as error:
            return Stock(item, problem=error)
        return Stock(item, missing.size if item.kind == "base" else None, missing)
    if (pin := lock_file(workspace).pin(item.hub)) is not None:
        missing = what_it_takes(workspace, item)
        weights = sum(file.size for name, file in pin.files.items() if _holds_weights(name))
        return Stock(item, weights, missing, in_hub_cache=missing.download == 0)
    kind: RepositoryKind = "model" if item.kind == "base" else "dataset"
    try:
        found = cached_files(item.hub, kind, fetch_command(workspace, item))
    except MissingError:  # a part of it: the rest has to be fetched
        found = None
    if found is not None:
        sizes = {name: path.stat().st_size for name, path in found[1].items()}
        new = sum(size for name, size in sizes.items() if item.kind == "data" or name.endswith(".bin"))
        weights = sum(size for name, size in sizes.items() if _holds_weights(name))
        return Stock(item, weights, Missing(item, item.hub.repository, new), in_hub_cache=True)
    if item.kind == "data":
        size = 1000 * workspace.study.data[item.name].rows  # the paper's instructions have about as much each
        return Stock(item, None, Missing(item, item.hub.repository, size, download=size))
    told = _by_architecture(workspace.study, item.name)
    return Stock(item, told, Missing(item, item.hub.repository, 0, download=told) if told else None)


def _holds_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _by_architecture(study: Study, base: str) -> int | None:
    """A base's bytes in half precision, from the architecture that the study gives."""
    architecture = study.bases[base].architecture
    if architecture is None:
        return None
    from qlora_repeat.planning.memory_estimate import model_config, parameter_count

    return 2 * parameter_count(model_config(architecture, base))


def device_findings(
    workspace: Workspace, stocks: list[Stock], gpu: tuple[Gpu, int] | None
) -> Iterator[Finding]:
    """Whether the device that trials would run on is large and fast enough; `gpu` has so many bytes free."""
    if gpu is None:
        yield from cpu_findings(
            workspace.study, stocks, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        return
    try:
        plan = make_plan(workspace, gpu[0], 1, [])
    except MissingError:
        given = lock_file(workspace).study
        names = ", ".join(stock.item.name for stock in stocks if _is_base(stock) and not stock.item.present)
        yield Finding(
            "warning",
            "device",
            f"{gpu[0].name}: whether its memory is enough is not known before {names} is fetched",
            f"run `qlora-repeat fetch {given}`, then `qlora-repeat doctor {given}` again",
        )
        return
    for problem in (problems := plan.too_large()):
        yield Finding("stops", "device", problem, "use a larger GPU (`qlora-repeat plan` compares them)")
    if problems:
        return
    most = max(model.peak[0] for model in plan.models)
    shown = f"{most / 1e9:.1f} GB are needed of the {gpu[0].memory / 1e9:.1f} GB of {gpu[0].name}"
    if gpu[1] < most:
        yield Finding(
            "warning",
            "device",
            f"{shown}, and {gpu[1] / 1e9:.1f} GB are free: other processes use it",
            "wait for them (`nvidia-smi` shows them), or choose another GPU with CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding("ok", "device", shown)


def cpu_findings(study: Study, stocks: list[Stock], memory: int) -> Iterator[Finding]:
    """Whether a CPU with so many bytes of memory can do a study.

    Nothing in the kit refuses large models there, so it is their size that decides: miniatures of a rehearsal
    and small models run. Too little memory stops a study, and so does more than a week for one trial: who
    has that in mind needs no doctor, and a job that was given no GPU by mistake should end at once.
    """
    weights = {stock.item.name: stock.weights for stock in stocks if _is_base(stock)}
    if unknown := [name for name, size in weights.items() if size is None]:
        yield Finding(
            "warning",
            "device",
            f"there is no GPU, and the size of {', '.join(unknown)} is not known before it is fetched: only "
            "small models run on a CPU",
            "run `qlora-repeat fetch`, then `qlora-repeat doctor` again; or use a machine with a GPU",
        )
    known = {name: size for name, size in weights.items() if size is not None}
    seconds = {
        name: size / 2 * CPU_SECONDS * model.training.total_steps(train_examples(study.data[model.data]))
        for name, model in study.models.items()
        if (size := known.get(model.base)) is not None
    }
    # Testing holds the merged model in the precision of arithmetic.
    work = {name: size // 2 * DTYPE_BYTES[study.precision.compute] for name, size in known.items()}
    largest, slowest = max(work, key=lambda name: work[name], default=""), max(seconds.values(), default=0.0)
    elsewhere = "use a machine with a GPU"
    if any(stock.item.hub is not None for stock in stocks):
        elsewhere += "; `make rehearsal` tries the paper's study on miniatures on a CPU"
    if largest and work[largest] > memory:
        text = f"there is no GPU, and base {largest} needs {work[largest] / 1e9:.3g} GB of memory"
        yield Finding("stops", "device", f"{text} where there are {memory / 1e9:.3g}", elsewhere)
    if slowest > 7 * DAY:
        text = f"there is no GPU, and on a CPU the longest trial would take about {slowest / DAY:.0f} days"
        yield Finding("stops", "device", text, elsewhere)
    elif slowest > DAY:
        text = f"on a CPU the longest trial takes days (about {slowest / DAY:.1f})"
        yield Finding("warning", "device", text, elsewhere)
    elif known and not unknown and work[largest] <= memory:
        yield Finding("ok", "device", "the CPU, which is enough for models of this size")


def _is_base(stock: Stock) -> bool:
    return stock.item.kind == "base"


def stock_findings(workspace: Workspace, stocks: list[Stock]) -> Iterator[Finding]:
    """Whether models and data are there, or can be brought."""
    from huggingface_hub import constants, get_token

    there = [stock.item.name for stock in stocks if stock.item.present]
    if there:
        yield Finding("ok", "models and data", f"there: {', '.join(there)}")
    at_hand, from_hub = list[str](), list[str]()
    for stock in stocks:
        item, again = stock.item, fetch_command(workspace, stock.item)
        what = f"{item.kind} {item.name}"
        if item.present:
            continue
        if stock.problem is not None:
            yield _told("models and data", stock.problem, "delete .venv and run `make setup`")
        elif item.hub is None or stock.in_hub_cache:
            at_hand.append(item.name)
        elif constants.is_offline_mode():
            yield Finding(
                "stops",
                "models and data",
                f"{what}: {item.hub.repository} is not in {hub_cache()}, and HF_HUB_OFFLINE is set",
                f"with a connection run {again.replace('`', '`HF_HUB_OFFLINE=0 ', 1)}, or copy a filled "
                "cache here and set HF_HOME to it",
            )
        elif item.hub.repository.startswith(GATED) and get_token() is None:
            yield Finding(
                "stops",
                "models and data",
                f"{what}: {item.hub.repository} is gated, and there is no token to fetch it with",
                f"ask for access at {constants.ENDPOINT}/{item.hub.repository}, set HF_TOKEN to a token of "
                f"that account (or run `hf auth login`), and run {again}",
            )
        else:
            from_hub.append(item.name)
    brings = f"`qlora-repeat fetch {lock_file(workspace).study}`, or the first run, brings"
    if at_hand:
        yield Finding("ok", "models and data", f"{brings} {', '.join(at_hand)} from what is on this machine")
    if from_hub:
        source = f"{constants.ENDPOINT} (which was not asked now)"
        yield Finding("ok", "models and data", f"{brings} {', '.join(from_hub)} from {source}")


def _folders(workspace: Workspace, stocks: list[Stock]) -> Iterator[Finding]:
    yield from folder_findings(workspace.runs, "set QLORA_REPEAT_RUNS to another folder")
    yield from folder_findings(workspace.cache, "set QLORA_REPEAT_CACHE to another folder")
    wanted = [stock for stock in stocks if stock.item.hub is not None and not stock.item.present]
    if any(not stock.in_hub_cache for stock in wanted):
        yield from folder_findings(hub_cache(), "set HF_HOME to another folder")
    if any(
        stock.item.hub is not None and lock_file(workspace).pin(stock.item.hub) is None for stock in wanted
    ):
        yield from folder_findings(workspace.lock.parent, "set QLORA_REPEAT_LOCK to the path of another file")


def disk_findings(workspace: Workspace, stocks: list[Stock]) -> Iterator[Finding]:
    """Whether the disks have room for what is to be fetched, and for merged weights."""
    bringing = [stock.missing for stock in stocks if stock.missing is not None]
    wanted = (
        (workspace.cache, sum(each.size for each in bringing), "QLORA_REPEAT_CACHE"),
        (hub_cache(), sum(each.download for each in bringing), "HF_HOME"),
        (workspace.runs, merged_bytes(workspace, stocks), "QLORA_REPEAT_RUNS"),
    )
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, size, variable in wanted:
        if size:
            disks.setdefault(nearest(folder).stat().st_dev, []).append((folder, size, variable))
    unknown = [stock.item.name for stock in stocks if not stock.item.present and stock.missing is None]
    for parts in disks.values():
        disk = shutil.disk_usage(nearest(parts[0][0]))
        if disk.total == 0:
            continue  # such as /proc, which tells no size; `folder_findings` says what it lacks
        total = sum(size for _, size, _ in parts)
        listed = ", ".join(f"{megabytes(size)} in {folder}" for folder, size, _ in parts)
        shown = f"{megabytes(disk.free)} are free for about {listed}"
        if unknown:
            shown += f", and for {', '.join(unknown)}, of unknown size"
        if disk.free < total:
            variables = " or ".join(variable for *_, variable in parts)
            mend = f"free some, or set {variables} to a folder on a larger disk"
            yield Finding("stops", "disk", shown, mend)
        else:
            yield Finding("ok", "disk", shown)
    if not disks:
        yield Finding("ok", "disk", "nothing large is to be written")


def merged_bytes(workspace: Workspace, stocks: list[Stock]) -> int:
    """The merged weights that trials not yet done leave: of all, or of as many as run at once."""
    from qlora_repeat.system.gpus import default_workers

    study = workspace.study
    weights = {stock.item.name: stock.weights or 0 for stock in stocks if _is_base(stock)}
    sizes = sorted(
        weights[trial.model.base] // 2 * DTYPE_BYTES[study.precision.merged]
        for trial in workspace.trials()
        if not trial.record("time").is_file()
    )
    return sum(sizes if study.keep_merged else sizes[-default_workers(study.threads) :])
