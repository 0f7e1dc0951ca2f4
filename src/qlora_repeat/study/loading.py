"""Read and check study files; apply what follows @ in a study's name; open a workspace."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import (
    MESSAGES,
    ROW_KEYS,
    Data,
    Folder,
    PackageFile,
    is_own_task,
)
from qlora_repeat.study.finding import (
    CUT,
    archived_file,
    came_in_archive,
    no_such_study,
    split_name,
    study_path,
)
from qlora_repeat.study.json_schema import study_schema
from qlora_repeat.study.old_spelling import respelled_part
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.study import PUBLISHED, FrozenWeights, Study
from qlora_repeat.study.study_content import Content, read_content
from qlora_repeat.study.template import template_columns
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.package_data import in_wheel


def load_study(study: str) -> Study:
    """Read and check a study file, and the studies that it extends.

    Parts after @ change the study: ``paper@bitwise`` selects another profile of randomness;
    ``paper@adamw-8bit`` keeps one optimizer; ``paper@5-steps-8-rows`` is a short trial with at most 5
    optimizer steps, on the first 8 rows of each part of the data; ``paper@materialized`` sets the frozen
    weights. Parts can be combined in any order.

    Raises:
        MissingError: there is no such file.
        UsageError: the file is not TOML; a key is unknown, missing or out of range; a part after @ is
            unknown; or the study has the name of the paper's numbers.
    """
    return _with_own_files(read_study(study)[0], study_path(study))


def read_study(study: str) -> tuple[Study, Content]:
    """Return a study with the paths that are in its file, and what the file says; raises as `load_study`."""
    name, parts = split_name(study)
    if Path(name).name.removesuffix(".toml") == PUBLISHED:
        raise UsageError(
            f"{study}: this name stands for the paper's numbers, which only `tables` and `paper` accept; "
            "give the study another name"
        )
    path = study_path(study)
    try:
        content = read_content(path)
    except (FileNotFoundError, NotADirectoryError):
        raise no_such_study(f"{path}: no such study file") from None
    if "variant" in content.values:  # which only the study's name has, after @
        raise UsageError(f"{path}: {content.written(('variant',))[0]}unknown key variant")
    try:
        # As JSON: there, strict mode turns tables into dataclasses, but no string into a number.
        loaded = TypeAdapter(Study).validate_json(json.dumps(content.values, default=_refuse))
    except ValidationError as error:
        message = validation_message(error, study_schema(), content.written)
        raise UsageError(f"{path}: {message}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if loaded.name != path.stem:  # otherwise a copy of a file would overwrite the original's results
        where = content.written(("name",))[0]
        raise UsageError(
            f"{path}: {where}key name: expected the file's name, {path.stem!r} (found {loaded.name!r})"
        )
    for key in unused_columns(loaded):
        where = content.written(key)[0]
        raise UsageError(f"{path}: {where}key {'.'.join(key)}: no template names {{{key[-1]}}}")
    try:
        return _varied(loaded, parts), content
    except ValidationError as error:
        raise UsageError(f"{study}: {validation_message(error)}") from None


def unused_columns(study: Study) -> list[tuple[str, ...]]:
    """Return the keys of columns that a file gives and no template names, such as misspelled ones."""
    found = list[tuple[str, ...]]()
    for name, data in study.data.items():
        templates = [model.template for model in study.models.values() if model.data == name]
        named = {column for template in templates for column in template_columns(template)}
        known = {*ROW_KEYS[data.task], MESSAGES, *named}
        found += [("data", name, "columns", key) for key in data.columns if templates and key not in known]
    return found


def _with_own_files(study: Study, study_file: Path) -> Study:
    """Return the study with the paths of the user's own files, which are relative to the study file.

    Data of a study in an unpacked archive are those in the archive, if it has them.
    """
    folder = study_file.parent
    archive = folder.parent if came_in_archive(study_file) else None

    def with_files(name: str, data: Data) -> Data:
        files: dict[str, Any] = {}
        for key, file in vars(data).items():
            if isinstance(file, PackageFile):
                inside = archive / archived_file(name, key, file) if archive and not file.package else None
                packed = inside is not None and inside.is_file()
                files[key] = replace(file, file=str(inside)) if packed else found(file)
        return replace(data, **files)

    def found(file: PackageFile | None) -> PackageFile | None:
        own = file is not None and file.package is None
        return replace(file, file=str(folder / file.file)) if file is not None and own else file

    def moved(base: Folder | None) -> Folder | None:
        return replace(base, path=str(folder / base.path)) if base is not None else None

    return replace(
        study,
        bases={
            name: replace(
                base, folder=moved(base.folder), gguf=found(base.gguf), tokenizer=found(base.tokenizer)
            )
            for name, base in study.bases.items()
        },
        data={name: with_files(name, data) for name, data in study.data.items()},
        evaluation=replace(
            study.evaluation,
            lm_eval=[
                # A Path would make tasks of ./tasks/, which is a name.
                f"{folder}/{each}" if is_own_task(each) and not Path(each).is_absolute() else each
                for each in study.evaluation.lm_eval
            ],
        ),
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
    found = CUT.fullmatch(variant)
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


def open_workspace(given: str, *, runs: Path | None = None, cache: Path | None = None) -> Workspace:
    """Load a study by name or path, with its folders and lock file.

    By default, results are in $QLORA_REPEAT_RUNS or ``runs``, and models and data in `cache_folder`. The lock
    file is next to the study file, or in the current folder for a study of an installed kit.
    $QLORA_REPEAT_LOCK names another file, or another folder if it ends in a slash. A study that came in an
    archive always has the lock file of the archive, so that it cannot add to the user's.

    Raises:
        MissingError, UsageError: as `load_study`.
    """
    (study, content), file = read_study(given), study_path(given)
    lock, from_archive = file.with_suffix(".lock"), came_in_archive(file)
    if in_wheel(file):
        lock = Path(lock.name)
    elsewhere = os.environ.get("QLORA_REPEAT_LOCK")
    if elsewhere and not from_archive:
        lock = Path(elsewhere, lock.name) if elsewhere.endswith("/") else Path(elsewhere)
    given_places = {
        option: str(place)
        for option, place, usual in (("--runs", runs, _runs_folder()), ("--cache", cache, cache_folder()))
        if place is not None and place != usual
    }
    return Workspace(
        study=_with_own_files(study, file),
        runs=runs or _runs_folder(),
        cache=cache or cache_folder(),
        lock=lock,
        file=file,
        given=given,
        from_archive=any(map(came_in_archive, content.files)),
        parents=tuple(content.files[1:]),
        places=given_places,
    )


def _runs_folder() -> Path:
    return Path(os.environ.get("QLORA_REPEAT_RUNS") or "runs")


def cache_folder() -> Path:
    """Return the folder of models and data: $QLORA_REPEAT_CACHE or the user's cache folder."""
    if given := os.environ.get("QLORA_REPEAT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-repeat"
