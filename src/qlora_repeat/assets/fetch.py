"""Fetch everything that a study needs into the cache, and verify it.

It is separate from the modules that use the cache, because those count in the code digest of a record.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.assets.architecture import wrong_architecture
from qlora_repeat.assets.base_models import (
    SOURCE,
    base_folder,
    base_is_fetched,
    base_source,
    check_base,
    lacks_conversion,
)
from qlora_repeat.assets.configuration import refuse_code
from qlora_repeat.assets.dataset_builders import FORTUNES_PACKAGE, corpus_rows, file_rows, json_lines
from qlora_repeat.assets.datasets import (
    ROWS,
    data_folder,
    data_is_fetched,
    data_source,
    read_rows,
    rows_digest,
    study_prompts,
)
from qlora_repeat.assets.hub import (
    absent_files,
    download,
    hub_cache,
    require_access,
    resolve,
    snapshot_folder,
)
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.assets.inspection import require_sound
from qlora_repeat.assets.layers import base_skeleton, check_layers, model_targets
from qlora_repeat.assets.package_files import locate, package_folder, verified
from qlora_repeat.assets.pins import (
    UNLOCKED,
    Found,
    Pin,
    PinnedFile,
    RepositoryKind,
    folder_digest,
    found_of,
    made_folder,
    matching_names,
    needed_files,
    pickled_files,
    pin_of,
    rows_of,
)
from qlora_repeat.assets.pretrain import VOCABULARY, pretrain
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Folder, Hub, PackageFile
from qlora_repeat.study.randomness import draw_seed
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.environment import clear_environment
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import (
    discard,
    megabytes,
    new_folder,
    require_space,
    symlink,
    write_json,
    write_text,
)
from qlora_repeat.system.hashing import MANIFEST, folder_digests, known_digests, text_digest
from qlora_repeat.system.safetensors_file import check_weights


@dataclass(frozen=True)
class Item:
    """A base or data set that a study needs in the cache."""

    kind: Literal["base", "data"]
    name: str
    hub: Hub | None
    """Its source, if that is a hub."""
    folder: Path
    source: str
    """The name of the folder, without the commit."""
    present: bool

    @property
    def folder_kind(self) -> Literal["bases", "data"]:
        """The folder of the cache that it is in."""
        return "bases" if self.kind == "base" else "data"

    @property
    def repository_kind(self) -> RepositoryKind:
        """What its repository is on a hub."""
        return "model" if self.kind == "base" else "dataset"


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
        MissingError: the cache has something else than the study or its lock file asks for.
        UsageError: the study has no such model, or the lock file contradicts the study.
    """
    study = workspace.study
    for model in models:
        if model not in study.models:
            raise UsageError(f"model {model!r}: study {study.name} has {', '.join(study.models)}")
    wanted = [study.models[model] for model in models or study.models]
    items = []
    for name in (name for name in study.data if name in {model.data for model in wanted}):
        folder, source = data_folder(workspace, name), data_source(workspace, name)
        present = data_is_fetched(workspace, name)
        items.append(Item("data", name, study.data[name].hub, folder, source, present))
    for name in (name for name in study.bases if name in {model.base for model in wanted}):
        folder, source = base_folder(workspace, name), base_source(workspace, name)
        present = base_is_fetched(workspace, name)
        items.append(Item("base", name, study.bases[name].hub, folder, source, present))
    return items


