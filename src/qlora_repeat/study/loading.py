"""Find, read and check study files; apply what follows @ in a study's name; open a workspace."""

import contextlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import PackageFile
from qlora_repeat.study.old_spelling import respelled, respelled_part
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.study import PUBLISHED, FrozenWeights, Study
from qlora_repeat.study.toml_file import read_toml
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.study.workspace import ARCHIVE_MARK, Workspace
from qlora_repeat.system.package_data import in_wheel, kit_path

_STUDIES = Path("studies")


def study_folders() -> list[Path]:
    """Return the folders to search for a study: the current one, ``studies``, the kit's ``studies``."""
    here, kit = [Path(), _STUDIES], kit_path("studies")
    return here if _STUDIES.resolve() == kit.resolve() else [*here, kit]


def known_studies() -> dict[str, Path]:
    """Return the file of each study that can be given by name."""
    found: dict[str, Path] = {}
    for folder in study_folders():
        for path in sorted(folder.glob("*.toml")):
            if folder != Path() or _has_models(path):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def _has_models(path: Path) -> bool:
    """Return whether a TOML file may be a study; the current folder can contain other TOML files."""
    try:
        return "models" in read_toml(path)
    except (OSError, UsageError):
        return False


def study_path(study: str) -> Path:
    """Return the file of a study given by name (``pocket``); a path (``elsewhere/mine.toml``) stays as it is.

    Raises:
        MissingError: no folder has it; the message lists the folders and the known studies.
    """
    name = split_name(study)[0]
    if name.endswith(".toml"):
        return Path(name)
    candidates = [folder / f"{name}.toml" for folder in study_folders()]
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.exists():
                return path
    raise _no_such(f"{name}: no such study file; looked for {', '.join(map(str, candidates))}")


def _no_such(message: str) -> MissingError:
    return MissingError(f"{message}; there are {', '.join(known_studies()) or 'none'}")


def split_name(study: str) -> tuple[str, list[str]]:
    """Return the name or path of a study's file, and the parts after each @."""
    folder, slash, last = study.rpartition("/")
    name, *parts = last.split("@")
    return folder + slash + name, parts


def portable_name(study: str) -> str:
    """Return the study's name for others: without the folder, and without .toml if it is in ``studies``."""
    path, parts = study_path(study), split_name(study)[1]
    inside = path.resolve().parent in (_STUDIES.resolve(), kit_path("studies").resolve())
    return "@".join([path.stem if inside else path.name, *parts])


