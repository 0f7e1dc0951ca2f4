"""Pack a study into an archive: what its records vouch for, and the results and tables made from them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat import __version__
from qlora_repeat.analysis.attribution.measurements import read_measured
from qlora_repeat.archive.ro_crate import Run, crate_text
from qlora_repeat.archive.zip_file import CRATE, ByteReport, Entry, is_known, text_entry, write_archive
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.errors import KitError, MissingError
from qlora_repeat.records.record import KeptFile, Record, keep
from qlora_repeat.records.trial_state import base_damages, explanations, stage_record, trial_state
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.collect import collect, counted_base_tests
from qlora_repeat.results.study_statistics import statistics_text
from qlora_repeat.results.trial_result import TrialResult, read_results, results_text
from qlora_repeat.study.trial import STAGES
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.hashing import file_digest
from qlora_repeat.system.package_data import ROOT, kit_path

_README = Path(__file__).with_name("readme.md.template")
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
    local_paths: list[str]
    """The files that contain a path of this machine."""


def pack(
    workspace: Workspace,
    tables: Path,
    path: Path,
    report: ByteReport,
    *,
    include_stale: bool = False,
    license: str = KIT_LICENSE,
    authors: Sequence[str] = (),
) -> Packed:
    """Write the archive of a study: the same bytes for the same records, study, tables and kit.

    It includes the trials that `collect` gives values: done ones and, with `include_stale`, complete stale
    ones. It includes records, traces and adapters, but no logs, locks or failures, which may name hosts and
    users.

    Raises:
        MissingError: no trial is done; the collected results are not those of the records, or a table is not
            that of the results; a file is a link, or changes while it is read.
    """
    study, runs = workspace.study, workspace.runs
    results = collect(workspace, include_stale=include_stale)
    left_out = _left_out(workspace, results, include_stale)
    _check_collected(workspace, results, include_stale)
    _check_tables(tables, results)
    study_file = f"studies/{study.name}.toml"
    entries = [
        _file(workspace.file, study_file),
        text_entry(_name(workspace.results, runs), results_text(results)),
        text_entry(_name(workspace.statistics, runs), statistics_text(group_arms(results))),
        text_entry("README.md", _README.read_text("utf-8").format(label=study.label, version=__version__)),
        *_of_kit(license),
        *_attributions(workspace, left_out),
        *_tables(tables, left_out),
    ]
    if (pins := lock_file(workspace).current).is_file():
        entries.append(_file(pins, f"studies/{study.name}.lock"))
    packed: list[Run] = []
    for run, own in _runs(workspace, results, include_stale):
        packed.append(run)
        entries += own
    kept = {entry.name: entry.kept for entry in entries}
    entries.append(text_entry(CRATE, crate_text(study, study_file, kept, packed, license, authors)))
    local_paths = [entry.name for entry in entries if _is_local(entry, workspace)]
    write_archive(path, entries, report)
    trials = sum(row.measured for row in results)
    return Packed(trials, len(entries) + 1, file_digest(path), left_out, local_paths)


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
        raise MissingError(
            f"study {workspace.study.label}: no trial to pack: {found}{more}; `qlora-repeat status` says why"
        )
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
            for stage in STAGES:
                path = trial.record(stage)
                record, damage = stage_record(path, trial.name, stage)
                if record is None:  # it was valid when the results were collected
                    raise MissingError(f"{damage or path}: changed while it was packed; pack again")
                records[path] = record
            yield packed(trial.name, trial.folder, records)


def _check_collected(workspace: Workspace, results: list[TrialResult], include_stale: bool) -> None:
    """Check that the collected results, from which tables are made, are those of the records."""
    path = workspace.results
    if path.exists() and repr(read_results(path)) != repr(results):  # repr, because NaN is not equal to NaN
        option = " --include-stale" if include_stale else ""
        raise MissingError(
            f"{path}: differs from the records; run `qlora-repeat collect{option}` for this study, make its "
            "tables again, then pack again"
        )


def _check_tables(folder: Path, results: list[TrialResult]) -> None:
    """Check that tables are those of the results, byte for byte."""
    from qlora_repeat.render.tables.paper_tables import make_tables
    from qlora_repeat.render.tables.write import table_texts

    templates = kit_path("paper/templates")
    for table in make_tables(group_arms(results)) if folder.is_dir() else []:
        for name, text in table_texts(table, templates).items():
            if (folder / name).is_file() and (folder / name).read_bytes() != text.encode():
                raise MissingError(
                    f"{folder / name}: differs from the collected results; run `qlora-repeat tables` and "
                    "whatever else writes files there, then pack again"
                )


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


def _tables(folder: Path, left_out: list[str]) -> Iterator[Entry]:
    """Yield tables, figures and reports, without hidden files and LaTeX's by-products."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        name = f"tables/{path.relative_to(folder).as_posix()}"
        if path.is_symlink() or not path.is_file() or not is_known(name):
            left_out.append(f"{path}: not a table, figure or report")
        else:
            yield _file(path, name)


def _is_local(entry: Entry, workspace: Workspace) -> bool:
    """Return whether a text contains a path of this machine, as from a study file or an older kit."""
    if entry.name.endswith((".pdf", ".png", ".safetensors")):
        return False
    content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
    folders = {Path.home(), workspace.runs.absolute(), workspace.cache.absolute()} - {Path("/")}
    return any(f"{folder}/".encode() in content for folder in folders)
