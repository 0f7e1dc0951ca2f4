"""The content of a study file, with what it extends and with what it leaves out, before it is checked.

Each key remembers where it was written, for errors and for `show`.
"""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.allowed_values import Location
from qlora_repeat.study.data_sources import MAX_NEW_TOKENS, MESSAGES, ROW_KEYS, TEMPLATES, is_own_task
from qlora_repeat.study.finding import came_in_archive, study_folders
from qlora_repeat.study.old_spelling import respelled
from qlora_repeat.study.template import CHAT, template_columns
from qlora_repeat.study.toml_file import key_lines, one_line, read_toml_text
from qlora_repeat.study.validation_message import shown_key
from qlora_repeat.system.package_data import kit_path

MOST_PARENTS = 5
"""The most studies that a study extends, one after the other."""
_LONGEST_NAME = 1000
_OWN = ("name", "title", "extends", "variant")
"""Keys that a study does not take from the one that it extends."""
_SOURCES = ("hub", "folder", "gguf", "tokenizer", "file", "source")
"""Keys that say where a base or data set comes from; a new one replaces what is said about the old one."""
_KEPT = {"bases": (), "data": ("task", "test_share", "max_new_tokens", "max_rows")}
"""Keys of a base or data set that do not depend on where it comes from."""
_SHORT = {
    "hub": "repository",
    "folder": "path",
    "gguf": "file",
    "tokenizer": "file",
    "file": "file",
    "test_file": "file",
}
"""The key that a text in place of a table stands for."""


@dataclass(frozen=True)
class Origin:
    """Where a key was written: the file, the line if it is known, and the key as it was written."""

    file: Path
    line: int | None
    key: tuple[str, ...]


@dataclass
class Content:
    """The content of a study file, the origin of its keys, and the files: its own, then those it extends."""

    values: dict[str, Any]
    origins: dict[tuple[str, ...], Origin]
    files: list[Path] = field(default_factory=list)
    defaults: set[tuple[str, ...]] = field(default_factory=set)
    """The keys that no file has, and that were added here."""

    def origin(self, location: Location) -> tuple[Origin | None, int]:
        """Return where a key, or the innermost table around it, was written; and how many parts that has."""
        for length in range(len(location), 0, -1):
            if (found := self.origins.get(tuple(map(str, location[:length])))) is not None:
                return found, length
        return None, 0

    def written(self, location: Location) -> tuple[str, Location]:
        """Return where a key was written, as the beginning of a message, and the key as it was written."""
        location = self._with_dotted_name(location)
        found, length = self.origin(location)
        if found is None:
            return "", location
        file = f"{found.file}, " if found.file != self.files[0] else ""
        line = f"line {found.line}: " if found.line is not None else ""
        return file + line, (*found.key, *location[length:])

    def _with_dotted_name(self, location: Location) -> Location:
        """Return the location in which the name of a model, base or data set with dots is one part."""
        for end in range(len(location), 2, -1):
            name = ".".join(map(str, location[1:end]))
            if (str(location[0]), name) in self.origins:
                return (location[0], name, *location[end:])
        return location


def read_content(path: Path) -> Content:
    """Read a study file and those that it extends, and add what can be left out.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        MissingError: there is no such study to extend.
        UsageError: a file is not TOML, or the studies extend each other in a circle, or are too many.
    """
    content = _with_parents(path, ())
    _refuse_dates(content)
    _add_shared_training(content)
    _name_optimizers(content, path)
    given = set(_keys(content.values))
    _complete(content.values, path.stem)
    content.defaults = set(_keys(content.values)) - given
    return content


def _with_parents(path: Path, children: tuple[Path, ...]) -> Content:
    """Return the content of a file over the content of the one that it extends."""
    written, text = read_toml_text(path)
    values, lines = respelled(written), key_lines(text)
    origins = {key: Origin(path, _line(lines, key), key) for key in _keys(values)}
    own = Content(values, origins, [path])
    _write_out(values)
    if children and came_in_archive(path):
        values.pop("cluster", None)  # nothing from an archive requests anything
    name = values.pop("extends", None)
    if name is None:
        return own
    where = own.written(("extends",))[0]
    try:
        if not isinstance(name, str) or not 0 < len(one_line(name)) <= _LONGEST_NAME:
            raise ValueError("expected the name or path of a study, such as paper")
        if len(children) == MOST_PARENTS:
            raise ValueError(f"expected at most {MOST_PARENTS} studies, each of which extends the next")
        parent = _parent(path, name, where)
        if parent.resolve() in {each.resolve() for each in (*children, path)}:
            raise ValueError(f"{name} extends this study")
    except ValueError as error:
        raise UsageError(f"{path}: {where}key extends: {error}") from None
    try:
        inherited = _with_parents(parent, (*children, path))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_parent(path, name, where, [parent]) from None
    for key in _OWN:
        inherited.values.pop(key, None)
    _move_paths(inherited.values, parent.parent, path.parent)
    _move_tasks(inherited.values, parent.parent, path.parent)
    merged = _merged(inherited.values, values, ())
    origins = {key: origin for key, origin in inherited.origins.items() if _has(merged, key)}
    return Content(merged, origins | own.origins, [path, *inherited.files])


