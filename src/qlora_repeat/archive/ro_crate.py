"""The description of an archive: an RO-Crate, which machines of data repositories read.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the profile Process Run Crate 0.5: each file with its size
and SHA-256, and each trial as an action, which took a base, data and the study file, and left its records,
trace and adapter. All of it follows from the records and the study; there is no clock in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from qlora_repeat import __version__
from qlora_repeat.archive.zip_file import CRATE, SUMS
from qlora_repeat.records.record import KeptFile, Record
from qlora_repeat.results.published import CITATION, DOI
from qlora_repeat.study.data_sources import Base, Data
from qlora_repeat.study.study import Study
from qlora_repeat.system.files import json_text, parse_json
from qlora_repeat.system.fingerprint import device_name, software_names

_VERSION = "1.1"
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_PAPER = f"https://doi.org/{DOI}"
_TYPES = {
    "cff": "text/yaml",
    "csv": "text/csv",
    "html": "text/html",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "lock": "application/json",
    "md": "text/markdown",
    "pdf": "application/pdf",
    "png": "image/png",
    "safetensors": "application/octet-stream",
    "svg": "image/svg+xml",
    "tex": "application/x-tex",
    "toml": "application/toml",
}
"""Media types by suffix; of any other file it is text. Python's table would have the machine's in it."""


@dataclass(frozen=True)
class Run:
    """A trial, or a test of a base, with what it left."""

    name: str
    """``model/optimizer/number``, or ``model/base/number``."""
    records: list[Record]
    """In the order of their stages."""
    files: list[str]
    """Their names in the archive."""

    @property
    def model(self) -> str:
        return self.name.partition("/")[0]

    @property
    def finished(self) -> str:
        return max(record.finished for record in self.records)


def crate_text(
    study: Study,
    study_file: str,
    files: Mapping[str, KeptFile],
    runs: Sequence[Run],
    license: str,
    authors: Sequence[str],
) -> str:
    """The description of an archive with these files, of which `study_file` is one, as JSON-LD.

    `license` is an SPDX identifier. The archive counts as published on the day when the last stage ended.
    """
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version=_VERSION)
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"
    for name, kept in sorted(files.items()):
        crate.add_file(dest_path=name, properties=_file(name, kept))
    crate.add_file(dest_path=SUMS, properties={"name": SUMS, "encodingFormat": "text/plain"})
    _add_sources(crate, study, runs)
    root: dict[str, Any] = {
        "name": f"{study.title} ({study.label}): repeated trials of fine-tuning with QLoRA",
        "description": _description(study, runs),
        "datePublished": max(run.finished for run in runs)[:10],
        "license": _add(
            crate,
            f"https://spdx.org/licenses/{license}",
            "CreativeWork",
            name=license,
            description="Of records, traces, results and tables. Adapters were made from base models, whose "
            "licenses may bind them too.",
        ),
        "conformsTo": _add(crate, _PROFILE, "CreativeWork", name="Process Run Crate", version="0.5"),
        "citation": _add(
            crate,
            _PAPER,
            "ScholarlyArticle",
            name="Repeatability of Fine-Tuning Large Language Models Illustrated Using QLoRA",
            identifier=_PAPER,
            description=f"The paper whose study this repeats: {CITATION}.",
        ),
        "keywords": ["reproducibility", "repeatability", "QLoRA", "fine-tuning", "large language models"],
        "mentions": _add_actions(crate, study, study_file, runs),
    }
    if authors:
        root["author"] = [_add(crate, f"#author/{quote(name)}", "Person", name=name) for name in authors]
    for key, value in root.items():
        crate.root_dataset[key] = _compact(value)
    return json_text(crate.metadata.generate())


def _add(crate: Any, name: str, kind: str, /, **properties: Any) -> dict[str, str]:
    """Adds what is no file, and refers to it."""
    from rocrate.model.contextentity import ContextEntity

    told = {key: _compact(value) for key, value in properties.items()}
    crate.add(ContextEntity(crate, name, properties={"@type": kind, **told}))
    return {"@id": name}


def _compact(value: Any) -> Any:
    """One value, where there is only one; as RO-Crate recommends."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _add_sources(crate: Any, study: Study, runs: Sequence[Run]) -> None:
    """Adds what the runs started from: bases and data, which are not in the archive."""
    models = {run.model: study.models[run.model] for run in runs}
    for name in dict.fromkeys(model.base for model in models.values()):
        source, digests = _of_base(study.bases[name]), _digests(study, runs, "base", name)
        _add(crate, f"#base/{name}", "CreativeWork", name=f"base model {name}", **_absent(source, digests))
    for name in dict.fromkeys(model.data for model in models.values()):
        source, digests = _of_data(study.data[name]), _digests(study, runs, "data", name)
        _add(crate, f"#data/{name}", "CreativeWork", name=f"data {name}", **_absent(source, digests))