def fetch(workspace: Workspace, tell: Callable[[str], None], models: Collection[str] = ()) -> None:
    """Fetch what is missing and verify the rest. After an interruption, the next call resumes.

    Raises:
        MissingError: something cannot be fetched or has unexpected bytes, or a disk is too small.
        UsageError: a prompt of the study matches no row of its data, rows would make numbers wrong, no
            adapter can be merged into a target module, or the lock file contradicts the study.
        BusyError: another process is fetching into this cache.
    """
    clear_environment()  # some bases are pretrained here
    items = needed(workspace, models)
    for folder in earlier_folders(workspace):
        tell(outdated(folder))
    for item in (item for item in items if item.present):
        _check(workspace, item)
        check_own_files(workspace, item)
        size = sum(file.stat().st_size for file in item.folder.rglob("*") if file.is_file())
        tell(f"{item.kind} {item.name}: in the cache, verified ({megabytes(size)})")
    if not all(item.present for item in items):
        with exclusive(workspace.assets / "fetch.lock", f"the cache {workspace.assets}"):
            # Another process may have fetched some in the meantime.
            items = needed(workspace, models)
            _fetch_all(workspace, [item for item in items if not item.present], tell, models)
    for item in (item for item in items if item.kind == "base"):
        if wrong := wrong_architecture(workspace, item.name):
            tell(f"{wrong}; `plan` uses config.json")
    for model in models or workspace.study.models:
        _check_prompts(workspace, model)
        check_layers(workspace, model)
        found = require_sound(workspace, model)
        for line in (found.lengths, *found.warnings):
            tell(f"model {model}: {line}")


def earlier_folders(workspace: Workspace) -> list[Path]:
    """Return the folders that an earlier version made from repositories, without the commit in the name."""
    study, cache = workspace.study, workspace.assets
    bases = [cache / "bases" / base_source(workspace, name) for name, base in study.bases.items() if base.hub]
    data = [cache / "data" / data_source(workspace, name) for name, data in study.data.items() if data.hub]
    return [folder for folder in bases + data if folder.is_dir()]


def outdated(folder: Path) -> str:
    """Return a line on a folder of an earlier version."""
    return (
        f"{folder}: not used, because its name lacks the commit (earlier version); fetch again and delete it"
    )


def _fetch_all(
    workspace: Workspace, items: list[Item], tell: Callable[[str], None], models: Collection[str]
) -> None:
    if not all(_is_locked(workspace, item) for item in items):
        lock_file(workspace).require_writable()
    missing = [what_it_takes(workspace, item) for item in items]
    for each in missing:
        about = megabytes(each.size + each.download)
        tell(f"{each.item.kind} {each.item.name}: missing; {each.origin}; about {about}")
    size, from_hub = sum(each.size for each in missing), sum(each.download for each in missing)
    if from_hub:
        require_space(hub_cache(), from_hub, "HF_HOME")
        if workspace.assets.stat().st_dev == hub_cache().stat().st_dev:
            size += from_hub
    require_space(workspace.assets, size, "QLORA_REPEAT_CACHE")
    for each in missing:
        if each.item.hub is not None and each.pin is not None:
            require_access(each.item.hub, each.pin, fetch_command(workspace, each.item))
    for each in missing:
        _fetch_item(workspace, each, models or workspace.study.models)
        tell(f"{each.item.kind} {each.item.name}: fetched, verified")


def _is_locked(workspace: Workspace, item: Item) -> bool:
    """Return whether the study and its lock file say which files and rows an item has."""
    if item.source.endswith(UNLOCKED):
        return False
    if item.hub is None:
        return True
    pin = pin_of(workspace, item.hub, item.repository_kind)
    if pin is None:
        return False
    return not lacks_conversion(pin) if item.kind == "base" else item.source in pin.converted


