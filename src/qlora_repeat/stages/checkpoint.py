"""A fine-tuning in progress, on disk: its seeds, its trace so far, and its last checkpoint.

All is in ``unfinished/`` in the trial's folder, until the adapter is whole; an older adapter and its record
stay as they are until then. A checkpoint is a folder ``step-N`` of safetensors and JSON, which appears
under its name when it is complete, and the one before is deleted after that. Streams of randomness need no
saving: they follow from the seeds and the step.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qlora_repeat.system.files import json_text, new_folder, parse_json, write_text
from qlora_repeat.system.hashing import file_digest, json_digest
from qlora_repeat.system.safetensors_file import read_weights

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fine-tuning after an optimizer step."""

    step: int
    adapter: Tensors
    """The trained parameters, by name."""
    optimizer: Tensors
    """The optimizer's state, by ``parameter:key``."""
    counters: dict[str, int]
    """The optimizer's updates of each parameter."""
    learning_rates: list[dict[str, float]]
    """Of each parameter group: the rate, and the one that the schedule starts from."""
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    """The gradient scaler's state, where there is one."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds and peak memory so far."""


@dataclass(frozen=True)
class Unfinished:
    """The folder of a fine-tuning in progress."""

    folder: Path
    seeds: dict[str, int]
    digest_every: int

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"


def reopen(folder: Path, inputs: dict[str, Any], seeds: dict[str, int] | None) -> Unfinished | None:
    """Return the fine-tuning in a folder, with the seeds that it began with, to resume it.

    None if there is none, it cannot be read, or it has other inputs, or other seeds than `seeds` where these
    are given.
    """
    start = read_sealed(folder / "start.json")
    if start is None or start["inputs"] != json_digest(inputs) or seeds not in (None, start["seeds"]):
        return None
    return Unfinished(folder, start["seeds"], start["digest_every"])


def begin(folder: Path, inputs: dict[str, Any], seeds: dict[str, int], digest_every: int) -> Unfinished:
    """Start a fine-tuning in a folder, in place of whatever is there."""
    if (folder / "trace.jsonl").exists():
        print(f"{folder}: begun anew, since it has other settings, data, code or seeds", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    start = {"inputs": json_digest(inputs), "seeds": seeds, "digest_every": digest_every}
    write_sealed(folder / "start.json", start)
    return Unfinished(folder, seeds, digest_every)


def save_checkpoint(unfinished: Unfinished, checkpoint: Checkpoint, trace: IO[str]) -> None:
    """Writes a checkpoint, which includes the trace so far, and deletes older ones."""
    from safetensors.torch import save_file

    trace.flush()
    os.fsync(trace.fileno())
    path = unfinished.folder / f"step-{checkpoint.step}"
    with new_folder(path) as folder:
        save_file(checkpoint.adapter, folder / "adapter.safetensors")
        save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        rest = {key: value for key, value in vars(checkpoint).items() if key not in ("adapter", "optimizer")}
        files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
        position = {"bytes": unfinished.trace.stat().st_size, "sha256": file_digest(unfinished.trace)}
        # Not by `write_sealed`: `new_folder` brings it to the disk with the others, and once is enough.
        sealed = _sealed({**rest, "files": files, "trace": position})
        (folder / "checkpoint.json").write_text(sealed, encoding="utf-8")
    for older in checkpoint_folders(unfinished.folder):
        if older != path:  # it vanishes at once: a part of it would count as damaged
            gone = older.with_name(f".{older.name}.old")
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.replace(older, gone)
            shutil.rmtree(gone, ignore_errors=True)


def load_checkpoint(unfinished: Unfinished) -> Checkpoint | None:
    """The last checkpoint that is whole, with the trace cut back to it; without any, None and no trace.

    One whose bytes are not those that were written is passed over. There is hardly ever an older one, so
    that the fine-tuning then begins anew, with the same seeds.
    """
    for path in checkpoint_folders(unfinished.folder):
        content = read_sealed(path / "checkpoint.json")
        if content is None or not _whole(path, content.pop("files")):
            continue
        if not _cut_back(unfinished.trace, **content.pop("trace")):
            continue
        tensors = {name: read_weights(path / f"{name}.safetensors") for name in _TENSORS}
        return Checkpoint(**{**content, **tensors})
    unfinished.trace.unlink(missing_ok=True)
    return None


_TENSORS = ("adapter", "optimizer")


def _whole(folder: Path, files: dict[str, str]) -> bool:
    return sorted(files) == [f"{name}.safetensors" for name in _TENSORS] and all(
        (folder / name).is_file() and file_digest(folder / name) == digest for name, digest in files.items()
    )


def _cut_back(trace: Path, bytes: int, sha256: str) -> bool:
    """Shortens the trace to what it was, if it begins so."""
    try:
        if not begins_so(trace, bytes, sha256):
            return False
        os.truncate(trace, bytes)
    except OSError:
        return False
    return True


def begins_so(trace: Path, bytes: int, sha256: str) -> bool:
    """Whether the trace begins as it was when a checkpoint was written."""
    with trace.open("rb") as file:
        return hashlib.sha256(file.read(bytes)).hexdigest() == sha256


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders of checkpoints, the last step first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("step-")))


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with a digest of itself."""
    write_text(path, _sealed(content))


def _sealed(content: dict[str, Any]) -> str:
    return json_text({**content, "digest": json_digest(content)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Reads such JSON; None if there is none, or not as it was written."""
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
        return content if content.pop("digest") == json_digest(content) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
