"""The check of an archive: whether its records, files and collected results fit together."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qlora_repeat.analysis.integrity import CheckedFile, CheckedStudy, check_base_tests, check_trial
from qlora_repeat.archive.unpack import Unpacked
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.loading import open_workspace


def check_archive(unpacked: Unpacked, cache: Path | None) -> CheckedStudy:
    """Check an archive whose checksums fit: whether its records fit themselves, and all else fits them.

    The collected results must be those that the records give. Whether records tell the truth is not looked
    at: for that, `verify` runs trials again.
    """
    workspace = open_workspace(unpacked.study_file, runs=unpacked.runs, cache=cache)
    found = [list(check_trial(trial)) for trial in workspace.trials()]
    files = [looked for own in found for looked in own] + list(check_base_tests(workspace))
    path = workspace.results
    told, given = unpacked.results(), collect(workspace, include_stale=True)
    files += [CheckedFile(path, f"{path}: {problem}") for problem in _unlike(told, given)] or [
        CheckedFile(path)
    ]
    return CheckedStudy(trials=sum(map(bool, found)), files=files, inputs=[], notes=[])


def _unlike(told: list[TrialResult], given: list[TrialResult]) -> Iterator[str]:
    """Yield the trials whose collected results differ from those that their records give.

    Where a trial is stale here but was not when it was packed, the values must still be the same.
    """
    rows = [{row.name: row for row in results} for results in (told, given)]
    if len(rows[0]) < len(told):
        yield "a trial has several rows"
    for name in dict.fromkeys([*rows[0], *rows[1]]):
        first, second = (own.get(name) for own in rows)
        if first is None or second is None:
            yield f"{name} is not of the study" if second is None else f"{name} has no row"
        elif first.measured != second.measured:
            yield f"{name} has {'results, but no records' if first.measured else 'records, but no results'}"
        elif first.measured and repr(_as_done(first)) != repr(_as_done(second)):  # for NaN is not NaN
            yield f"{name} has other results than its records"


def _as_done(row: TrialResult) -> TrialResult:
    return replace(row, status="done", stale_inputs=[], stale_base_inputs=[])