def load_study(study: str) -> Study:
    """Read and check a study file.

    Parts after @ change the study: ``paper@bitwise`` selects another profile of randomness;
    ``paper@adamw-8bit`` keeps one optimizer; ``paper@5-steps-8-rows`` is a short trial with at most 5
    optimizer steps, on the first 8 rows of each part of the data; ``paper@materialized`` sets the frozen
    weights. Parts can be combined in any order.

    Raises:
        MissingError: there is no such file.
        UsageError: the file is not TOML; a key is unknown, missing or out of range; a part after @ is
            unknown; or the study has the name of the paper's numbers.
    """
    name, parts = split_name(study)
    if Path(name).name.removesuffix(".toml") == PUBLISHED:
        raise UsageError(
            f"{study}: this name stands for the paper's numbers, which only `tables` and `paper` accept; "
            "give the study another name"
        )
    path = study_path(study)
    try:
        content = respelled(read_toml(path))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_such(f"{path}: no such study file") from None
    try:
        # As JSON: there, strict mode turns tables into dataclasses, but no string into a number.
        as_json = json.dumps(_with_shared_training(_with_named_optimizers(content)), default=_refuse)
        loaded = TypeAdapter(Study).validate_json(as_json)
    except ValidationError as error:
        raise UsageError(f"{path}: {validation_message(error, _known_keys())}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if loaded.name != path.stem:  # otherwise a copy of a file would overwrite the original's results
        raise UsageError(f"{path}: key name: expected the file's name, {path.stem!r} (found {loaded.name!r})")
    return _varied(_with_own_files(loaded, path.parent), parts)


def _with_own_files(study: Study, folder: Path) -> Study:
    """Return the study with the paths of the user's own files, which are relative to the study file."""

    def found(file: PackageFile | None) -> PackageFile | None:
        own = file is not None and file.package is None
        return replace(file, file=str(folder / file.file)) if file is not None and own else file

    return replace(
        study,
        bases={
            name: replace(base, gguf=found(base.gguf), tokenizer=found(base.tokenizer))
            for name, base in study.bases.items()
        },
        data={name: replace(data, file=found(data.file)) for name, data in study.data.items()},
    )


def _varied(study: Study, parts: list[str]) -> Study:
    """Return the study changed by the parts after @ in its name."""
    chosen: dict[str, set[str]] = {"profile": set(), "optimizers": set(), "weights": set(), "cut": set()}
    known = {
        "profile": study.profiles,
        "optimizers": get_args(OptimizerName),
        "weights": get_args(FrozenWeights),
    }
    for part in map(respelled_part, parts):
        chosen[next((kind for kind, values in known.items() if part in values), "cut")].add(part)
    if max(map(len, chosen.values())) > 1:
        raise UsageError(
            f"study {'@'.join([study.name, *parts])}: give at most one profile, one optimizer, one cut and "
            "one kind of frozen weights"
        )
    changed = []
    for kind, part in ((kind, part) for kind, given in chosen.items() for part in given):
        value: Any = [part] if kind == "optimizers" else part
        if kind == "cut":
            study = _cut_short(study, part)
        elif getattr(study, kind) != value:
            study = replace(study, **{kind: value})
        else:
            continue
        changed.append(part)
    return replace(study, variant="@".join(changed))


def _cut_short(study: Study, variant: str) -> Study:
    number = "([1-9][0-9]{0,8})"
    found = re.fullmatch(rf"{number}-steps(?:-{number}-rows)?|{number}-rows", variant)
    if found is None:
        raise UsageError(
            f"study {study.name}@{variant}: expected after @: a profile of randomness "
            f"({', '.join(study.profiles)}), an optimizer ({', '.join(get_args(OptimizerName))}), "
            f"frozen weights ({', '.join(get_args(FrozenWeights))}), "
            "or N-steps, N-rows or N-steps-N-rows to cut the study short"
        )
    steps, rows = int(found[1] or 0), int(found[2] or found[3] or 0)  # 0: no limit
    models, data = dict(study.models), dict(study.data)
    for name, model in study.models.items() if steps else ():
        limit = min(steps, model.training.max_steps or steps)
        models[name] = replace(model, training=replace(model.training, max_steps=limit))
    for name, dataset in study.data.items() if rows else ():
        data[name] = replace(dataset, max_rows=min(rows, dataset.max_rows or rows))
    return replace(study, models=models, data=data)


def _refuse(value: object) -> None:
    raise ValueError(f"{value}: expected a string, number, list or table")


def _with_shared_training(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with a complete table ``training`` for every model."""
    shared = content.pop("training", {})
    models = content.get("models")
    if isinstance(shared, dict) and isinstance(models, dict):
        for model in models.values():
            if isinstance(model, dict) and isinstance(model.get("training", {}), dict):
                own = model.get("training", {})
                other = {"steps": "epochs", "epochs": "steps"}
                kept = {key: value for key, value in shared.items() if other.get(key) not in own}
                model["training"] = kept | own
    return content


def _with_named_optimizers(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the name of each optimizer that has a ``state_map``."""
    if not isinstance(content.get("optimizers"), list):
        return content
    names = []
    for place, table in enumerate(content["optimizers"]):
        if isinstance(table, dict) and sorted(table) != ["optimizer", "state_map"]:
            raise ValueError(f"optimizers.{place}: give optimizer and state_map, or only a name")
        names.append(f"{table['optimizer']}+{table['state_map']}" if isinstance(table, dict) else table)
    return content | {"optimizers": names}


def _known_keys() -> list[str]:
    """Return the keys of a study file and of all its tables."""
    schema = TypeAdapter(Study).json_schema()
    tables = [schema, *schema["$defs"].values()]
    return sorted({key for table in tables for key in table.get("properties", {})})


def open_workspace(given: str, *, runs: Path | None = None, cache: Path | None = None) -> Workspace:
    """Load a study by name or path, with its folders and lock file.

    By default, results are in $QLORA_REPEAT_RUNS or ``runs``, and models and data in `cache_folder`. The lock
    file is next to the study file, or in the current folder for a study of an installed kit.
    $QLORA_REPEAT_LOCK names another file, or another folder if it ends in a slash. A study that came in an
    archive always has the lock file of the archive, so that it cannot add to the user's.

    Raises:
        MissingError, UsageError: as `load_study`.
    """
    study, file = load_study(given), study_path(given)
    lock, from_archive = file.with_suffix(".lock"), came_in_archive(file)
    if in_wheel(file):
        lock = Path(lock.name)
    elsewhere = os.environ.get("QLORA_REPEAT_LOCK")
    if elsewhere and not from_archive:
        lock = Path(elsewhere, lock.name) if elsewhere.endswith("/") else Path(elsewhere)
    runs = runs or Path(os.environ.get("QLORA_REPEAT_RUNS") or "runs")
    return Workspace(study, runs, cache or cache_folder(), lock, file, given, from_archive)


def came_in_archive(study_file: Path) -> bool:
    """Return whether a study file is in an unpacked archive, so that whoever packed it wrote it."""
    folder = study_file.resolve().parent
    return folder.name == "studies" and (folder.parent / ARCHIVE_MARK).is_file()


def cache_folder() -> Path:
    """Return the folder of models and data: $QLORA_REPEAT_CACHE or the user's cache folder."""
    if given := os.environ.get("QLORA_REPEAT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-repeat"
