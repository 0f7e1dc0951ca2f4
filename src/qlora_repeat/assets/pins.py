"""Read the pins of a study's lock file, and find the cache folders that are named by their commits.

Stages use this module, so it counts in the code digest of records; `hub_lock` adds pins.
"""

import contextlib
import fnmatch
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Base, Data, Hub, PackageFile, Revision, Rows, Sha256
from qlora_repeat.study.toml_file import one_line
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import read_file
from qlora_repeat.system.hashing import json_digest, once
from qlora_repeat.system.package_data import in_wheel
from qlora_repeat.system.typed_json import worded

_STRICT = ConfigDict(extra="forbid", strict=True)
COMMIT = worded(r"^[0-9a-f]{40}$", "the 40 hexadecimal digits of a commit")
RepositoryKind = Literal["model", "dataset"]
ROW_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""The format of a file with rows, by the end of the file's name."""
CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers keeps it since version 4.52; before, in tokenizer_config.json."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Each of them contains a vocabulary."""
_SAFE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin", re.ASCII)
_PLAIN_PATH = re.compile(r"[^\x00-\x1f\x7f:\\]+")
"""Libraries could take other characters for the address of another file."""
UNLOCKED = "not-locked"
"""The end of the name of a source of which a digest is not known yet."""
LARGEST = 20_000_000
"""Bytes of a lock file."""
MOST_KEYS = 300_000
"""Keys of a lock file; each file of a repository has three."""
_Name = Annotated[str, Field(max_length=1000), AfterValidator(one_line)]
_REPOSITORY = "[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*"
_Key = Annotated[
    str,
    Field(
        pattern=worded(
            rf"^({_REPOSITORY}|(bases|data)\.[a-z0-9][a-z0-9._-]*)$",
            "a repository such as meta-llama/Llama-2-7b-hf, or a key such as data.quotes",
        ),
        max_length=96,
    ),
]
_File = TypeVar("_File")


@dataclass(frozen=True, config=_STRICT)
class PinnedFile:
    """A file of a repository."""

    size: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes."""
    digest: Annotated[
        str, Field(pattern=worded(r"^([0-9a-f]{40}|[0-9a-f]{64})$", "40 or 64 hexadecimal digits"))
    ]
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


@dataclass(frozen=True, config=_STRICT)
class Found:
    """What the first fetch of a base or data set found, of what the study file does not say."""

    asked: Sha256
    """The digest of what the study file says of its source."""
    files: dict[_Name, PinnedFile] = field(default_factory=dict)
    """The files of the user or of a package: by name in a folder, otherwise by key."""
    rows: Rows | None = None
    """The number of rows."""
    sha256: Sha256 | None = None
    """The digest of the rows, if they come from a package."""


_LOCK = TypeAdapter(
    dict[
        _Key,
        Annotated[
            Annotated[Pin, Tag("[pin]")] | Annotated[Found, Tag("[found]")],
            Discriminator(
                lambda value: "[found]" if isinstance(value, dict) and "asked" in value else "[pin]"
            ),
        ],
    ]
)


def is_plain(name: str) -> bool:
    """Return whether a file's name leads to one file inside its repository, and nowhere else."""
    parts = PurePosixPath(name).parts
    inside = name == "/".join(parts) and not {"..", "/"} & {*parts}
    return inside and _PLAIN_PATH.fullmatch(name) is not None