def what_it_takes(workspace: Workspace, item: Item) -> Missing:
    """Return what fetching an item needs. A hub is asked, unless the lock file has the answer.

    Raises:
        MissingError: it cannot be fetched, because a package is not installed or the hub refuses it.
        UsageError: the lock file contradicts the study.
    """
    if item.hub is not None:
        command = fetch_command(workspace, item)
        kind = item.repository_kind
        pin = pin_of(workspace, item.hub, kind) or resolve(item.hub, kind, command)
        copied = [name for name in pin.files if item.kind == "data" or name.endswith(".bin")]
        size, missing = (
            sum(pin.files[name].size for name in names) for names in (copied, absent_files(item.hub, pin))
        )
        return Missing(item, f"{item.hub.repository} at {pin.commit[:12]} from the hub", size, pin, missing)
    if item.kind == "data":
        data, rows = workspace.study.data[item.name], rows_of(workspace, item.name)
        if data.file is not None:
            size = locate(data.file).stat().st_size
            return Missing(item, f"{f'{rows} ' if rows else ''}rows from {data.file.origin}", size)
        package = FORTUNES_PACKAGE if data.source == "fortunes" else "reasoning-gym"
        if data.source == "fortunes":
            package_folder(package, "fortune")
        return Missing(item, f"{rows} rows from package {package}", 250 * (rows or 0))
    base = workspace.study.bases[item.name]
    if base.folder is not None:
        model_files(base.folder)
        return Missing(item, f"links to {base.folder.path}", 0)
    if base.gguf is not None:
        # float16 needs about three times the space of 4 bits with scales.
        return Missing(item, f"{base.gguf.origin}, converted", 3 * locate(base.gguf).stat().st_size)
    assert base.tokenizer is not None and base.pretraining is not None, "checked by the study"
    locate(base.tokenizer)
    width, layers = base.pretraining.hidden_size, base.pretraining.layers
    origin = f"pretrained here (minutes) for the tokenizer of {base.tokenizer.origin}"
    return Missing(item, origin, 2 * (2 * VOCABULARY * width + 12 * layers * width**2))


def _fetch_item(workspace: Workspace, missing: Missing, models: Collection[str]) -> None:
    item, pin = missing.item, missing.pin
    _refuse_unknown_files(workspace, item)
    folder = made_folder(workspace, item.folder_kind, item.source, pin)
    for left in folder.parent.glob(f".{folder.name}.*"):  # from a killed fetch
        discard(left)
    command = fetch_command(workspace, item)
    if item.hub is not None and pin is not None:
        if item.kind == "base":  # before gigabytes of weights are downloaded
            small = {name: file for name, file in pin.files.items() if name.endswith(".json")}
            download(item.hub, replace(pin, files=small), command)
            snapshot = snapshot_folder(item.hub, pin)
            refuse_code(snapshot, small, item.hub.repository)
            _check_target_names(workspace, item.name, snapshot, models)
        pin = download(item.hub, pin, command)
    if item.kind == "data":
        pin = prepare_data(workspace, item.name, pin)
    else:
        pin = fetch_base(workspace, item.name, pin)
    if item.hub is not None and pin is not None:
        locked = lock_file(workspace).add(item.hub, pin)
        if (locked.commit, locked.files) != (pin.commit, pin.files):
            raise MissingError(
                f"{workspace.lock}: pins other files for {item.hub.repository} than came; run {command}"
            )
    if item.kind == "data":
        for name, model in workspace.study.models.items():
            if model.data == item.name:
                _check_prompts(workspace, name)  # before any base is downloaded
    _check(workspace, item)


def _own_files(workspace: Workspace, item: Item) -> dict[str, PackageFile]:
    """Return the files of the user or of packages that an item is made of, by key."""
    if item.kind == "data":
        data = workspace.study.data[item.name]
        files = {"file": data.file, "test_file": data.test_file}
    else:
        base = workspace.study.bases[item.name]
        files = {"gguf": base.gguf, "tokenizer": base.tokenizer}
    return {key: file for key, file in files.items() if file is not None}


def _refuse_unknown_files(workspace: Workspace, item: Item) -> None:
    """Raise UsageError if a stranger's study names a file of this machine whose bytes it does not know."""
    if not workspace.from_archive:
        return
    folder = None if item.kind == "data" else workspace.study.bases[item.name].folder
    paths = [] if folder is None or folder.sha256 else [folder.path]
    paths += [
        file.file for file in _own_files(workspace, item).values() if not file.package and not file.sha256
    ]
    inside = workspace.file.resolve().parent.parent
    for path in paths if item.source.endswith(UNLOCKED) else ():
        if not Path(path).resolve().is_relative_to(inside):
            raise UsageError(
                f"{path}: {item.kind} {item.name} of a study from an archive is outside of the archive, and "
                "neither the study nor its lock file has its sha256; add it to the study if you trust it"
            )


