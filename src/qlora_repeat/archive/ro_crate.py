"""Describe an archive as an RO-Crate, which data repositories read.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the profile Process Run Crate 0.5: each file with its size
and SHA-256, and each trial as an action, which used a base model, data and the study file, and left its
records, trace and adapter. Everything follows from the records and the study, not from the clock.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
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

Entity = dict[str, Any]
"""A thing that a crate describes, as JSON-LD."""

_DATA = Path(__file__).with_name("ro_crate.json.template")
"""Media types by suffix (those of Python depend on the machine), and the entities that all crates have."""

_UNKNOWN: Entity = {
    "@id": "#license/unknown",
    "@type": "CreativeWork",
    "name": "unknown license",
    "description": "Whoever packed these data did not state a license: ask before you use or publish them.",
}


@dataclass(frozen=True)
class Run:
    """A trial or a test of a base, with its records and files."""

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
    def is_base_test(self) -> bool:
        return self.name.split("/")[1] == "base"

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
    """Return the description of an archive with these files, among them `study_file`, as JSON-LD.

    `license` is an SPDX identifier. The date of publication is the day on which the last stage ended.
    """
    from rocrate.rocrate import ROCrate

    values = {"license": license, "doi": DOI, "citation": CITATION, "version": __version__}
    fixed = json.loads(Template(_DATA.read_text(encoding="utf-8")).substitute(values))
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"
    for name, kept in sorted(files.items()):
        crate.add_file(
            dest_path=name,
            properties={
                "name": name,
                "contentSize": str(kept.bytes),
                "encodingFormat": fixed["media types"].get(name.rpartition(".")[2], "text/plain"),
                "sha256": kept.sha256,
                **({"license": {"@id": _UNKNOWN["@id"]}} if name.startswith("data/") else {}),
            },
        )
    crate.add_file(dest_path=SUMS, properties={"name": SUMS, "encodingFormat": "text/plain"})
    linked = {
        **{key: [entity] for key, entity in fixed["linked"].items()},
        "author": [_entity(f"#author/{quote(name)}", "Person", name=name) for name in dict.fromkeys(authors)],
        "mentions": [_action(study, study_file, run) for run in runs],
    }
    unknown = [_UNKNOWN] if any(name.startswith("data/") for name in files) else []
    for entities in (_sources(study, runs, files), [fixed["kit"]], unknown, *linked.values()):
        for entity in entities:
            crate.add_jsonld(dict(entity))
    trials = sum(not run.is_base_test for run in runs)
    planned = study.trial_count
    root = _entity(
        "./",
        "Dataset",
        name=f"{study.title} ({study.label}): repeated trials of fine-tuning with QLoRA",
        description=f"{trials} of {planned} trials of study {study.label}, in randomness profile "
        f"{study.profile}. {fixed['description']}",
        datePublished=max(run.finished for run in runs)[:10],
        keywords=fixed["keywords"],
        **{key: [{"@id": entity["@id"]} for entity in entities] for key, entities in linked.items()},
    )
    crate.update_jsonld(root)
    return json_text(crate.metadata.generate())


def _entity(name: str, kind: str, /, **properties: Any) -> Entity:
    """Return an entity; of a list with a single value, its value, as RO-Crate recommends; no empty lists."""
    known = {key: value for key, value in properties.items() if value != []}
    for key, value in known.items():
        if isinstance(value, list) and len(value) == 1:
            known[key] = value[0]
    return {"@id": name, "@type": kind, **known}


def _sources(study: Study, runs: Sequence[Run], files: Collection[str] = ()) -> Iterator[Entity]:
    """Yield the base models and data that the runs used, of which only data can be among the `files`."""
    digests: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key in ("base", "data"):
            own = digests.setdefault((key, getattr(study.models[run.model], key)), set())
            own |= {str(record.inputs[key]) for record in run.records if record.inputs.get(key) is not None}
    for (key, name), found in sorted(digests.items()):
        source = study.bases[name] if key == "base" else study.data[name]
        inside = [file for file in files if key == "data" and file.startswith(f"data/{name}/")]
        where = f"In this archive as {', '.join(sorted(inside))}" if inside else "Not in this archive"
        yield _entity(
            f"#{key}/{name}",
            "CreativeWork",
            name=f"{'base model' if key == 'base' else 'data'} {name}",
            description=f"From {_origin(source)}. {where}. The identifier is its digest in the records.",
            identifier=sorted(found),
        )


def _origin(source: Base | Data) -> str:
    if source.hub is not None:
        return f"{source.hub.repository} on the hub, revision {source.hub.revision}"
    if isinstance(source, Data):
        return source.source
    if source.folder is not None:
        return "a folder of whoever ran the study"
    if source.gguf is not None:
        package = source.gguf.package
        return (
            f"{source.gguf.file} of the package {package}" if package else "a file of whoever ran the study"
        )
    return "the kit, which pretrains it"


def _action(study: Study, study_file: str, run: Run) -> Entity:
    model, found = study.models[run.model], run.records[0].fingerprint
    commit = f"commit {found['commit']}" if found.get("commit") else "no recorded commit"
    changed = " and other changes" if found.get("dirty") else ""
    used = [f"#base/{model.base}", f"#data/{model.data}", quote(study_file)]
    stages = ", ".join(record.stage for record in run.records)
    return _entity(
        f"#run/{run.name}",
        "CreateAction",
        name=f"{'Base test' if run.is_base_test else 'Trial'} {run.name}",
        description=f"{stages}: on {device_name(found)}, with qlora-repeat at {commit}{changed} and "
        f"{software_names(found)}",
        startTime=min(record.started for record in run.records),
        endTime=run.finished,
        instrument={"@id": "#qlora-repeat"},
        object=[{"@id": each} for each in used],
        result=[{"@id": quote(name)} for name in run.files],
    )


def check_crate(content: bytes, files: Mapping[str, KeptFile]) -> None:
    """Check that a description of any origin describes exactly these files.

    Raises:
        ValueError: it does not; names the first file.
    """
    crate = parse_json(content)
    graph = crate.get("@graph") if isinstance(crate, dict) else None
    if not isinstance(graph, list) or not all(isinstance(entity, dict) for entity in graph):
        raise ValueError(f"{CRATE} has no @graph of entities")
    described: dict[str, Entity] = {}
    for entity in graph:
        kinds = entity.get("@type")
        if kinds == "File" or (isinstance(kinds, list) and "File" in kinds):
            name = unquote(str(entity.get("@id")))
            if name in described:
                raise ValueError(f"{CRATE} describes {name!r:.100} twice")
            described[name] = entity
    for name in sorted(described.keys() ^ (files.keys() - {CRATE})):
        wrong = "describes a file that is not there" if name in described else "does not describe a file"
        raise ValueError(f"{CRATE} {wrong}: {name!r:.100}")
    for name, entity in described.items():
        facts = (entity.get("sha256"), entity.get("contentSize"))
        if name != SUMS and facts != (files[name].sha256, str(files[name].bytes)):
            raise ValueError(f"{CRATE} gives another size or digest of {name}")
