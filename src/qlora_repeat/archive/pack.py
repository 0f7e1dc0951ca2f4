"""Pack a study into an archive: what its records vouch for, and the results that were made from them."""

import contextlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_repeat import __version__
from qlora_repeat.analysis.attribution.measurements import read_measured
from qlora_repeat.archive.own_data import not_included, own_data_entries
from qlora_repeat.archive.own_texts import readme_text
from qlora_repeat.archive.private_parts import private_parts
from qlora_repeat.archive.ro_crate import Run, crate_text
from qlora_repeat.archive.zip_file import (
    CRATE,
    FORMAT,
    FORMAT_FILE,
    ByteReport,
    Entry,
    is_known,
    text_entry,
    write_archive,
)
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.errors import KitError, MissingError, UsageError
from qlora_repeat.records.record import KeptFile, Record, keep
from qlora_repeat.records.self_test import self_test_file, self_test_of
from qlora_repeat.records.trial_state import advised, base_damages, explanations, stage_record, trial_state
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.collect import collect, counted_base_tests
from qlora_repeat.results.study_statistics import statistics_text
from qlora_repeat.results.trial_result import TrialResult, read_results, results_text
from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.complete_file import complete_text
from qlora_repeat.study.loading import read_study
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import disk_errors
from qlora_repeat.system.hashing import file_digest
from qlora_repeat.system.package_data import ROOT

KIT_LICENSE = "Apache-2.0"
"""The license of the kit, whose text is in LICENSE."""


@dataclass(frozen=True)
class Packed:
    """An archive that was written."""

    trials: int
    files: int
    sha256: str
    """The digest of the archive, for citing it."""
    left_out: list[str]
    """A line for each part of the study that is not included although one might expect it."""
    private: list[str]
    """A line for each thing that was packed on request: what looks private, and data of the user."""


def pack(
    workspace: Workspace,
    path: Path,
    report: ByteReport,
    *,
    include_stale: bool = False,
    include_private: bool = False,
    include_data: bool = False,
    license: str = KIT_LICENSE,
    authors: Sequence[str] = (),
) -> Packed:
    """Write the archive of a study: the same bytes for the same records, study and kit.

    It includes the trials that `collect` gives values: done ones and, with `include_stale`, complete stale
    ones. It includes records, traces and adapters, but no logs, locks or failures, which may name hosts and
    users; and the study file without ``[cluster]``. Tables and reports can be made from the results. With
    `include_data`, it also has the user's own data files, whose license the kit does not know.

    Raises:
        MissingError: no trial is done; the collected results are not those of the records; a file is a link,
            or changes while it is read; or the disk is full.
        UsageError: a file contains what looks like a token, an absolute path or the UUID of a GPU, and
            `include_private` is not given.
    """
    study, runs = workspace.study, workspace.runs
    results = collect(workspace, include_stale=include_stale)
    left_out = [*_left_out(workspace, results, include_stale), *not_included(workspace, data=include_data)]
    data = list(own_data_entries(workspace)) if include_data else []
    _check_collected(workspace, results, include_stale)
    study_file = f"studies/{study.name}.toml"
    entries = [
        text_entry(FORMAT_FILE, FORMAT),
        text_entry(study_file, _study_text(workspace, left_out)),
        text_entry(_name(workspace.results, runs), results_text(results)),
        text_entry(_name(workspace.statistics, runs), statistics_text(group_arms(results))),
        text_entry("README.md", readme_text(study.label, __version__, license, has_data=bool(data))),
        *data,
        *_of_kit(license),
        *_attributions(workspace, left_out),
    ]
    if (pins := lock_file(workspace).current).is_file():
        entries.append(_file(pins, f"studies/{study.name}.lock"))
    packed: list[Run] = []
    for run, own in _runs(workspace, results, include_stale):
        packed.append(run)
        entries += own
    entries += _self_tests(workspace, packed)
    kept = {entry.name: entry.kept for entry in entries}
    entries.append(text_entry(CRATE, crate_text(study, study_file, kept, packed, license, authors)))
    folders = {Path.home(), workspace.runs.absolute(), workspace.cache.absolute()}
    private = [f"{entry.name}: {what}" for entry in entries for what in private_parts(entry, folders)]
    unlicensed = [f"{entry.name}: your own data, whose license is not stated" for entry in data]
    if private and not include_private:
        more = f", and {len(private) - 3} more" if len(private) > 3 else ""
        raise UsageError(f"{', '.join(private[:3])}{more}; remove it, or publish it with --include-private")
    with disk_errors(path, "give another file with --out"):
        write_archive(path, entries, report)
    trials = sum(row.measured for row in results)
    return Packed(trials, len(entries) + 1, file_digest(path), left_out, private + unlicensed)


def _study_text(workspace: Workspace, left_out: list[str]) -> str:
    """Return the text of a study file without ``[cluster]`` and the comments above it.

    If it extends other studies, return the complete study instead, which needs no other file.

    Raises:
        UsageError: ``[cluster]`` is not a table with a line of its own.
    """
    path = workspace.file
    if workspace.parents:
        study, said = read_study(str(path))
        if study.cluster != Cluster():
            left_out.append(f"{path}: the table [cluster]")
        return complete_text(replace(study, cluster=Cluster()), said)
    text, kept, in_cluster = path.read_bytes().decode("utf-8"), list[str](), False
    content = tomllib.loads(text)
    if "cluster" not in content:
        return text
    for line in text.splitlines(keepends=True):
        if header := re.match(r"\s*\[\[?\s*([\w-]+)", line):
            in_cluster = header[1] == "cluster"
            while in_cluster and kept and kept[-1].lstrip().startswith("#"):
                kept.pop()
        if not in_cluster:
            kept.append(line)
    rest = "".join(kept)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(rest) == {key: value for key, value in content.items() if key != "cluster"}:
            left_out.append(f"{path}: the table [cluster], and comments above it")
            return rest
    raise UsageError(f"{path}: key cluster: write it as a table [cluster], which `pack` can leave out")


