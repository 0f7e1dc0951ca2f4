"""What of a study goes into its archive: what its records vouch for, and what is made of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import json_text
from qlora_repeat.system.hashing import file_digest, json_digest
from qlora_repeat.system.package_data import ROOT, kit_path

KIT_LICENSE = "Apache-2.0"
"""Whose text is the kit's LICENSE."""


@dataclass(frozen=True)
class Packed:
    """An archive that was written."""

    trials: int
    files: int
    sha256: str
    """Of the archive: what to cite it by."""
    left_out: list[str]
    """A line for whatever of the study is not in it, though one might expect it."""
    telling: list[str]
    """A line for each file in it that names a folder of this machine."""


@dataclass(frozen=True)
class _Chosen:
    """The trials and tests of bases that go into an archive, and their files."""

    results: list[TrialResult]
    runs: list[Run]
    entries: list[Entry]
    left_out: list[str]


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
    """Writes the archive of a study: the same bytes for the same records, study, tables and kit.

    Those trials are in it whose values `collect` takes: they are done, or with `include_stale` stale and
    complete. Of a trial there are its records, trace and adapter; logs, locks and notes of failures, which
    may tell of hosts and users, stay where they are.

    Raises:
        MissingError: no trial is done; the collected results are not what the records give, or a table is of
            other results; a file is a link, or changes while it is read.
    """
    study, runs = workspace.study, workspace.runs
    chosen = _choose(workspace, include_stale)
    _check_collected(workspace, chosen.results, include_stale)
    _check_tables(tables, chosen.results)
    named, left_out = f"studies/{study.name}.toml", list(chosen.left_out)
    entries = [
        *chosen.entries,
        _in_runs(workspace.results, runs, results_text(chosen.results)),
        _in_runs(workspace.statistics, runs, statistics_text(group_arms(chosen.results))),
        _file(workspace.file, named),
        *_of_kit(license),
        text_entry("fingerprints.json", _fingerprints(chosen.runs)),
        text_entry("README.md", _readme(study)),
    ]
    if (pins := lock_file(workspace).current).is_file():
        entries.append(_file(pins, f"studies/{study.name}.lock"))
    for found in (_attributions(workspace, left_out), _tables(tables, left_out)):
        entries += found
    files = {entry.name: entry.kept for entry in entries}
    entries.append(text_entry(CRATE, crate_text(study, named, files, chosen.runs, license, authors)))
    telling = list(_telling(entries, [Path.home(), runs.absolute(), workspace.cache.absolute()]))
    write_archive(path, entries, report)
    trials = sum(row.measured for row in chosen.results)
    return Packed(trials, len(entries) + 1, file_digest(path), left_out, telling)


def _choose(workspace: Workspace, include_stale: bool) -> _Chosen:
    study, runs = workspace.study, workspace.runs
    results = collect(workspace, include_stale=include_stale)
    found: list[tuple[Run, list[Entry]]] = []
    for model in study.models:
        told = counted_base_tests(workspace, model, include_stale=include_stale)
        for test in workspace.base_tests(model):
            if test.number in told:
                records = {test.record: told[test.number][0]}
                found.append(_run(test.name, records, test.record.parent, runs))
    rest: list[Trial] = []
    for trial, row in zip(workspace.trials(), results, strict=True):
        if row.measured:
            found.append(_run(trial.name, _records(trial), trial.folder, runs))
        else:
            rest.append(trial)
    left = Counter(row.status for row in results if not row.measured)
    if sum(left.values()) == len(results):
        counted = ", ".join(f"{count} {state}" for state, count in sorted(left.items()))
        more = (
            "; --include-stale takes those that are complete" if left["stale"] and not include_stale else ""
        )
        raise MissingError(
            f"study {study.label}: no trial to pack: {counted}{more}; `qlora-repeat status` says why"
        )
    running = [row for row in results if row.status == "running"]
    left_out = [
        *base_damages(workspace),
        *explanations(map(trial_state, rest)),
        *(f"{row.model}/{row.optimizer}/{row.trial} is running" for row in running),
    ]
    if left["missing"]:
        left_out.append(f"{left['missing']} of {len(results)} trials are missing, or not complete")
    return _Chosen(
        results, [run for run, _ in found], [each for _, entries in found for each in entries], left_out
    )


def _records(trial: Trial) -> dict[Path, Record]:
    found = {}
    for stage in STAGES:
        record, damage = stage_record(trial.record(stage), trial.name, stage)
        if record is None:  # it was whole when the results were collected
            raise MissingError(f"{damage or trial.record(stage)}: gone while it was packed; pack again")
        found[trial.record(stage)] = record
    return found


def _run(name: str, records: dict[Path, Record], folder: Path, runs: Path) -> tuple[Run, list[Entry]]:
    """A run with its records and the files that they name, but for a merged model: it can be built again."""
    kept: dict[Path, KeptFile] = {path: keep(path) for path in records}
    for record in records.values():
        if record.stage != "merge":
            kept |= {folder / each: file for each, file in record.files.items()}
    entries = [_file(path, _name(path, runs), file) for path, file in kept.items()]
    return Run(name, list(records.values()), [entry.name for entry in entries]), entries


