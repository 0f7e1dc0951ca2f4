"""Check the integrity of a study: read every file that its records name and compare digests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.assets.base_models import base_folder, check_base
from qlora_repeat.assets.datasets import ROWS, data_folder, read_rows
from qlora_repeat.assets.fetch import earlier_folders, outdated
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.records.record import Record, damages
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import advised, base_test_record, has_ended, stage_record
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.stages.checkpoint import SAVED, START, begins_so, checkpoint_folders, read_sealed
from qlora_repeat.study.trial import ALL_STAGES, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import live_owner
from qlora_repeat.system.hashing import folder_digests, known_digest, weights_digest
from qlora_repeat.system.safetensors_file import check_weights

_CHANGED = "changed after it was written"
_LEFTOVER = "left by a process that was killed; it can be deleted"


@dataclass(frozen=True)
class CheckedFile:
    """A file that was read, and its problem if it has one."""

    path: Path
    problem: str | None = None
    """A line that names the file, the problem and the command that helps."""


@dataclass(frozen=True)
class CheckedStudy:
    """The result of a check of a study."""

    trials: int
    """Number of trials that have any files."""
    files: list[CheckedFile]
    """Files of trials and of base tests."""
    inputs: list[CheckedFile]
    """Files of models and data."""
    notes: list[str]
    """Facts worth knowing that are no problems."""

    @property
    def problems(self) -> list[str]:
        """Return a line for each problem."""
        return list(dict.fromkeys(each.problem for each in self.files + self.inputs if each.problem))


def check(workspace: Workspace, report: Callable[[int, int], None]) -> CheckedStudy:
    """Hash all files of a study again: those of its trials, and base models and data in the cache.

    Skip trials that a process is working on. Call `report` with the number of trials, base models and data
    sets that are checked, and with their total.
    """
    checked, files, inputs, notes = 0, list[CheckedFile](), list[CheckedFile](), list[str]()
    trials, models = workspace.trials(), workspace.study.models.values()
    bases, data = sorted({model.base for model in models}), sorted({model.data for model in models})
    done, total = 0, len(trials) + len(bases) + len(data)
    for trial in trials:
        if live_owner(trial.lock) is not None:
            notes.append(f"{trial.name}: not checked, because a process is working on it")
        else:
            found = list(check_trial(trial))
            if _is_leftover(trial):
                notes.append(f"{trial.unfinished}: {_LEFTOVER}")
            else:
                found += _unfinished(trial)
            checked, files = checked + bool(found), files + found
        report(done := done + 1, total)
    files += check_base_tests(workspace)
    for check_input, name in [(_base, name) for name in bases] + [(_data, name) for name in data]:
        inputs += check_input(workspace, name)
        report(done := done + 1, total)
    notes += map(outdated, earlier_folders(workspace))
    return CheckedStudy(checked, files, inputs, notes + _results(workspace) + _leftovers(workspace))


def check_trial(trial: Trial) -> Iterator[CheckedFile]:
    """Check the records of a trial and the files that they name."""
    for stage in ALL_STAGES:
        record, damage = stage_record(trial.record(stage), trial.name, stage)
        if record is not None or damage is not None:
            yield CheckedFile(trial.record(stage), advised(trial.workspace, damage))
        if record is None or (stage == "merge" and not trial.merged.exists()):  # which can be built again
            continue
        whole = True
        for path, damage in damages(trial.folder, record.files).items():
            whole = whole and damage is None
            yield CheckedFile(path, advised(trial.workspace, damage))
        if stage == trial.stages[0] and whole:
            # The files have the recorded digests, so `qlora-repeat run` would take the stage as done.
            command = trial.workspace.command("finetune", "--force", trial=trial.name)
            for path, problem in _disagreements(trial, record):
                yield CheckedFile(path, advised(trial.workspace, problem, f"`{command}` runs it again"))


def _disagreements(trial: Trial, record: Record) -> Iterator[tuple[Path, str]]:
    """Yield where an undamaged trace or adapter disagrees with the record; an average has no trace."""
    recorded, count = record.outputs.get("adapter_digest"), record.outputs.get("steps")
    adapter, trace = trial.adapter, trial.trace
    try:
        if (digest := weights_digest(adapter)) != recorded:
            yield adapter, f"{adapter}: weights {digest[:16]}, the record says {str(recorded)[:16]}"
        if trial.sources:
            return
        steps = read_trace(trace)
        if len(steps) - 1 != count:
            last = steps[-1].step if steps else "none"
            yield trace, f"{trace}: ends at step {last}, the record says {count}"
        elif steps[-1].adapter not in (None, recorded):
            yield trace, f"{trace}: its last adapter is not the record's"
    except KitError as error:
        yield trace, str(error)


def _is_leftover(trial: Trial) -> bool:
    """Return whether the unfinished folder belongs to the finished fine-tuning: its removal was interrupted.

    A checkpoint cannot be used without its trace.
    """
    if not trial.unfinished.is_dir() or not trial.record("finetune").is_file():
        return False
    return not (trial.unfinished / trial.trace.name).exists() or has_ended(trial)


def _unfinished(trial: Trial) -> Iterator[CheckedFile]:
    """Check a fine-tuning in progress: its start file and its checkpoints.

    As when it resumes, check the last checkpoint first and stop at the first one without a problem.
    """
    folder, workspace = trial.unfinished, trial.workspace
    start = folder / "start.json"
    has_start = read_sealed(start, START) is not None
    run = f"`{workspace.command('run')}`"
    remedy = f"{run} starts this fine-tuning again"
    if start.exists():
        problem = None if has_start else f"{start}: {_CHANGED}"
        yield CheckedFile(start, advised(workspace, problem, remedy))
    files = list[CheckedFile]()
    for checkpoint in checkpoint_folders(folder):
        found = list(_checkpoint(checkpoint, folder / "trace.jsonl"))
        files += found
        if not any(each.problem for each in found):
            remedy = f"{run} resumes from {checkpoint.name}" if has_start else remedy
            break
    for each in files:
        yield CheckedFile(each.path, advised(workspace, each.problem, remedy))


def _checkpoint(folder: Path, trace: Path) -> Iterator[CheckedFile]:
    """Check the files of a checkpoint and its part of the trace; the caller adds the remedy."""
    path = folder / "checkpoint.json"
    content = read_sealed(path, SAVED)
    if content is None:
        yield CheckedFile(path, f"{path}: missing, or {_CHANGED}")
        return
    yield CheckedFile(path)
    for name, digest in content["files"].items():
        path = folder / name
        same = path.is_file() and known_digest(path) == digest
        yield CheckedFile(path, None if same else f"{path}: not the bytes that were recorded")
    same = begins_so(trace, **content["trace"])
    yield CheckedFile(trace, None if same else f"{trace}: does not begin with the trace of {folder.name}")


def check_base_tests(workspace: Workspace) -> Iterator[CheckedFile]:
    """Check the records of base tests."""
    for test in workspace.base_tests():
        record, damage = base_test_record(test)
        if record is not None or damage is not None:
            yield CheckedFile(test.record, advised(workspace, damage))


def _base(workspace: Workspace, name: str) -> list[CheckedFile]:
    folder = base_folder(workspace, name)
    if not folder.is_dir():
        return []
    try:
        check_base(workspace, name)
        check_weights(folder)
    except MissingError as error:
        return [CheckedFile(folder, str(error))]
    return [CheckedFile(folder / file) for file in folder_digests(folder)]


def _data(workspace: Workspace, name: str) -> list[CheckedFile]:
    rows = data_folder(workspace, name) / ROWS
    if not rows.parent.is_dir():
        return []
    try:
        read_rows(workspace, name)
    except MissingError as error:
        return [CheckedFile(rows, str(error))]
    return [CheckedFile(rows)]


def _results(workspace: Workspace) -> list[str]:
    """Return a note if the collected results are not those of the records."""
    path = workspace.results
    if not path.exists():
        return []
    try:
        found = repr(read_results(path))  # repr, because NaN is not equal to NaN
    except KitError as error:
        return [str(error)]
    if any(found == repr(collect(workspace, include_stale=stale)) for stale in (False, True)):
        return []
    remedy = f"run `{workspace.command('collect')}`"
    return [str(advised(workspace, f"{path}: differs from the records", remedy))]


def _leftovers(workspace: Workspace) -> list[str]:
    """Return a line for each temporary file or folder that a killed process left."""
    found = set(workspace.folder.rglob(".*.*"))
    outer = [path for path in sorted(found) if found.isdisjoint(path.parents)]
    used = {
        parent
        for parent in {path.parent for path in outer}
        if any(map(live_owner, parent.glob("lock*.json")))
    }
    run = workspace.command("run")
    return [f"{path}: {_of_leftover(path, run)}" for path in outer if path.parent not in used]


def _of_leftover(path: Path, run: str) -> str:
    """Say whether a leftover can be deleted: not if it has the only copy of a folder (`restore_folder`)."""
    name = path.name.removeprefix(".").removesuffix(".old")
    only = (path / name).exists() and not path.with_name(name).exists()
    return f"has the only {name}; `{run}` puts it back" if only else _LEFTOVER