def needed_files(
    hub: Hub | None, kind: RepositoryKind, files: Mapping[str, _File]
) -> tuple[dict[str, _File], list[str]]:
    """Return the files that a study needs of a repository (safetensors if any), and the missing ones.

    No file with Python code is among them. Without a hub, the files are those of a model's folder.
    """
    if kind == "dataset" and hub is not None:
        matching = dict[str, _File]()
        for pattern in filter(None, (hub.files, hub.test_files)):
            matching |= {name: files[name] for name in matching_names(pattern, files)}
        rows = {name: file for name, file in matching.items() if PurePosixPath(name).suffix in ROW_FILES}
        if odd := [name for name in rows if not is_plain(name)]:
            return {}, [f"plain file name, but {odd[0]!r}"]
        ending = f" and ends in {', '.join(ROW_FILES)}" if matching else ""
        return rows, [] if rows else [f"file that matches {hub.files!r}{ending}"]
    weights = list(filter(_SAFE.fullmatch, files)) or list(filter(_PICKLED.fullmatch, files))
    sets = sorted({re.sub(r"-\d{5}-of-", "-*-of-", name) for name in weights})
    parts = _shards(weights[0]) if len(sets) == 1 else []
    chosen = {*weights, *parts, *CONFIGURATIONS, *VOCABULARIES, CHAT_TEMPLATE}
    absent = {
        "config.json": "config.json" not in files,
        f"tokenizer ({', '.join(_TOKENIZER)})": not any(name in files for name in _TOKENIZER),
        "weights (model*.safetensors, pytorch_model*.bin)": not weights,
        f"single set of weights, but {' and '.join(sets[:2])}": len(sets) > 1,
        **{part: part not in files for part in sorted(parts)},
    }
    wanted = {name: file for name, file in files.items() if name in chosen}
    return wanted, [name for name, is_absent in absent.items() if is_absent]


def matching_names(pattern: str, names: Collection[str]) -> list[str]:
    """Return the names that match a pattern; in a file's own name, brackets are no pattern."""
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatch(name, pattern)]


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


