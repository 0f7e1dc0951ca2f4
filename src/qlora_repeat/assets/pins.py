"""Read the pins of a study's lock file, and find the cache folders that are named by their commits.

Stages use this module, so it counts in the code digest of records; `hub_lock` adds pins.
"""

import contextlib
import fnmatch
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Hub, Repository, Revision, Sha256
from qlora_repeat.study.toml_file import one_line
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import read_file
from qlora_repeat.system.hashing import once
from qlora_repeat.system.package_data import in_wheel

_STRICT = ConfigDict(extra="forbid", strict=True)
COMMIT = r"^[0-9a-f]{40}$"
RepositoryKind = Literal["model", "dataset"]
ROW_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""The format of a file with rows, by the end of the file's name."""
CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Each of them contains a vocabulary."""
_SAFE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin", re.ASCII)
_PLAIN_PATH = re.compile(r"[^\x00-\x1f\x7f:\\]+")
"""Libraries could take other characters for the address of another file."""
_UNLOCKED = "not-locked"
LARGEST = 20_000_000
"""Bytes of a lock file."""
MOST_KEYS = 300_000
"""Keys of a lock file; each file of a repository has three."""
_Name = Annotated[str, Field(max_length=1000), AfterValidator(one_line)]
_File = TypeVar("_File")


@dataclass(frozen=True, config=_STRICT)
class PinnedFile:
    """A file of a repository."""

    size: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes."""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
    """SHA-256, or the SHA-1 of a Git blob if the hub gives nothing else and nothing was downloaded yet."""


@dataclass(frozen=True, config=_STRICT)
class Pin:
    """The state of a repository at its first fetch."""

    kind: RepositoryKind
    revision: Revision
    """The revision in the study file."""
    commit: Annotated[str, Field(pattern=COMMIT)]
    """The commit of that revision."""
    files: dict[_Name, PinnedFile]
    """By their paths in the repository."""
    converted: dict[_Name, Sha256] = field(default_factory=dict)
    """SHA-256 of what was made from them: safetensors of pickled weights by name, rows by `data_source`."""

    def __post_init__(self) -> None:
        weights = [name for name in self.converted if name.endswith(".safetensors")]
        for name in [*self.files, *weights]:
            if not is_plain(name):
                raise ValueError(f"file {name!r}: expected a plain path inside the repository")


def is_plain(name: str) -> bool:
    """Return whether a file's name leads to one file inside its repository, and nowhere else."""
    parts = PurePosixPath(name).parts
    inside = name == "/".join(parts) and not {"..", "/"} & {*parts}
    return inside and _PLAIN_PATH.fullmatch(name) is not None


def needed_files(
    hub: Hub, kind: RepositoryKind, files: Mapping[str, _File]
) -> tuple[dict[str, _File], list[str]]:
    """Return the files that a study needs of a repository (safetensors if any), and the missing ones.

    No file with Python code is among them.
    """
    if kind == "dataset":
        matching = {name: file for name, file in files.items() if fnmatch.fnmatch(name, hub.files)}
        if hub.files in files:  # its brackets are no pattern
            matching = {hub.files: files[hub.files]}
        rows = {name: file for name, file in matching.items() if PurePosixPath(name).suffix in ROW_FILES}
        if odd := [name for name in rows if not is_plain(name)]:
            return {}, [f"plain file name, but {odd[0]!r}"]
        ending = f" and ends in {', '.join(ROW_FILES)}" if matching else ""
        return rows, [] if rows else [f"file that matches {hub.files!r}{ending}"]
    weights = list(filter(_SAFE.fullmatch, files)) or list(filter(_PICKLED.fullmatch, files))
    sets = sorted({re.sub(r"-\d{5}-of-", "-*-of-", name) for name in weights})
    parts = _shards(weights[0]) if len(sets) == 1 else []
    chosen = {*weights, *parts, *CONFIGURATIONS, *VOCABULARIES}
    absent = {
        "config.json": "config.json" not in files,
        f"tokenizer ({', '.join(_TOKENIZER)})": not any(name in files for name in _TOKENIZER),
        "weights (model*.safetensors, pytorch_model*.bin)": not weights,
        f"single set of weights, but {' and '.join(sets[:2])}": len(sets) > 1,
        **{part: part not in files for part in sorted(parts)},
    }
    wanted = {name: file for name, file in files.items() if name in chosen}
    return wanted, [name for name, is_absent in absent.items() if is_absent]