def _parent(path: Path, name: str, where: str) -> Path:
    """Return the file of the study that a file extends; `where` is the line that names it, for errors.

    A study from an archive extends what it came with, or a study of the kit.
    """
    strange, folder = came_in_archive(path), path.parent
    if name.endswith(".toml"):
        candidates = [folder / name]
    else:
        more = [kit_path("studies")] if strange else study_folders()
        candidates = [each / f"{name}.toml" for each in (folder, *more)]
    if strange:
        allowed = (folder.resolve(), kit_path("studies").resolve())
        candidates = [each for each in candidates if each.resolve().parent in allowed]
    for candidate in candidates:
        if candidate.is_file() and candidate.resolve() != path.resolve():
            return candidate
    if any(candidate.resolve() == path.resolve() for candidate in candidates):
        raise ValueError("a study cannot extend itself")
    raise _no_parent(path, name, where, candidates)


def _no_parent(path: Path, name: str, where: str, candidates: list[Path]) -> MissingError:
    looked = ", ".join(dict.fromkeys(map(str, candidates))) or "its own folder and the kit's studies only"
    return MissingError(
        f"{path}: {where}key extends: {shown_key((name,))}: no such study file; looked for {looked}"
    )


def _keys(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the location of each key of nested tables."""
    found = []
    for key, value in values.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += _keys(value, (*above, key))
    return found


def _line(lines: Mapping[tuple[str, ...], int], key: tuple[str, ...]) -> int | None:
    return next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), None)


def _refuse_dates(content: Content) -> None:
    """Raise UsageError for a date or a time, which TOML has and studies do not."""
    dates = (datetime.date, datetime.time)
    for key in _keys(content.values):
        value: Any = content.values
        for part in key:
            value = value[part]
        found = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dates)]
        if found:
            where, shown = content.written(key)
            raise UsageError(
                f"{content.files[0]}: {where}key {shown_key(shown)}: no key has a date; "
                f'text has quotation marks, such as "{found[0]}"'
            )


def _has(values: Any, key: tuple[str, ...]) -> bool:
    for part in key:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _tables(values: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return the tables in the table of a key."""
    inner = values.get(key)
    return (
        {name: each for name, each in inner.items() if isinstance(each, dict)}
        if isinstance(inner, dict)
        else {}
    )


def _write_out(values: dict[str, Any]) -> None:
    """Replace a text where a table is expected by the table that it stands for."""
    for kind, keys in (
        ("bases", ("hub", "folder", "gguf", "tokenizer")),
        ("data", ("hub", "file", "test_file")),
    ):
        for table in _tables(values, kind).values():
            for key in keys:
                if isinstance(given := table.get(key), str):
                    table[key] = {_SHORT[key]: given}
                    if key == "hub" and "@" in given:
                        repository, _, revision = given.partition("@")
                        table[key] = {"repository": repository, "revision": revision}


def _merged(parent: dict[str, Any], child: dict[str, Any], above: tuple[str, ...]) -> dict[str, Any]:
    """Return the parent's values overridden by the child's; false in place of a table removes it."""
    kept = dict(parent)
    if len(above) == 2 and above[0] in _KEPT and any(key in child for key in _SOURCES):
        kept = {key: value for key, value in parent.items() if key in _KEPT[above[0]]}
    if above[-1:] == ("training",) and ("steps" in child or "epochs" in child):
        kept = {key: value for key, value in kept.items() if key not in ("steps", "epochs")}
    if above[-1:] == ("training",) and ("warmup_steps" in child or "warmup_ratio" in child):
        kept = {key: value for key, value in kept.items() if key not in ("warmup_steps", "warmup_ratio")}
    for key, value in child.items():
        if value is False and isinstance(kept.get(key), dict):
            del kept[key]
        elif isinstance(value, dict) and isinstance(kept.get(key), dict):
            kept[key] = _merged(kept[key], value, (*above, key))
        else:
            kept[key] = value
    return kept


def _move_paths(values: dict[str, Any], source: Path, target: Path) -> None:
    """Make paths that are relative to one folder relative to another."""
    for kind in ("bases", "data"):
        for table in _tables(values, kind).values():
            for key in ("folder", "gguf", "tokenizer", "file", "test_file"):
                place, name = table.get(key), _SHORT[key]
                if isinstance(place, dict) and "package" not in place and isinstance(place.get(name), str):
                    path = source / place[name]
                    if not Path(place[name]).is_absolute():
                        place[name] = os.path.relpath(path, target)


def _move_tasks(values: dict[str, Any], source: Path, target: Path) -> None:
    """Do the same with paths of the user's own benchmarks."""
    table = values.get("evaluation")
    tasks = table.get("lm_eval") if isinstance(table, dict) else None
    if not isinstance(tasks, list):
        return
    for place, task in enumerate(tasks):
        if isinstance(task, str) and is_own_task(task) and not Path(task).is_absolute():
            tasks[place] = f"./{os.path.relpath(source / task, target)}"


def _add_shared_training(content: Content) -> None:
    """Give every model a complete table ``training``."""
    shared = content.values.pop("training", {})
    if not isinstance(shared, dict):
        where = content.written(("training",))[0]
        raise UsageError(f"{content.files[0]}: {where}key training: expected a table, such as [training]")
    for name, model in _tables(content.values, "models").items():
        own = model.get("training", {})
        if not isinstance(own, dict):
            continue
        other = {"steps": "epochs", "epochs": "steps"}
        other |= {"warmup_steps": "warmup_ratio", "warmup_ratio": "warmup_steps"}
        kept = {key: value for key, value in shared.items() if other.get(key) not in own}
        model["training"] = kept | own
        if ("training",) in content.origins:
            content.origins.setdefault(("models", name, "training"), content.origins["training",])
        for key in kept.keys() - own.keys():
            for written, origin in list(content.origins.items()):
                if written[:2] == ("training", key):
                    content.origins["models", name, *written] = origin


def _name_optimizers(content: Content, path: Path) -> None:
    """Replace each optimizer that has a ``state_map`` by its name."""
    if not isinstance(given := content.values.get("optimizers"), list):
        return
    names = []
    for place, table in enumerate(given):
        if isinstance(table, dict) and sorted(table) != ["optimizer", "state_map"]:
            where = content.written(("optimizers",))[0]
            raise UsageError(
                f"{path}: {where}key optimizers.{place}: give optimizer and state_map, or only a name"
            )
        names.append(f"{table['optimizer']}+{table['state_map']}" if isinstance(table, dict) else table)
    content.values["optimizers"] = names


def _add_columns(table: dict[str, Any], template: Any) -> None:
    """Add the columns that a template names to the dataset of its rows."""
    columns, own = table.get("columns"), ROW_KEYS[table["task"]]
    is_read = table.get("source") in ("hub", "file")
    if not is_read or not isinstance(columns, dict) or not isinstance(template, str):
        return
    try:
        names = template_columns(template)
    except ValueError:  # which the check of the study reports
        return
    for name in names:
        if name not in own:
            columns.setdefault(name, name)


def _complete(values: dict[str, Any], name: str) -> None:
    """Add what depends on other keys, if it was left out."""
    values.setdefault("name", name)
    values.setdefault("title", values["name"])
    data = _tables(values, "data")
    for table in data.values():
        task, sources = table.get("task"), [key for key in ("hub", "file") if key in table]
        if sources:
            table.setdefault("source", sources[0])
        if isinstance(task, str) and task in ROW_KEYS:
            table.setdefault("max_new_tokens", MAX_NEW_TOKENS[task])
            if table.get("source") in ("hub", "file"):
                table.setdefault("columns", {key: key for key in ROW_KEYS[task]})
    for name, model in _tables(values, "models").items():
        model.setdefault("title", name)
        for key, known in (("base", _tables(values, "bases")), ("data", data)):
            if len(known) == 1:
                model.setdefault(key, next(iter(known)))
        used = model.get("data")
        table = data.get(used, {}) if isinstance(used, str) else {}
        task, columns = table.get("task"), table.get("columns")
        if isinstance(task, str) and task in ROW_KEYS:
            is_chat = isinstance(columns, dict) and MESSAGES in columns
            model.setdefault("template", CHAT if is_chat else TEMPLATES[task])
            _add_columns(table, model["template"])
        elif isinstance(used, str) and used not in data:
            model.setdefault("template", "")  # the error is that there is no such data
        if model.get("template") == CHAT:
            model.setdefault("special_tokens", False)
        training = model.setdefault("training", {})
        if isinstance(training, dict) and "steps" not in training and "epochs" not in training:
            training["epochs"] = 3.0