def read_lock(path: Path) -> dict[str, Pin | Found]:
    """Return the entries of a lock file: pins by repository, others by key of the study file.

    Raises:
        UsageError: it is not a lock file.
    """
    try:
        return once(_parsed, path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError as error:
        reason = validation_message(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UsageError(f"{path}: not a readable lock file ({reason}); delete it to lock again")


def _parsed(path: Path) -> dict[str, Pin | Found]:
    content = read_file(path, LARGEST, follow=True)
    if content.count(b":") > MOST_KEYS:
        raise ValueError(f"it has more than {MOST_KEYS} keys")
    entries: dict[str, Pin | Found] = _LOCK.validate_json(content)
    for key, entry in entries.items():
        if isinstance(entry, Pin) != ("/" in key):
            raise ValueError(f"key {key}: expected {'asked' if isinstance(entry, Pin) else 'commit'}")
    return entries


def shipped_lock(workspace: Workspace) -> Path | None:
    """Return the lock file in the kit, which is read until the study's own exists."""
    beside = workspace.file.with_suffix(".lock")
    return beside if in_wheel(beside) and beside.is_file() else None


def read_pin(path: Path, hub: Hub, lock: Path) -> Pin | None:
    """Return the pin of a repository in the file `path`, or None; errors name the file `lock`.

    Raises:
        UsageError: the file is not a lock file, or pins another revision than the study file has.
    """
    pin = read_lock(path).get(hub.repository)
    if isinstance(pin, Pin) and pin.revision != hub.revision:
        raise UsageError(
            f"{lock}: {hub.repository} is locked at revision {pin.revision}, the study asks for "
            f"{hub.revision}; delete that entry if the study is right"
        )
    return pin if isinstance(pin, Pin) else None


def asked(source: Base | Data) -> str:
    """Return the digest of what a study says of the source of a base or data set, without users' paths."""
    if isinstance(source, Data):
        said = {**vars(source), "hub": hub_identity(source.hub)}
        if source.test_file is None:
            del said["test_file"]
        for key in ("max_new_tokens", "max_rows", "prompts", "test_share"):
            del said[key]
    else:
        said = {"folder": source.folder is not None, "gguf": source.gguf, "tokenizer": source.tokenizer}
    for key in ("file", "test_file", "gguf", "tokenizer"):
        if (file := said.get(key)) is not None:
            said[key] = {**file.place, "sha256": file.sha256}
    return json_digest(said)


def hub_identity(hub: Hub | None) -> dict[str, str] | None:
    """Return what identifies the files of a repository with data, as in versions without test files."""
    return {key: value for key, value in vars(hub).items() if value is not None} if hub else None


def found_of(workspace: Workspace, kind: Literal["bases", "data"], name: str) -> Found:
    """Return what a study's lock file says of a base or data set; nothing if the study asks for another.

    Raises:
        UsageError: the file is not a lock file.
    """
    source = workspace.study.bases[name] if kind == "bases" else workspace.study.data[name]
    entry = read_lock(current_lock(workspace)).get(f"{kind}.{name}")
    wanted = asked(source)
    return entry if isinstance(entry, Found) and entry.asked == wanted else Found(wanted)


def rows_of(workspace: Workspace, name: str) -> int | None:
    """Return the number of rows of a data set by the study or its lock file; None if it is unknown."""
    return workspace.study.data[name].rows or found_of(workspace, "data", name).rows


def data_with_rows(workspace: Workspace, name: str) -> Data:
    """Return a data set with its number of rows.

    Raises:
        MissingError: neither the study nor its lock file has it.
    """
    if (rows := rows_of(workspace, name)) is None:
        raise MissingError(
            f"data {name}: the number of rows is unknown before the first fetch; run "
            f"`{workspace.command('fetch')}`, or give rows in the study"
        )
    return replace(workspace.study.data[name], rows=rows)


def rows_sha256(workspace: Workspace, name: str) -> str | None:
    """Return the digest of rows from a package by the study or its lock file; None if it is unknown."""
    return workspace.study.data[name].sha256 or found_of(workspace, "data", name).sha256


def locked_values(workspace: Workspace) -> dict[tuple[str, ...], int | str]:
    """Return the values that a study leaves to its lock file, by their keys."""
    values = dict[tuple[str, ...], int | str | None]()
    for name, data in workspace.study.data.items():
        found = found_of(workspace, "data", name)
        values["data", name, "rows"] = None if data.rows else found.rows
        values["data", name, "sha256"] = None if data.sha256 else found.sha256
        for key, file in (("file", data.file), ("test_file", data.test_file)):
            if file is not None and not file.sha256:
                values["data", name, key, "sha256"] = file_digest_of(found, file, key)
    for name, base in workspace.study.bases.items():
        found = found_of(workspace, "bases", name)
        for key, file in (("gguf", base.gguf), ("tokenizer", base.tokenizer)):
            if file is not None and not file.sha256:
                values["bases", name, key, "sha256"] = file_digest_of(found, file, key)
        if base.folder is not None and not base.folder.sha256:
            values["bases", name, "folder", "sha256"] = folder_digest(found)
    return {key: value for key, value in values.items() if value is not None}


def folder_digest(found: Found) -> str | None:
    """Return the digest of the files of a folder in the lock file; None if it has none."""
    return json_digest({name: file.digest for name, file in found.files.items()}) if found.files else None


def file_digest_of(found: Found, file: PackageFile, key: str) -> str | None:
    """Return the SHA-256 of a file by the study or its lock file; None if it is unknown."""
    return file.sha256 or (found.files[key].digest if key in found.files else None)


def current_lock(workspace: Workspace) -> Path:
    """Return the lock file to read: the study's own or, until that exists, the one in the kit."""
    shipped = shipped_lock(workspace)
    return shipped if shipped and not workspace.lock.exists() else workspace.lock


def pin_of(workspace: Workspace, hub: Hub, kind: RepositoryKind) -> Pin | None:
    """Return a study's pin of a repository, or None.

    Raises:
        UsageError: as `read_pin`, or it pins other files than the study needs.
    """
    path = current_lock(workspace)
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


def source_name(name: str, identity: Any) -> str:
    """Return a name with the digest of what it stands for; None in it is a digest that is not known yet."""
    return f"{name}-{UNLOCKED}" if identity is None else f"{name}-{json_digest(identity)[:16]}"


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
            return workspace.assets / kind / f"{source}-{UNLOCKED}"
    made = made_folder(workspace, kind, source, pin)
    own = workspace.cache / kind / made.name
    if made != own and not is_here(made, pin) and is_here(own, pin):  # `made` may be of another stranger
        return own
    return made


def not_pinned(workspace: Workspace, hub: Hub, path: Path) -> MissingError:
    """Return the error that a file in the cache is not the one that the lock file names."""
    return MissingError(
        f"{path}: not made from the files that {workspace.lock} pins for {hub.repository}; "
        f"delete the folder and run `{workspace.command('fetch')}`"
    )