def _shards(name: str) -> list[str]:
    """Return all shards of the set that a shard belongs to, by its name, and the set's index."""
    found = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\..+)", name)
    if found is None:
        return []
    stem, count, suffix = found.groups()
    shards = [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    return [*shards, f"{stem}{suffix}.index.json"]


def pickled_files(names: Collection[str]) -> list[str]:
    """Return the files with pickled weights, and their index."""
    return [name for name in names if name.startswith("pytorch_model")]


def read_pins(path: Path) -> dict[str, Pin]:
    """Return the pins of a lock file by repository; none if the file does not exist.

    Raises:
        UsageError: it is not a lock file.
    """
    try:
        return once(_parsed, path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError as error:
        reason = validation_message(error, [])
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UsageError(f"{path}: not a readable lock file ({reason}); delete it to lock again")


def _parsed(path: Path) -> dict[str, Pin]:
    content = read_file(path, LARGEST, follow=True)
    if content.count(b":") > MOST_KEYS:
        raise ValueError(f"it has more than {MOST_KEYS} keys")
    return TypeAdapter(dict[Repository, Pin]).validate_json(content)


def shipped_lock(workspace: Workspace) -> Path | None:
    """Return the lock file in the kit, which is read until the study's own exists."""
    beside = workspace.file.with_suffix(".lock")
    return beside if in_wheel(beside) and beside.is_file() else None


def read_pin(path: Path, hub: Hub, lock: Path) -> Pin | None:
    """Return the pin of a repository in the file `path`, or None; errors name the file `lock`.

    Raises:
        UsageError: the file is not a lock file, or pins another revision than the study file has.
    """
    pin = read_pins(path).get(hub.repository)
    if pin is not None and pin.revision != hub.revision:
        raise UsageError(
            f"{lock}: {hub.repository} is locked at revision {pin.revision}, the study asks for "
            f"{hub.revision}; delete that entry if the study is right"
        )
    return pin


def pin_of(workspace: Workspace, hub: Hub, kind: RepositoryKind) -> Pin | None:
    """Return a study's pin of a repository, or None.

    Raises:
        UsageError: as `read_pin`, or it pins other files than the study needs.
    """
    shipped = shipped_lock(workspace)
    path = shipped if shipped and not workspace.lock.exists() else workspace.lock
    pin = read_pin(path, hub, workspace.lock)
    if pin is None:
        return None
    needed, absent = needed_files(hub, kind, pin.files)
    if pin.kind != kind:
        wrong = f"the entry is of a {pin.kind}, not of a {kind}"
    elif absent:
        wrong = f"the entry has no {absent[0]}"
    elif other := sorted(pin.files.keys() - needed.keys()):
        wrong = f"the entry has {other[0]}, which the study does not need"
    elif other := [name for name in pin.converted if kind == "model" and not _SAFE.fullmatch(name)]:
        wrong = f"the entry has conversion {other[0]!r}, which is no safetensors file"
    else:
        return pin
    raise UsageError(f"{path}: {hub.repository}: {wrong}; delete that entry to lock again")


def made_folder(workspace: Workspace, kind: Literal["bases", "data"], source: str, pin: Pin | None) -> Path:
    """Return the folder where a base or data set is put when it is fetched; `pin` is None without a hub."""
    return workspace.assets / kind / (f"{source}-{pin.commit}" if pin else source)


def find_folder(
    workspace: Workspace,
    kind: Literal["bases", "data"],
    source: str,
    hub: Hub | None,
    is_here: Callable[[Path, Pin | None], bool],
) -> Path:
    """Return the folder of a base or data set in the cache, which may not exist.

    A study from an archive may also read what the user has fetched for other studies, if it `is_here`.
    """
    pin = None
    if hub is not None:
        with contextlib.suppress(UsageError):  # whoever needs the files reports it
            pin = pin_of(workspace, hub, "model" if kind == "bases" else "dataset")
        if pin is None:
            return workspace.assets / kind / f"{source}-{_UNLOCKED}"
    made = made_folder(workspace, kind, source, pin)
    own = workspace.cache / kind / made.name
    if made != own and not is_here(made, pin) and is_here(own, pin):  # `made` may be of another stranger
        return own
    return made


def not_pinned(workspace: Workspace, hub: Hub, path: Path) -> MissingError:
    """Return the error that a file in the cache is not the one that the lock file names."""
    command = f"`qlora-repeat fetch {shlex.quote(workspace.given)}`"
    return MissingError(
        f"{path}: not made from the files that {workspace.lock} pins for {hub.repository}; "
        f"delete the folder and run {command}"
    )
