"""Check what would stop a study from running on this machine, for `qlora-repeat doctor`.

Nothing is fetched, no hub is asked, and nothing is left on disk. The checks that need no whole study are in
`qlora_repeat.planning.machine_checks`.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qlora_repeat.assets.architecture import base_architecture, wrong_architecture
from qlora_repeat.assets.base_models import base_bytes
from qlora_repeat.assets.benchmarks import why_not
from qlora_repeat.assets.fetch import Item, Missing, fetch_command, model_files, needed, what_it_takes
from qlora_repeat.assets.hub import cached_files, hub_cache
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.assets.inspection import inspected
from qlora_repeat.assets.layers import model_targets
from qlora_repeat.assets.pins import rows_of
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.planning import machine_checks
from qlora_repeat.planning.gpu_catalog import Gpu
from qlora_repeat.planning.machine_checks import Finding, Level, folder_findings, nearest
from qlora_repeat.planning.plan import DTYPE_BYTES, make_plan
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.study import Study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import megabytes
from qlora_repeat.system.gpus import default_workers

CPU_SECONDS = 0.55 / 134.5e6
"""Seconds of a step for each parameter, measured with SmolLM2-135M on two cores."""
GATED = ("meta-llama/",)
"""Owners of repositories that need an accepted license and a token."""


@dataclass(frozen=True)
class ItemInfo:
    """What is known about a base or data set of a study, without asking a hub."""

    item: Item
    weights: int | None = None
    """The bytes of a base in half precision; None if unknown."""
    missing: Missing | None = None
    """What fetching it needs, if known."""
    problem: KitError | None = None
    """Why it cannot be fetched."""
    in_hub_cache: bool = False
    """Whether the hub's cache has all of it."""

    @property
    def is_base(self) -> bool:
        return self.item.kind == "base"


def examine(workspace: Workspace, machine: Mapping[str, Any]) -> list[Finding]:
    """Run all checks; `machine` is the fingerprint of a process, with the variables that it was started with.

    A check that fails itself becomes a warning.
    """
    study, infos = workspace.study, list[ItemInfo]()
    kernels, threads = study.randomness.kernels, study.threads

    def find_items() -> list[Finding]:
        infos.extend([item_info(workspace, item) for item in needed(workspace)])  # all or none
        return []

    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "packages": machine_checks.package_findings,
        "torch": lambda: machine_checks.torch_findings(study.device),
        "study": find_items,
        "device": lambda: device_findings(workspace, infos, machine_checks.gpu_of_this_machine()),
        "precision": lambda: machine_checks.precision_findings(study.precision.compute, machine),
        "threads": lambda: machine_checks.thread_findings(threads, machine["usable_cores"]),
        "models and data": lambda: item_findings(workspace, infos),
        "layers": lambda: layer_findings(workspace, infos),
        "rows": lambda: row_findings(workspace, infos),
        "benchmarks": lambda: benchmark_findings(workspace),
        "folders": lambda: _folder_findings(workspace, infos),
        "disk": lambda: disk_findings(workspace, infos),
        "environment": lambda: machine_checks.environment_findings(machine["environment"], kernels),
        "checkout": lambda: machine_checks.checkout_findings(machine),
    }
    findings = []
    for name, check in checks.items():
        if infos or name not in ("device", "models and data", "layers", "rows", "disk"):
            findings += [dataclasses.replace(finding, subject=name) for finding in _run_check(check)]
    return findings