def _left_out(workspace: Workspace, results: list[TrialResult], include_stale: bool) -> list[str]:
    """Return a line for each trial and base test that is not packed, but one for all missing trials.

    Raises:
        MissingError: there is no trial to pack.
    """
    rest = [(trial, row) for trial, row in zip(workspace.trials(), results, strict=True) if not row.measured]
    counts = Counter(row.status for _, row in rest)
    if len(rest) == len(results):
        found = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        more = "; --include-stale takes complete ones" if counts["stale"] and not include_stale else ""
        why = f"`{workspace.command('status')}` says why"
        raise MissingError(f"study {workspace.study.label}: no trial to pack: {found}{more}; {why}")
    lines = [
        *base_damages(workspace),
        *explanations(trial_state(trial) for trial, _ in rest),
        *(f"{row.name} is running" for _, row in rest if row.status == "running"),
    ]
    if counts["missing"]:
        lines.append(f"{counts['missing']} of {len(results)} trials are missing or not complete")
    return lines


def _runs(
    workspace: Workspace, results: list[TrialResult], include_stale: bool
) -> Iterator[tuple[Run, list[Entry]]]:
    """Yield each base test and trial to pack, with its files.

    Merged models are left out, because they can be built again.
    """

    def packed(name: str, folder: Path, records: dict[Path, Record]) -> tuple[Run, list[Entry]]:
        kept: dict[Path, KeptFile] = {path: keep(path) for path in records}
        for record in records.values():
            if record.stage != "merge":
                kept |= {folder / each: file for each, file in record.files.items()}
        entries = [_file(path, _name(path, workspace.runs), file) for path, file in kept.items()]
        return Run(name, list(records.values()), [entry.name for entry in entries]), entries

    for model in workspace.study.models:
        counted = counted_base_tests(workspace, model, include_stale=include_stale)
        for test in workspace.base_tests(model):
            if test.number in counted:
                yield packed(test.name, test.record.parent, {test.record: counted[test.number][0]})
    for trial, row in zip(workspace.trials(), results, strict=True):
        if row.measured:
            records = {}
            for stage in trial.stages:
                path = trial.record(stage)
                if stage == "benchmark" and not row.benchmarks:
                    continue
                record, damage = stage_record(path, trial.name, stage)
                if record is None:  # it was valid when the results were collected
                    raise MissingError(f"{damage or path}: changed while it was packed; pack again")
                records[path] = record
            yield packed(trial.name, trial.folder, records)


def _check_collected(workspace: Workspace, results: list[TrialResult], include_stale: bool) -> None:
    """Check that the collected results, from which tables were made, are those of the records."""
    path = workspace.results
    if path.exists() and repr(read_results(path)) != repr(results):  # repr, because NaN is not equal to NaN
        command = workspace.command("collect", *(["--include-stale"] if include_stale else []))
        remedy = f"run `{command}`, then pack again"
        raise MissingError(str(advised(workspace, f"{path}: differs from the records", remedy)))


def _name(path: Path, runs: Path) -> str:
    return f"runs/{path.relative_to(runs).as_posix()}"


def _file(path: Path, name: str, kept: KeptFile | None = None) -> Entry:
    if path.is_symlink() or not path.is_file():
        raise MissingError(f"{path}: not a regular file; replace it by the file itself, and pack again")
    if not is_known(name):
        raise MissingError(f"{path}: an archive cannot have a file of this name; rename it")
    return Entry(name, path, kept or keep(path))


def _of_kit(license: str) -> Iterator[Entry]:
    """Yield lock files of packages, citation and license; none if the kit does not run from a checkout."""
    paths = [ROOT / "CITATION.cff", *sorted((ROOT / "lockfiles").glob("*.txt"))]
    for path in [*paths, ROOT / "LICENSE"] if license == KIT_LICENSE else paths:
        if path.is_file():
            yield _file(path, path.relative_to(ROOT).as_posix())


def _attributions(workspace: Workspace, left_out: list[str]) -> Iterator[Entry]:
    """Yield the measurements of attribution experiments, without their trials."""
    for path in sorted(workspace.runs.glob(f"{workspace.study.label}@attribute*/*/*/attribution*.json")):
        try:
            read_measured(path)
            yield _file(path, _name(path, workspace.runs))
        except KitError as error:
            left_out.append(str(error))


def _self_tests(workspace: Workspace, packed: Sequence[Run]) -> Iterator[Entry]:
    """Yield the self-tests of the machines whose records are packed."""
    paths = {
        self_test_file(workspace.runs, record.fingerprint)
        for run in packed
        for record in run.records
        if self_test_of(workspace.runs, record.fingerprint) is not None
    }
    yield from (_file(path, _name(path, workspace.runs)) for path in sorted(paths))
