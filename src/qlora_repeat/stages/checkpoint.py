"""An unfinished fine-tuning on disk: its seeds, its trace so far, and its last checkpoint.

They are in ``unfinished/`` in the trial's folder until the adapter is complete; an older adapter and its
record stay unchanged until then. A checkpoint is a folder ``step-N`` with safetensors and JSON. It gets this
name when it is complete; then the checkpoint before it is deleted. Random streams are not saved, because they
follow from the seeds and the step.
"""

import contextlib
import hashlib
import re
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.system.files import (
    LARGEST_LINES,
    delete_folder,
    flush,
    new_folder,
    parse_json,
    read_file,
    remove,
    truncate,
    write_json,
)
from qlora_repeat.system.hashing import file_digest, json_digest
from qlora_repeat.system.printable import say
from qlora_repeat.system.safetensors_file import read_weights

Tensors = dict[str, Any]


class _Start(TypedDict):
    inputs: str
    seeds: dict[str, int]
    digest_every: int


class _Part(TypedDict):
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


@with_config(ConfigDict(extra="forbid"))
class _Saved(TypedDict):
    step: int
    counters: dict[str, int]
    learning_rates: list[dict[str, float]]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    spent: NotRequired[dict[str, Any]]
    files: dict[Literal["adapter.safetensors", "optimizer.safetensors"], str]
    trace: _Part


START: TypeAdapter[Any] = TypeAdapter(_Start)
SAVED: TypeAdapter[Any] = TypeAdapter(_Saved)
_ANY: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fine-tuning after an optimizer step."""

    step: int
    adapter: Tensors
    """The trained parameters, by name."""
    optimizer: Tensors
    """The optimizer's state, by ``parameter:key``; the key ``sum`` has sums over the last steps."""
    counters: dict[str, int]
    """The number of updates of each parameter."""
    learning_rates: list[dict[str, float]]
    """For each parameter group: its learning rate, and the initial rate of the schedule."""
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    """The state of the gradient scaler, if there is one."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds used and peak memory so far."""


@dataclass(frozen=True)
class Unfinished:
    """The folder of an unfinished fine-tuning."""

    folder: Path
    seeds: dict[str, int]
    digest_every: int

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"


def reopen(folder: Path, inputs: dict[str, Any], seeds: dict[str, int] | None) -> Unfinished | None:
    """Return the unfinished fine-tuning in a folder, to resume it with its own seeds.

    Return None if there is none, it cannot be read, its inputs differ, or its seeds differ from `seeds` (if
    given).
    """
    start = read_sealed(folder / "start.json", START)
    if start is None or start["inputs"] != json_digest(inputs) or seeds not in (None, start["seeds"]):
        return None
    return Unfinished(folder, start["seeds"], start["digest_every"])


def begin(folder: Path, inputs: dict[str, Any], seeds: dict[str, int], digest_every: int) -> Unfinished:
    """Start a fine-tuning in a folder; delete what is there."""
    if (folder / "trace.jsonl").exists():
        say(f"{folder}: starting over, because settings, data, code or seeds changed", error=True)
    delete_folder(folder)  # an error must not leave its checkpoints to another fine-tuning
    start = {"inputs": json_digest(inputs), "seeds": seeds, "digest_every": digest_every}
    write_sealed(folder / "start.json", start)
    return Unfinished(folder, seeds, digest_every)


def save_checkpoint(unfinished: Unfinished, checkpoint: Checkpoint, trace: FileIO) -> None:
    """Write a checkpoint, which covers the trace so far, and delete older ones."""
    from safetensors.torch import save_file

    flush(trace)
    path = unfinished.folder / f"step-{checkpoint.step}"
    with new_folder(path) as folder:
        save_file(checkpoint.adapter, folder / "adapter.safetensors")
        save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        rest = {key: value for key, value in vars(checkpoint).items() if key not in ("adapter", "optimizer")}
        files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
        position = {"bytes": unfinished.trace.stat().st_size, "sha256": file_digest(unfinished.trace)}
        write_sealed(folder / "checkpoint.json", {**rest, "files": files, "trace": position})
    for older in checkpoint_folders(unfinished.folder):
        if older != path:
            with contextlib.suppress(OSError):
                delete_folder(older)


def load_checkpoint(unfinished: Unfinished) -> Checkpoint | None:
    """Return the last intact checkpoint, and cut the trace back to it; if there is none, delete the trace.

    Damaged checkpoints are skipped. There is rarely an older one, so the fine-tuning then usually starts
    over, with the same seeds.
    """
    for path in checkpoint_folders(unfinished.folder):
        content = read_sealed(path / "checkpoint.json", SAVED)
        if content is None or not _whole(path, content.pop("files")):
            continue
        if not _cut_back(unfinished.trace, **content.pop("trace")):
            continue
        tensors = {name: read_weights(path / f"{name}.safetensors") for name in _TENSORS}
        return Checkpoint(**{**content, **tensors})
    remove(unfinished.trace)
    return None


_TENSORS = ("adapter", "optimizer")


def _whole(folder: Path, files: dict[str, str]) -> bool:
    return sorted(files) == [f"{name}.safetensors" for name in _TENSORS] and all(
        (folder / name).is_file() and file_digest(folder / name) == digest for name, digest in files.items()
    )


def _cut_back(trace: Path, bytes: int, sha256: str) -> bool:
    """Cut the trace to its first `bytes`; return False if they do not have this digest."""
    if not begins_so(trace, bytes, sha256):
        return False
    truncate(trace, bytes)
    return True


def begins_so(trace: Path, bytes: int, sha256: str) -> bool:
    """Return whether the first `bytes` of the trace have this digest."""
    try:
        content = read_file(trace, LARGEST_LINES)[:bytes]
    except (OSError, ValueError):
        return False
    return len(content) == bytes and hashlib.sha256(content).hexdigest() == sha256


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, last step first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("step-")))


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its own digest."""
    write_json(path, {**content, "digest": json_digest(content)})


def read_sealed(path: Path, kind: TypeAdapter[Any] = _ANY) -> dict[str, Any] | None:
    """Return JSON that `write_sealed` wrote, without the digest; None if it is missing, changed or unlike."""
    try:
        content: dict[str, Any] = parse_json(read_file(path))
        if content.pop("digest") != json_digest(content):
            return None
        kind.validate_python(content, strict=True)
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