def check_own_files(workspace: Workspace, item: Item) -> None:
    """Check that the user's files, if they are there, are still those of which an item in the cache was made.

    Raises:
        MissingError: the bytes of one have changed since the first fetch.
    """
    kind = item.folder_kind
    found = found_of(workspace, kind, item.name)
    digests = {
        Path(file.file): found.files[key].digest
        for key, file in _own_files(workspace, item).items()
        if file.package is None and not file.sha256 and key in found.files
    }
    folder = workspace.study.bases[item.name].folder if item.kind == "base" else None
    if folder is not None and not folder.sha256:
        digests |= {Path(folder.path) / name: file.digest for name, file in found.files.items()}
    present = known_digests(path for path in digests if path.is_file())
    for path, digest in present.items():
        if digest != digests[path]:
            raise _other_bytes(workspace, f"{kind}.{item.name}", path, digest, digests[path])


def _other_bytes(workspace: Workspace, key: str, path: Path, found: str, locked: str) -> MissingError:
    return MissingError(
        f"{path}: SHA-256 is {found}, {workspace.lock} has {locked}; if this is the right file, delete the "
        f"entry {key} there"
    )


def _check_target_names(workspace: Workspace, base: str, folder: Path, models: Collection[str]) -> None:
    """Raise an error for a target module that a base does not have, from its configuration in a folder."""
    model = base_skeleton(folder)
    for name in models:
        if workspace.study.models[name].base == base:
            model_targets(workspace, name, model)


def _check_prompts(workspace: Workspace, model: str) -> None:
    """Raise an error for a prompt that no row begins with, in any split."""
    study_prompts(workspace, model, draw_seed(workspace.study.randomness.split, "split", 1))


def _check(workspace: Workspace, item: Item) -> None:
    """Verify an item's bytes, and that they are those of the lock file if it comes from a hub."""
    if item.kind == "base":
        check_base(workspace, item.name)
    else:
        read_rows(workspace, item.name)


def fetch_command(workspace: Workspace, item: Item) -> str:
    """Return the command that fetches an item, and what else its model needs."""
    for name, model in workspace.study.models.items():
        if item.name == (model.base if item.kind == "base" else model.data):
            return f"`{workspace.command('fetch', '--only', name)}`"
    return f"`{workspace.command('fetch')}`"


def fetch_base(workspace: Workspace, name: str, pin: Pin | None = None) -> Pin | None:
    """Put a base model into the cache, from a hub (`pin`), from a GGUF file, or by pretraining.

    Returns:
        The pin with the digests of converted weights. It is also in ``source.json`` of a base from a hub.

    Raises:
        MissingError: a package is missing, a file has unexpected bytes, or the weights of a repository are
            invalid or contain other pickled objects than tensors.
    """
    study, base = workspace.study, workspace.study.bases[name]
    paths = _lock_base(workspace, name)
    if base.hub is None and base_is_fetched(workspace, name):  # which was unknown while a digest was
        return pin
    with new_folder(made_folder(workspace, "bases", base_source(workspace, name), pin)) as folder:
        if base.hub is not None and pin is not None:
            pin = _from_hub(base.hub, pin, folder)
        elif base.folder is not None:
            _link_model(base.folder, paths, folder)
        else:
            model, tokenizer = _from_gguf(paths["gguf"]) if base.gguf else pretrain(study, base)
            save_plain(model, folder)
            tokenizer.save_pretrained(folder)
        write_json(folder / MANIFEST, folder_digests(folder))
    return pin


