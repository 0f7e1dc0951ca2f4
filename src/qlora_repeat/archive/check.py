"""Check an unpacked archive: whether its records, files and collected results agree."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qlora_repeat.analysis.integrity import CheckedFile, CheckedStudy, check_base_tests, check_trial
from qlora_repeat.archive.own_data import known_digest_of, own_files
from qlora_repeat.archive.unpack import Unpacked
from qlora_repeat.errors import MissingError
from qlora_repeat.records.self_test import read_self_test, self_test_file
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.hashing import file_digest


def check_archive(unpacked: Unpacked, cache: Path | None) -> CheckedStudy:
    """Check that the records of an archive agree with its files, and the collected results with the records.

    This cannot show whether records are true: only `verify`, which runs trials again, can.
    """
    workspace = open_workspace(unpacked.study_file, runs=unpacked.runs, cache=cache)
    trials = [list(check_trial(trial)) for trial in workspace.trials()]
    collected = collect(workspace, include_stale=True)
    path = workspace.results
    problems = [f"{path}: {each}" for each in _disagreements(unpacked.results(), collected)]
    files = [file for own in trials for file in own] + list(check_base_tests(workspace))
    files += [CheckedFile(path, problem) for problem in problems] or [CheckedFile(path)]
    files += map(_checked_self_test, sorted(unpacked.runs.glob("self-test-*.json")))
    files += _unnamed(unpacked.runs, {file.path for file in files} | {workspace.statistics})
    files += _checked_data(workspace, unpacked.folder)
    return CheckedStudy(trials=sum(map(bool, trials)), files=files, inputs=[], notes=[])


def _checked_self_test(path: Path) -> CheckedFile:
    try:
        found = read_self_test(path)
        right = path == self_test_file(path.parent, found.fingerprint)
    except (MissingError, KeyError) as error:
        return CheckedFile(path, str(error))
    return CheckedFile(path, None if right else f"{path}: has the name of another machine")


def _checked_data(workspace: Workspace, folder: Path) -> Iterator[CheckedFile]:
    """Yield the data files of an archive: each is the one of the study or its lock file."""
    known = {folder / own.entry: own for own in own_files(workspace)}
    for path in sorted(path for path in (folder / "data").rglob("*") if not path.is_dir()):
        problem = f"{path}: no data of the study name it"
        if (own := known.get(path)) is not None:
            same = file_digest(path) == known_digest_of(workspace, own)
            problem = "" if same else f"{path}: not the file that the study or its lock file names"
        yield CheckedFile(path, problem or None)


def _unnamed(runs: Path, named: set[Path]) -> Iterator[CheckedFile]:
    """Yield the files that neither a record names nor a trial or test of the study needs."""
    for path in sorted(path for path in runs.rglob("*") if not path.is_dir()):
        if path not in named and not path.name.startswith("attribution"):
            yield CheckedFile(path, f"{path}: no record of the study names it")


def _disagreements(packed: list[TrialResult], collected: list[TrialResult]) -> Iterator[str]:
    """Yield the trials whose packed results differ from what their records give.

    A trial may be stale here although it was done when it was packed; its values must still be the same.
    """
    rows, records = ({row.name: row for row in results} for results in (packed, collected))
    if len(rows) < len(packed):
        yield "a trial has several rows"
    for name in dict.fromkeys([*rows, *records]):
        if name not in records:
            yield f"{name} is not a trial of the study"
        elif name not in rows:
            yield f"{name} has no row"
        else:
            if rows[name].example_losses is None:  # early versions did not collect it
                records[name] = replace(records[name], example_losses=None)
            row, record = (
                replace(each, status="done", stale_inputs=[], stale_base_inputs=[]) if each.measured else None
                for each in (rows[name], records[name])
            )
            if (row is None) != (record is None):
                yield f"{name} has {'records, but no results' if row is None else 'results, but no records'}"
            elif repr(row) != repr(record):  # repr, because NaN is not equal to NaN
                yield f"{name} has other results than its records"