def _run_check(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except KitError as error:
        return [_finding_of(error)]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [Finding("warning", f"this check itself failed ({reason})", "check it by hand")]


def _finding_of(error: KitError) -> Finding:
    """Return an error as a finding. The text of most errors ends with advice."""
    text, _, advice = " ".join(str(error).split()).partition("; ")
    return Finding("stops", text, advice or "correct that, and call doctor again")


def item_info(workspace: Workspace, item: Item) -> ItemInfo:
    """Return what is known about a base or data set.

    Raises:
        UsageError: the lock file cannot be read, or contradicts the study.
    """
    is_base = item.kind == "base"
    if item.present:
        return ItemInfo(item, base_bytes(workspace, item.name) if is_base else None)
    if item.hub is None or lock_file(workspace).pin(item.hub) is not None:
        try:
            missing = what_it_takes(workspace, item)  # asks no hub
        except MissingError as error:
            return ItemInfo(item, problem=error)
        weights = missing.size
        own = workspace.study.bases[item.name].folder if is_base else None
        if own is not None:
            weights = _weights_size({name: path.stat().st_size for name, path in model_files(own).items()})
        if missing.pin is not None:
            weights = _weights_size({name: file.size for name, file in missing.pin.files.items()})
        return ItemInfo(item, weights if is_base else None, missing, in_hub_cache=missing.download == 0)
    try:
        found = cached_files(item.hub, "model" if is_base else "dataset", fetch_command(workspace, item))
    except MissingError:  # a part of it, so the rest must be fetched
        found = None
    if found is not None:
        sizes = {name: path.stat().st_size for name, path in found[1].items()}
        new = sum(size for name, size in sizes.items() if not is_base or name.endswith(".bin"))
        missing = Missing(item, item.hub.repository, new)
        return ItemInfo(item, _weights_size(sizes), missing, in_hub_cache=True)
    if not is_base:
        size = 1000 * (rows_of(workspace, item.name) or 1000)  # about the size of the paper's instructions
        return ItemInfo(item, None, Missing(item, item.hub.repository, size, download=size))
    estimate = _size_by_architecture(workspace.study, item.name)
    missing_base = Missing(item, item.hub.repository, 0, download=estimate) if estimate else None
    return ItemInfo(item, estimate, missing_base)


def _weights_size(sizes: Mapping[str, int]) -> int:
    return sum(size for name, size in sizes.items() if name.endswith((".safetensors", ".bin")))


def _size_by_architecture(study: Study, base: str) -> int | None:
    """Return a base's bytes in half precision, from the architecture in the study."""
    architecture = study.bases[base].architecture
    if architecture is None:
        return None
    from qlora_repeat.planning.memory_estimate import model_config, parameter_count

    return 2 * parameter_count(model_config(architecture, base))


def device_findings(
    workspace: Workspace, infos: list[ItemInfo], gpu: tuple[Gpu, int] | None
) -> Iterator[Finding]:
    """Check that a device has enough memory and speed; `gpu` is a GPU with its free bytes."""
    if gpu is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        known = workspace.study
        data = {
            name: dataclasses.replace(each, rows=rows_of(workspace, name))
            for name, each in known.data.items()
        }
        yield from cpu_findings(dataclasses.replace(known, data=data), infos, memory)
        return
    device, free = gpu
    try:
        plan = make_plan(workspace, device, 1, [])
    except MissingError:
        names = ", ".join(info.item.name for info in infos if info.is_base and not info.item.present)
        text = f"{device.name}: whether its memory is enough is unknown until {names} is fetched"
        advice = f"run `{workspace.command('fetch')}`, then `{workspace.command('doctor')}` again"
        yield Finding("warning", text, advice)
        return
    if problems := plan.too_large():
        advice = f"use a larger GPU (`{workspace.command('plan')}` compares them)"
        yield from (Finding("stops", problem, advice) for problem in problems)
        return
    peak = max(model.peak[0] for model in plan.models)
    shown = f"{peak / 1e9:.1f} GB are needed of the {device.memory / 1e9:.1f} GB of {device.name}"
    if free >= peak:
        yield Finding("ok", shown)
        return
    text = f"{shown}, and {free / 1e9:.1f} GB are free because other processes use it"
    advice = "wait for them (`nvidia-smi` lists them), or choose another GPU with CUDA_VISIBLE_DEVICES"
    yield Finding("warning", text, advice)


def cpu_findings(study: Study, infos: list[ItemInfo], memory: int) -> Iterator[Finding]:
    """Check that a CPU with `memory` bytes can run a study.

    The kit refuses no model on a CPU, so the size decides: small models and the miniatures of a rehearsal
    run. Too little memory stops a study, and so does more than a week for one trial: most likely a job got no
    GPU by mistake, and should end at once.
    """
    weights = {info.item.name: info.weights for info in infos if info.is_base}
    unknown = [name for name, size in weights.items() if size is None]
    if unknown:
        text = f"there is no GPU, and the size of {', '.join(unknown)} is unknown until it is fetched"
        advice = "fetch the study and call doctor again, or use a machine with a GPU"
        yield Finding("warning", f"{text}: only small models run on a CPU", advice)
    parameters = {name: size // 2 for name, size in weights.items() if size is not None}
    if not parameters:
        return
    seconds = [
        parameters.get(model.base, 0)
        * CPU_SECONDS
        * model.training.total_steps(train_examples(study.data[model.data]))
        for model in study.models.values()
        if study.data[model.data].rows is not None
    ]
    days = max(seconds, default=0) / (24 * 3600)
    # Testing holds the merged model in the precision of the computation.
    largest = max(parameters, key=lambda name: parameters[name])
    size = parameters[largest] * DTYPE_BYTES[study.precision.compute]
    advice = "use a machine with a GPU"
    if any(info.item.hub is not None for info in infos):
        advice += "; `make rehearsal` runs the paper's study with miniatures on a CPU"
    if size > memory:
        text = f"there is no GPU, and base {largest} needs {size / 1e9:.3g} GB of memory"
        yield Finding("stops", f"{text}, but there are {memory / 1e9:.3g}", advice)
    if days > 7:
        text = f"there is no GPU, and on a CPU the longest trial would take about {days:.0f} days"
        yield Finding("stops", text, advice)
    elif days > 1:
        yield Finding("warning", f"on a CPU the longest trial takes days (about {days:.1f})", advice)
    elif not unknown and size <= memory:
        yield Finding("ok", "the CPU, which is enough for models of this size")


def item_findings(workspace: Workspace, infos: list[ItemInfo]) -> Iterator[Finding]:
    """Check that models and data are in the cache, or can be fetched."""
    from huggingface_hub import constants, get_token

    if present := [info.item.name for info in infos if info.item.present]:
        yield Finding("ok", f"in the cache: {', '.join(present)}")
    for base in (info.item.name for info in infos if info.is_base and info.item.present):
        if wrong := wrong_architecture(workspace, base):
            advice = f"correct [bases.{base}.architecture]; a plan before the fetch was wrong, trials are not"
            yield Finding("warning", wrong, advice)
    local, from_hub = list[str](), list[str]()
    for info in (info for info in infos if not info.item.present):
        item, command = info.item, fetch_command(workspace, info.item)
        if info.problem is not None:
            yield _finding_of(info.problem)
        elif item.hub is None or info.in_hub_cache:
            local.append(item.name)
        elif constants.is_offline_mode():
            where = f"{item.kind} {item.name}: {item.hub.repository} is not in {hub_cache()}"
            online = command.replace("`", "`HF_HUB_OFFLINE=0 ", 1)
            advice = f"with a connection run {online}, or copy a filled cache here and set HF_HOME to it"
            yield Finding("stops", f"{where}, and HF_HUB_OFFLINE is set", advice)
        elif item.hub.repository.startswith(GATED) and get_token() is None:
            text = f"{item.kind} {item.name}: {item.hub.repository} is gated, and there is no token for it"
            page = f"{constants.ENDPOINT}/{item.hub.repository}"
            advice = f"ask for access at {page}, set HF_TOKEN to a token of that account, and run {command}"
            yield Finding("stops", text, advice)
        else:
            from_hub.append(item.name)
    fetches = f"`{workspace.command('fetch')}`, or the first run, fetches"
    if local:
        yield Finding("ok", f"{fetches} {', '.join(local)} from this machine")
    if from_hub:
        yield Finding("ok", f"{fetches} {', '.join(from_hub)} from {constants.ENDPOINT} (not asked now)")


def row_findings(workspace: Workspace, infos: list[ItemInfo]) -> Iterator[Finding]:
    """Report what is in the rows of each model whose data and base are in the cache."""
    present = {(info.item.kind, info.item.name) for info in infos if info.item.present}
    for name, model in workspace.study.models.items():
        if present >= {("base", model.base), ("data", model.data)}:
            found = inspected(workspace, name, keep=False)
            yield Finding("ok", f"model {name}: {found.lengths}")
            for level, lines in (("stops", found.stops), ("warning", found.warnings)):
                for line in lines:
                    text, _, advice = line.partition("; ")
                    yield Finding(cast(Level, level), f"model {name}: {text}", advice)


def layer_findings(workspace: Workspace, infos: list[ItemInfo]) -> Iterator[Finding]:
    """Check that adapters can be merged into the target modules, and which share of a base is in 4 bits.

    Of a base that was not fetched, only the names of the study's architecture can be checked.
    """
    from qlora_repeat.planning.memory_estimate import model_config, quantized_skeleton
    from qlora_repeat.stages.dequantize import count_weights
    from qlora_repeat.stages.finetune import lora_config
    from qlora_repeat.stages.mergeable import check_mergeable

    study, fetched = workspace.study, {info.item.name for info in infos if info.is_base and info.item.present}
    shares, checked = dict[str, Finding](), list[str]()
    for name, model in study.models.items():
        if model.base not in fetched and study.bases[model.base].architecture is None:
            continue
        try:
            config = model_config(base_architecture(workspace, model.base), model.base)
            base = quantized_skeleton(study, config)
            counts = count_weights(base)
            model_targets(workspace, name, base)
            if model.base in fetched:
                check_mergeable(workspace, name, lora_config(study, ["layer"]))
                checked.append(name)
        except KitError as error:
            yield _finding_of(error)
            continue
        if not study.quantization.in_4_bits:
            how = "in 8 bits" if study.quantization.type == "int8" else "not quantized"
            shares[model.base] = Finding("ok", f"base {model.base}: its layers are {how}")
        elif warning := counts.warning():
            advice = "expect the memory that `plan` shows, or use another base"
            shares[model.base] = Finding("warning", f"base {model.base}: {warning}", advice)
        else:
            text = f"base {model.base}: {100 * counts.share:.0f} % of its weights are in 4 bits"
            shares[model.base] = Finding("ok", f"{text}, the rest are mostly embeddings")
    yield from shares.values()
    if checked:
        yield Finding("ok", f"adapters can be merged: {', '.join(checked)}")


def benchmark_findings(workspace: Workspace) -> Iterator[Finding]:
    """Yield whether the study's benchmarks can run here, if it names any; their data are not looked for."""
    if tasks := workspace.study.evaluation.lm_eval:
        reason = why_not(workspace)
        yield _finding_of(UsageError(reason)) if reason else Finding("ok", f"{len(tasks)} named")


def _folder_findings(workspace: Workspace, infos: list[ItemInfo]) -> Iterator[Finding]:
    yield from folder_findings(workspace.runs, "set QLORA_REPEAT_RUNS to another folder")
    yield from folder_findings(workspace.cache, "set QLORA_REPEAT_CACHE to another folder")
    wanted = [info for info in infos if info.item.hub is not None and not info.item.present]
    if any(not info.in_hub_cache for info in wanted):
        yield from folder_findings(hub_cache(), "set HF_HOME to another folder")
    lock = lock_file(workspace)
    if any(info.item.hub is not None and lock.pin(info.item.hub) is None for info in wanted):
        yield from folder_findings(workspace.lock.parent, "set QLORA_REPEAT_LOCK to the path of another file")


def disk_findings(workspace: Workspace, infos: list[ItemInfo]) -> Iterator[Finding]:
    """Check that the disks have space for what must be fetched, and for merged weights."""
    missing = [info.missing for info in infos if info.missing is not None]
    wanted = (
        (workspace.cache, sum(each.size for each in missing), "QLORA_REPEAT_CACHE"),
        (hub_cache(), sum(each.download for each in missing), "HF_HOME"),
        (workspace.runs, merged_bytes(workspace, infos), "QLORA_REPEAT_RUNS"),
    )
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, size, variable in wanted:
        if size:
            disks.setdefault(nearest(folder).stat().st_dev, []).append((folder, size, variable))
    unknown = [info.item.name for info in infos if not info.item.present and info.missing is None]
    for parts in disks.values():
        disk = shutil.disk_usage(nearest(parts[0][0]))
        if disk.total == 0:
            continue  # such as /proc, which has no size; `folder_findings` reports its problem
        listed = ", ".join(f"{megabytes(size)} in {folder}" for folder, size, _ in parts)
        shown = f"{megabytes(disk.free)} are free for about {listed}"
        if unknown:
            shown += f", and for {', '.join(unknown)}, of unknown size"
        if disk.free < sum(size for _, size, _ in parts):
            variables = " or ".join(variable for *_, variable in parts)
            yield Finding("stops", shown, f"free some space, or set {variables} to a folder on a larger disk")
        else:
            yield Finding("ok", shown)
    if not disks:
        yield Finding("ok", "nothing large will be written")


def merged_bytes(workspace: Workspace, infos: list[ItemInfo]) -> int:
    """Return the bytes of merged weights of unfinished trials: of all, or of as many as run at once."""
    study = workspace.study
    weights = {info.item.name: info.weights or 0 for info in infos if info.is_base}
    sizes = sorted(
        weights[trial.model.base] // 2 * DTYPE_BYTES[study.precision.merged]
        for trial in workspace.trials()
        if not trial.record("time").is_file()
    )
    return sum(sizes if study.keep_merged else sizes[-default_workers(study.threads) :])
