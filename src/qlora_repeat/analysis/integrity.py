"""The check of a whole study: all that records name is read again and compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder, check_base
from qlora_repeat.assets.datasets import ROWS, data_folder, read_rows
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.records.record import Record, damaged_file
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import base_test_record, has_ended, stage_record
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.stages.checkpoint import begins_so, checkpoint_folders, read_sealed
from qlora_repeat.study.trial import STAGES, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.hashing import folder_digests, known_digest, weights_digest
from qlora_repeat.system.safetensors_file import check_weights

_AGAIN = "`qlora-repeat run` runs its stage again"
_LEFT = "left by a process that was killed; it can be deleted"


@dataclass(frozen=True)
class Looked:
    """A file that was read, and what is wrong with it."""

    path: Path
    problem: str | None = None
    """A line that names the file and what mends it."""


@dataclass(frozen=True)
class Checked:
    """What a check of a study came to."""

    trials: int
    """Trials that have left anything."""
    files: list[Looked]
    """Of trials and of tests of bases."""
    inputs: list[Looked]
    """Of models and data."""
    notes: list[str]
    """What is worth telling, but nothing is wrong with."""

    @property
    def problems(self) -> list[str]:
        """A line for each problem."""
        lines = [looked.problem for looked in self.files + self.inputs if looked.problem is not None]
        return list(dict.fromkeys(lines))


def check(workspace: Workspace, report: Callable[[int, int], None]) -> Checked:
    """Re-hashes a study: records, adapters, traces, merged models, checkpoints; bases and data in the cache.

    Trials that a process works on are left out. `report` is told how many trials, bases and data are done,
    of how many.
    """
    trials, files, inputs, notes = 0, list[Looked](), list[Looked](), list[str]()
    everything, models = workspace.trials(), workspace.study.models.values()
    bases = sorted({model.base for model in models})
    data = sorted({model.data for model in models})
    total, done = len(everything) + len(bases) + len(data), 0
    for trial in everything:
        if live_owner(trial.lock) is not None:
            notes.append(f"{trial.name}: not checked, for a process works on it")
        else:
            found = list(check_trial(trial))
            if _is_left(trial):
                notes.append(f"{trial.unfinished}: {_LEFT}")
            else:
                found += _unfinished(trial.unfinished)
            trials, files = trials + bool(found), files + found
        report(done := done + 1, total)
    files += check_base_tests(workspace)
    for names, look in ((bases, _base), (data, _data)):
        for name in names:
            inputs += look(workspace, name)
            report(done := done + 1, total)
    notes += _results(workspace) + _left(workspace.folder)
    return Checked(trials, files, inputs, notes)


def check_trial(trial: Trial) -> Iterator[Looked]:
    """Read again what the records of a trial name."""
    for stage in STAGES:
        record, damage = stage_record(trial.record(stage), trial.name, stage)
        if record is None:
            if damage is not None:
                yield Looked(trial.record(stage), damage)
            continue
        yield Looked(trial.record(stage))
        if stage == "merge" and not trial.merged.exists():  # to save disk; it can be built again
            continue
        found = [_file(trial.folder / name, kept) for name, kept in record.files.items()]
        yield from found
        if stage == "finetune" and all(looked.problem is None for looked in found):
            yield from _finetuned(trial, record)


def _is_left(trial: Trial) -> bool:
    """Whether what is unfinished is of the fine-tuning that is done, whole or in part: it was being removed.

    A checkpoint is of no use without its trace.
    """
    if not trial.unfinished.is_dir() or not trial.record("finetune").is_file():
        return False
    return not (trial.unfinished / trial.trace.name).exists() or has_ended(trial)


def _file(path: Path, kept: Any) -> Looked:
    damage = damaged_file(path, kept)
    return Looked(path, damage and f"{damage}; {_AGAIN}")


def _finetuned(trial: Trial, record: Record) -> Iterator[Looked]:
    """Whether trace and adapter, which are whole, say the same as the record."""
    # The files are those that the record names, so that `qlora-repeat run` takes the stage as done.
    mend = f"`qlora-repeat finetune {trial.name} --force` does it again"
    said, count = record.outputs.get("adapter_digest"), record.outputs.get("steps")
    try:
        found = weights_digest(trial.adapter)
        if found != said:
            yield Looked(
                trial.adapter,
                f"{trial.adapter}: weights {found[:16]}, the record says {str(said)[:16]}; {mend}",
            )
        steps = read_trace(trial.trace)
        last = steps[-1] if steps else None
        if last is None or last.step != count:
            number = last.step if last else "none"
            yield Looked(
                trial.trace, f"{trial.trace}: ends at step {number}, the record says {count}; {mend}"
            )
        elif last.adapter not in (None, said):
            yield Looked(trial.trace, f"{trial.trace}: its last adapter is not the record's; {mend}")
    except KitError as error:
        yield Looked(trial.trace, f"{error}; {mend}")


def _unfinished(folder: Path) -> Iterator[Looked]:
    """A fine-tuning in progress: how it started, and its checkpoints.

    They are looked at as they are when it goes on: the last first, and up to one that is whole.
    """
    start, trace = folder / "start.json", folder / "trace.jsonl"
    begun = read_sealed(start) is not None
    mend = "`qlora-repeat run` begins this fine-tuning anew"
    if start.exists():
        yield Looked(start, None if begun else f"{start}: changed since it was written; {mend}")
    looked = list[Looked]()
    for checkpoint in checkpoint_folders(folder):
        found = list(_checkpoint(checkpoint, trace))
        looked += found
        if not any(each.problem for each in found):
            mend = f"`qlora-repeat run` goes on from {checkpoint.name}" if begun else mend
            break
    for each in looked:
        yield Looked(each.path, each.problem and f"{each.problem}; {mend}")


def _checkpoint(folder: Path, trace: Path) -> Iterator[Looked]:
    """The files of a checkpoint, and the trace that it goes on from; problems lack what mends them."""
    path = folder / "checkpoint.json"
    content = read_sealed(path)
    files, position = (content or {}).get("files"), (content or {}).get("trace")
    if (
        not isinstance(files, dict)
        or not isinstance(position, dict)
        or position.keys() != {"bytes", "sha256"}
    ):
        yield Looked(path, f"{path}: gone, or changed since it was written")
        return
    yield Looked(path)
    for name, digest in files.items():
        path = folder / Path(name).name
        same = path.name == name and path.is_file() and known_digest(path) == digest
        yield Looked(path, None if same else f"{path}: not the bytes that were recorded")
    same = trace.is_file() and begins_so(trace, **position)
    yield Looked(trace, None if same else f"{trace}: not what {folder.name} goes on from")


def check_base_tests(workspace: Workspace) -> Iterator[Looked]:
    """Read again the records of the tests of bases."""
    for test in workspace.base_tests():
        record, damage = base_test_record(test)
        if record is not None or damage is not None:
            yield Looked(test.record, damage)


def _base(workspace: Workspace, name: str) -> Iterator[Looked]:
    folder = base_folder(workspace, name)
    if not folder.is_dir():
        return
    try:
        check_base(workspace, name)
        check_weights(folder)
    except MissingError as error:
        yield Looked(folder, str(error))
    else:
        yield from (Looked(folder / file) for file in folder_digests(folder))


def _data(workspace: Workspace, name: str) -> Iterator[Looked]:
    folder = data_folder(workspace, name)
    if not folder.is_dir():
        return
    try:
        read_rows(workspace, name)
    except MissingError as error:
        yield Looked(folder / ROWS, str(error))
    else:
        yield Looked(folder / ROWS)


def _results(workspace: Workspace) -> list[str]:
    """Whether the collected results are what the records give now."""
    path = workspace.results
    if not path.exists():
        return []
    try:
        found = repr(read_results(path))  # by repr, for NaN is not NaN
    except KitError as error:
        return [str(error)]
    same = any(found == repr(collect(workspace, include_stale=stale)) for stale in (False, True))
    return (
        [] if same else [f"{path}: not what the records give now; run `qlora-repeat collect` for this study"]
    )


def _left(folder: Path) -> list[str]:
    """A line for each temporary file or folder that a killed process left."""
    found = sorted(path for path in folder.rglob(".*.*"))
    within = {path for path in found if any(parent in found for parent in path.parents)}
    used = {path for path in found if any(map(live_owner, path.parent.glob("lock*.json")))}
    return [f"{path}: {_LEFT}" for path in found if path not in within | used]