def _lock_base(workspace: Workspace, name: str) -> dict[str, Path]:
    """Verify the files that a base is made of, lock what the study does not say of them; return their paths.

    Raises:
        MissingError: a file is missing, or has other bytes than the study or its lock file says.
    """
    base, locked = workspace.study.bases[name], found_of(workspace, "bases", name)
    if base.folder is not None:
        paths = model_files(base.folder)
        files = _hashed(paths)
        digest = folder_digest(Found(locked.asked, files))
        if digest != (base.folder.sha256 or digest):
            raise MissingError(
                f"{base.folder.path}: the digest of its files is {digest}, the study expects "
                f"{base.folder.sha256}; correct sha256 if this is the right folder"
            )
    else:
        given = {key: file for key, file in (("gguf", base.gguf), ("tokenizer", base.tokenizer)) if file}
        paths = {key: verified(file) for key, file in given.items()}
        files = _hashed({key: path for key, path in paths.items() if not given[key].sha256})
    if not files or (base.folder is not None and base.folder.sha256):
        return paths
    for key in {**files, **locked.files} if locked.files else ():
        now, before = ((each[key].digest if key in each else "none") for each in (files, locked.files))
        if now != before:
            path = paths.get(key, Path(base.folder.path if base.folder else "", key))
            raise _other_bytes(workspace, f"bases.{name}", path, now, before)
    lock_file(workspace).add_found(f"bases.{name}", replace(locked, files=files))
    return paths


def _hashed(paths: Mapping[str, Path]) -> dict[str, PinnedFile]:
    digests = known_digests(paths.values())
    return {name: PinnedFile(path.stat().st_size, digests[path]) for name, path in paths.items()}


def model_files(folder: Folder) -> dict[str, Path]:
    """Return the files of a model in a folder of the user, by name: those that a hub would have.

    Raises:
        MissingError: there is no such folder, or it lacks files.
    """
    path = Path(folder.path)
    if not path.is_dir() or path.resolve().parts[1:2] in (("proc",), ("sys",)):
        raise MissingError(f"{folder.path}: there is no such folder; the study file names it")
    names = {each.name: each for each in sorted(path.iterdir()) if each.is_file()}
    files, absent = needed_files(None, "model", names)
    if absent:
        raise MissingError(f"{folder.path}: it has no {' and no '.join(absent)}; name a model's folder")
    if pickled := pickled_files(files):
        raise MissingError(
            f"{folder.path}: {pickled[0]} is a pickle, which could run code; save the model as safetensors "
            "(save_pretrained of transformers does)"
        )
    return files


def _link_model(source: Folder, paths: Mapping[str, Path], folder: Path) -> None:
    """Link to the files of a model in a folder of the user, after checking them."""
    refuse_code(Path(source.path), paths, source.path)
    for name, path in paths.items():
        symlink(folder / name, str(path.resolve()))
    try:
        check_weights(folder)
    except MissingError as error:
        reason = str(error).replace(f"{folder}/", "").rpartition("; ")[0]
        raise MissingError(f"{source.path}: {reason}; save the model again") from None


def _from_hub(hub: Hub, pin: Pin, folder: Path) -> Pin:
    """Link to a repository's files in the hub's cache, convert pickled weights, and return the whole pin."""
    snapshot, pickled = snapshot_folder(hub, pin), pickled_files(pin.files)
    for name in pin.files:
        if name not in pickled:
            target = (snapshot / name).resolve()
            symlink(folder / name, os.path.relpath(target, folder.parent.resolve() / folder.name))
    if pickled:
        module = "qlora_repeat.assets.convert_pickle"
        command = [sys.executable, "-P", "-m", module, str(snapshot), str(folder), *pickled]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            killed = f"exit code {done.returncode}; it needs memory for twice the largest file"
            reason = (done.stderr.strip().splitlines() or [killed])[-1]
            raise MissingError(f"{hub.repository}: its pickled weights cannot be converted ({reason})")
        made = known_digests(sorted(folder.glob("model*.safetensors")))
        converted = {path.name: digest for path, digest in made.items()}
        if pin.converted and converted != pin.converted:
            raise MissingError(
                f"{hub.repository}: its pickled weights convert to other bytes than locked; "
                "install the locked version of torch"
            )
        pin = replace(pin, converted=converted)
    try:
        check_weights(folder)
    except MissingError as error:
        reason = str(error).replace(f"{folder}/", "").rpartition("; ")[0]
        raise MissingError(
            f"{hub.repository}: {reason}; the study file must name another revision of it"
        ) from None
    write_json(folder / SOURCE, asdict(pin))
    return pin