def _check_collected(workspace: Workspace, results: list[TrialResult], include_stale: bool) -> None:
    """Whether the results that lie beside the records, and that tables are made of, are theirs."""
    path = workspace.results
    if path.exists() and repr(read_results(path)) != repr(results):  # by repr, for NaN is not NaN
        option = " --include-stale" if include_stale else ""
        raise MissingError(
            f"{path}: not what the records give now; run `qlora-repeat collect{option}` for this study, and "
            "what makes its tables, and then pack again"
        )


def _check_tables(folder: Path, results: list[TrialResult]) -> None:
    """Whether tables are what these results give: they follow from them, byte for byte."""
    from qlora_repeat.render.tables.paper_tables import make_tables
    from qlora_repeat.render.tables.write import table_texts

    templates = kit_path("paper/templates")
    if not templates.is_dir() or not folder.is_dir():
        return
    for table in make_tables(group_arms(results)):
        for name, text in table_texts(table, templates).items():
            if (folder / name).is_file() and (folder / name).read_bytes() != text.encode():
                raise MissingError(
                    f"{folder / name}: not what the collected results give; run `qlora-repeat tables` and "
                    "what else makes files there, and pack again"
                )


def _name(path: Path, runs: Path) -> str:
    return f"runs/{path.relative_to(runs).as_posix()}"


def _in_runs(path: Path, runs: Path, text: str) -> Entry:
    return text_entry(_name(path, runs), text)


def _file(path: Path, name: str, kept: KeptFile | None = None) -> Entry:
    if path.is_symlink() or not path.is_file():
        raise MissingError(f"{path}: not a plain file; put the file itself in its place, and pack again")
    if not is_known(name):
        raise MissingError(f"{path}: an archive has no place for a file of this name; rename it")
    return Entry(name, path, kept or keep(path))


def _of_kit(license: str) -> Iterator[Entry]:
    """Yield the lock files of packages, and how to cite the kit and the paper; none outside of a checkout."""
    wanted = [ROOT / "CITATION.cff", *sorted((ROOT / "lockfiles").glob("*.txt"))]
    if license == KIT_LICENSE:
        wanted.append(ROOT / "LICENSE")
    for path in wanted:
        if path.is_file():
            yield _file(path, path.relative_to(ROOT).as_posix())


def _attributions(workspace: Workspace, left_out: list[str]) -> Iterator[Entry]:
    """What experiments on the study measured; not the trials that they ran for it."""
    for path in sorted(workspace.runs.glob(f"{workspace.study.label}@attribute*/*/*/attribution*.json")):
        try:
            read_measured(path)
            yield _file(path, _name(path, workspace.runs))
        except KitError as error:
            left_out.append(str(error))


def _tables(folder: Path, left_out: list[str]) -> Iterator[Entry]:
    """Tables, figures and reports; without hidden files, and what LaTeX leaves."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        name = f"tables/{path.relative_to(folder).as_posix()}"
        if path.is_symlink() or not path.is_file() or not is_known(name):
            left_out.append(f"{path}: neither a table, nor a figure or a report")
        else:
            yield _file(path, name)


def _telling(entries: Sequence[Entry], folders: Sequence[Path]) -> Iterator[str]:
    """Records, results and tables name no folder, unless a study file or an older kit put one there."""
    names = [f"{folder}/".encode() for folder in folders if folder != Path("/")]
    for entry in entries:
        if not entry.name.endswith((".pdf", ".png", ".safetensors")):
            content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
            if any(name in content for name in names):
                yield f"{entry.name} names a folder of this machine"


def _fingerprints(runs: Sequence[Run]) -> str:
    """The machines and software that records tell of, each once, with the runs that it is of."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for record in run.records:
            digest = json_digest(record.fingerprint)
            own = found.setdefault(digest, {"fingerprint": record.fingerprint, "stages": []})
            own["stages"].append(f"{run.name}: {record.stage}")
    return json_text(list(found.values()))


def _readme(study: Study) -> str:
    label = study.label
    return f"""# Study {label}, packed by qlora-repeat {__version__}

Repeated trials of fine-tuning with QLoRA: what went into each, and what came out.

| where | what |
|---|---|
| `runs/{label}/MODEL/OPTIMIZER/trial-N/` | a trial: a record of each stage, its trace, its adapter |
| `runs/{label}/MODEL/base/` | tests of the base, before fine-tuning |
| `runs/{label}/results.jsonl` | collected results, a row for each trial |
| `tables/` | tables, figures and reports of these results, if there were any |
| `studies/` | the study file, and the commits and bytes of the repositories that it names |
| `lockfiles/` | packages, by version and hash |
| `fingerprints.json` | machines and software, from the records |
| `ro-crate-metadata.json` | all of this for machines, as an RO-Crate |

To check that the files are those that were packed, in this folder:

    sha256sum -c SHA256SUMS

To check the same and more with the kit, and to run a trial again from its records:

    qlora-repeat check ARCHIVE.zip
    qlora-repeat unpack ARCHIVE.zip --to FOLDER
    qlora-repeat verify FOLDER/runs/{label}/MODEL/OPTIMIZER/trial-N

Whoever packed it could have written anything into it: checksums tell that files are whole, and only a trial
that is run again tells whether they are true.
"""