def _add_actions(crate: Any, study: Study, study_file: str, runs: Sequence[Run]) -> list[dict[str, str]]:
    """Adds each run as an action, and the software of all, and refers to the actions."""
    software = list(dict.fromkeys(_software(run) for run in runs))
    for number, (commit, packages) in enumerate(software, 1):
        _add(
            crate,
            f"#software-{number}",
            "SoftwareApplication",
            name="qlora-repeat",
            description=f"A reproducibility kit for QLoRA fine-tuning, at {commit}, with {packages}. Its "
            "version is that of the kit which made this archive.",
            softwareVersion=__version__,
            identifier=commit,
        )
    actions = []
    for run in runs:
        model = study.models[run.model]
        used = [f"#base/{model.base}", f"#data/{model.data}", quote(study_file)]
        action = _add(
            crate,
            f"#run/{run.name}",
            "CreateAction",
            name=_titled(run),
            description=f"{', '.join(record.stage for record in run.records)}: on {_device(run)}",
            startTime=min(record.started for record in run.records),
            endTime=run.finished,
            instrument={"@id": f"#software-{1 + software.index(_software(run))}"},
            object=[{"@id": each} for each in used],
            result=[{"@id": quote(name)} for name in run.files],
        )
        actions.append(action)
    return actions


def check_crate(content: bytes, files: Mapping[str, KeptFile]) -> None:
    """Checks that a description is of exactly these files; it may be anybody's.

    Raises:
        ValueError: it is not; names the first file.
    """
    described: dict[str, Any] = {}
    for entity in _graph(parse_json(content)):
        kinds = entity.get("@type")
        if kinds == "File" or (isinstance(kinds, list) and "File" in kinds):
            name = unquote(str(entity.get("@id")))
            if name in described:
                raise ValueError(f"{CRATE} describes {name!r:.100} twice")
            described[name] = entity
    if apart := described.keys() ^ (files.keys() - {CRATE}):
        where = "describes, and it is not there" if min(apart) in described else "does not describe"
        raise ValueError(f"{min(apart)!r:.100} is a file that {CRATE} {where}")
    for name, entity in described.items():
        told = (entity.get("sha256"), entity.get("contentSize"))
        if name != SUMS and told != (files[name].sha256, str(files[name].bytes)):
            raise ValueError(f"{CRATE} says otherwise of {name} than it is")


def _graph(content: Any) -> list[dict[str, Any]]:
    graph = content.get("@graph") if isinstance(content, dict) else None
    if not isinstance(graph, list) or not all(isinstance(entity, dict) for entity in graph):
        raise ValueError(f"{CRATE} has no @graph of entities")
    return graph


def _file(name: str, kept: KeptFile) -> dict[str, Any]:
    return {
        "name": name,
        "contentSize": str(kept.bytes),
        "encodingFormat": _TYPES.get(name.rpartition(".")[2], "text/plain"),
        "sha256": kept.sha256,
    }


def _absent(source: str, digests: list[str]) -> dict[str, Any]:
    told = f"From: {source}. Not in this archive. Its identifier is the digest that records have of it."
    return {"description": told, **({"identifier": digests} if digests else {})}


def _of_base(base: Base) -> str:
    if base.hub is not None:
        return f"{base.hub.repository} on the hub, revision {base.hub.revision}"
    if base.gguf is not None:
        return f"{base.gguf.file} of the package {base.gguf.package}"
    return "the kit, which pretrains it"


def _of_data(data: Data) -> str:
    if data.hub is not None:
        return f"{data.hub.repository} on the hub, revision {data.hub.revision}"
    return data.source


def _digests(study: Study, runs: Sequence[Run], key: str, name: str) -> list[str]:
    """The digests that records have of a base, or of data."""
    found = {
        record.inputs.get(key)
        for run in runs
        if getattr(study.models[run.model], key) == name
        for record in run.records
    }
    return sorted(str(digest) for digest in found if digest is not None)


def _software(run: Run) -> tuple[str, str]:
    """The kit's commit, and packages, in words."""
    found = run.records[0].fingerprint
    commit = f"commit {found['commit']}" if found.get("commit") else "no recorded commit"
    return commit + (" and other changes" if found.get("dirty") else ""), software_names(found)


def _device(run: Run) -> str:
    return device_name(run.records[0].fingerprint)


def _titled(run: Run) -> str:
    model, kind, number = run.name.split("/")
    return f"Test {number} of the base of {model}" if kind == "base" else f"Trial {run.name}"


def _description(study: Study, runs: Sequence[Run]) -> str:
    trials = sum(run.name.split("/")[1] != "base" for run in runs)
    asked = len(study.models) * len(study.optimizers) * study.trials
    return (
        f"{trials} of {asked} trials of study {study.label}, in randomness profile {study.profile}: records, "
        "traces, adapters, collected results, tables and figures, lock files and the study file, as "
        "`qlora-repeat pack` collects them. Base models and data are named by digest, and not in it; nor are "
        "merged models, which are built from base and adapter. The kit's documents say more."
    )