def _from_gguf(path: Path) -> tuple[Any, Any]:
    """Return a GGUF model in float16, which keeps 11 bits of each 4-bit value, and its tokenizer.

    Raises:
        MissingError: it is not such a model; libraries have many errors for that.
    """
    try:
        return _read_gguf(path)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MissingError(
            f"{path}: cannot be read as a GGUF model ({reason}); the study file must name another file"
        ) from None


def _read_gguf(path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    return model.to(torch.float16), tokenizer


def save_plain(model: Any, folder: Path) -> None:
    """Save a model for plain transformers, without a path of this machine."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)


def prepare_data(workspace: Workspace, name: str, pin: Pin | None = None) -> Pin | None:
    """Put rows from a hub's cache (`pin`), a file or a package into the cache, after checking them.

    Returns:
        The pin with the digest of the rows.

    Raises:
        MissingError: a package or file is missing, or the rows are not the expected ones.
        UsageError: the files lack a column of the study.
    """
    study, locked = workspace.study, found_of(workspace, "data", name)
    data = replace(study.data[name], rows=rows_of(workspace, name))
    files = dict[str, PinnedFile]()
    tests = None
    if data.hub is not None and pin is not None:
        folder, names = snapshot_folder(data.hub, pin), sorted(pin.files)
        tested = matching_names(data.hub.test_files, names) if data.hub.test_files else []
        rows = file_rows(data, [folder / each for each in names if each not in tested])
        if tested:
            tests = file_rows(replace(data, rows=None), [folder / each for each in tested])
    else:
        own = {"file": data.file, "test_file": data.test_file}
        paths = {key: locate(file) for key, file in own.items() if file is not None and not file.sha256}
        files = _hashed(paths)
        for key in files.keys() & locked.files.keys():
            now, before = files[key].digest, locked.files[key].digest
            if now != before:
                raise _other_bytes(workspace, f"data.{name}", paths[key], now, before)
        rows = corpus_rows(data)
        if data.test_file is not None:
            tests = file_rows(replace(data, rows=None), [verified(data.test_file)])
    if tests is not None and not (rows and tests):
        raise UsageError(f"data {name}: its {'test ' if rows else ''}file has no rows")
    text = json_lines(rows) + ("" if tests is None else "\n" + json_lines(tests))
    found = text_digest(text)
    _lock_rows(workspace, name, files, len(rows), found)
    source = data_source(workspace, name)
    expected = rows_digest(workspace, name, pin, found) or found
    if found != expected:
        who = f"study {study.name}" if study.data[name].sha256 else "the lock file"
        raise MissingError(
            f"data {name}: the rows' SHA-256 is {found}, {who} expects {expected}; "
            "install the locked version of the package that they come from"
        )
    for model, used in study.models.items():
        if used.data == name:
            try:
                study.check_examples(model, len(rows))
            except ValueError as error:
                raise UsageError(str(error)) from None
    with new_folder(made_folder(workspace, "data", source, pin)) as folder:
        write_text(folder / ROWS, text)
        write_json(folder / MANIFEST, {ROWS: found})
    return replace(pin, converted=pin.converted | {source: found}) if pin else None


def _lock_rows(workspace: Workspace, name: str, files: dict[str, PinnedFile], rows: int, sha256: str) -> None:
    """Lock what the study does not say of a data set, unless the lock file has it."""
    data, locked = workspace.study.data[name], found_of(workspace, "data", name)
    is_generated = data.hub is None and data.file is None
    found = Found(
        locked.asked,
        files,
        None if data.rows else rows,
        sha256 if is_generated and not data.sha256 else None,
    )
    if found != Found(locked.asked) and locked == Found(locked.asked):
        lock_file(workspace).add_found(f"data.{name}", found)
