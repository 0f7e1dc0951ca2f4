"""Look at a model and rows of which no study file exists yet: in a folder and a file, or on a hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import load_tokenizer
from qlora_repeat.assets.configuration import refuse_code
from qlora_repeat.assets.dataset_builders import file_rows
from qlora_repeat.assets.fetch import model_files
from qlora_repeat.assets.hub import download, resolve, snapshot_folder
from qlora_repeat.assets.layers import base_skeleton, linear_layers
from qlora_repeat.assets.pins import ROW_FILES, pickled_files
from qlora_repeat.assets.row_reader import read_columns
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import (
    MESSAGES,
    ROW_KEYS,
    Data,
    Folder,
    Hub,
    PackageFile,
    Row,
    RowKey,
    Task,
)
from qlora_repeat.study.scores import SCORES
from qlora_repeat.study.toml_file import quoted
from qlora_repeat.system.files import LARGEST_ROWS, read_json
from qlora_repeat.system.printable import one_line

_REPOSITORY = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_][A-Za-z0-9_./+@-]*)?"
)
_COLUMNS = {
    "quote": ("quote", "text", "content", "sentence", "document"),
    "instruction": ("instruction", "question", "prompt", "input", "query"),
    "answer": ("answer", "output", "response", "completion", "target", "label", "summary"),
    MESSAGES: (MESSAGES, "conversations", "conversation"),
}
"""Usual names of columns, the likeliest first."""
_MOST_MEMORY = 4 * LARGEST_ROWS


@dataclass(frozen=True)
class OwnModel:
    """A model as a study names it, its configuration, tokenizer and the names of its linear layers."""

    line: str
    """The line of the study file that names it."""
    configuration: dict[str, Any]
    tokenizer: Any
    linear: list[str]


@dataclass(frozen=True)
class OwnRows:
    """Rows as a study names them, with the task that they are for and the columns that it uses."""

    lines: list[str]
    """The lines of the study file that name them."""
    task: Task
    columns: dict[RowKey, str]
    unused: list[str]
    """The other columns."""
    rows: list[Row]


def look_at_model(given: str, command: str) -> OwnModel:
    """Look at a model in a folder or on a hub, of which only small files are downloaded.

    Raises:
        MissingError: it is not there, or the kit cannot use it.
        UsageError: the text is no folder and no repository of a hub.
    """
    if Path(given).is_dir():
        given = _from_here(given)
        folder, names = Path(given), list(model_files(Folder(given)))
        line = f"folder = {quoted(given)}"
    else:
        hub = _hub(given, "model", "folder", "a folder with config.json, tokenizer and safetensors")
        pin = resolve(hub, "model", command)
        weights = {name for name in pin.files if name.endswith(".safetensors")} | {*pickled_files(pin.files)}
        small = {name: file for name, file in pin.files.items() if name not in weights}
        download(hub, replace(pin, files=small), command)
        folder, names = snapshot_folder(hub, pin), list(small)
        line = f'hub = "{hub.repository}@{pin.commit}"'
    refuse_code(folder, names, given)
    configuration = read_json(folder / "config.json", "name another model", follow=True)
    return OwnModel(line, configuration, load_tokenizer(folder), _linear_layers(folder))


def _linear_layers(folder: Path) -> list[str]:
    """Return the different last names of the linear layers in a model's blocks, in their order."""
    # Layers of blocks have a number in their paths; a projection of the whole model has none.
    paths = [path for path in linear_layers(base_skeleton(folder)) if re.search(r"\.\d+\.", path)]
    names = [re.search(r"[^.]+(\.\d+)?$", path) for path in paths]  # a number belongs to the name before it
    return list(dict.fromkeys(found[0] for found in names if found))


def look_at_rows(given: str, task: Task | None, columns: Mapping[str, str], command: str) -> OwnRows:
    """Look at the rows of a file or of a hub's data set, which is downloaded.

    Raises:
        MissingError: they are not there.
        UsageError: they cannot be read, or their columns do not say what they are.
    """
    if Path(given).is_file():
        given = _from_here(given)
        files, lines = [Path(given)], [f"file = {quoted(given)}"]
        hub = None
    else:
        hub = _hub(given, "dataset", "file", f"a file that ends in {', '.join(ROW_FILES)}")
        pin = resolve(hub, "dataset", command)
        names = sorted(pin.files)
        if train := [name for name in names if "train" in name]:
            hub, pin = (
                replace(hub, files="*train*"),
                replace(pin, files={name: pin.files[name] for name in train}),
            )
        download(hub, pin, command)
        files = [snapshot_folder(hub, pin) / name for name in sorted(pin.files)]
        pattern = f', files = "{hub.files}"' if hub.files != "*" else ""
        lines = [f'hub = {{ repository = "{hub.repository}", revision = "{pin.commit}"{pattern} }}']
    found = _columns_of(files, given)
    task, chosen = _chosen_columns(found, task, columns, given)
    file = None if hub else PackageFile(str(files[0]))
    data = Data(task, "hub" if hub else "file", columns=chosen, hub=hub, file=file)
    unused = [name for name in found if name not in chosen.values()]
    return OwnRows(lines, task, chosen, unused, file_rows(data, files))


def _columns_of(files: list[Path], given: str) -> list[str]:
    kind = ROW_FILES.get(files[0].suffix)
    if kind is None:
        raise UsageError(f"{given}: rows are read from {', '.join(ROW_FILES)} only")
    try:
        # No column has an empty name, so only names are read.
        found = read_columns(kind, files, [""], 0, LARGEST_ROWS, _MOST_MEMORY)
    except ValueError as error:
        raise UsageError(f"{given}: cannot be read as {kind} ({error})") from None
    except OSError as error:
        raise MissingError(f"{error.filename}: cannot be read ({error.strerror})") from error
    names = [str(name) for name in found["columns"]]
    for character, name in ((";", "semicolons"), ("\t", "tabs")):
        if kind == "csv" and len(names) == 1 and character in names[0]:
            raise UsageError(f"{given}: {name} separate its columns; expected commas")
    return names


def _chosen_columns(
    found: list[str], task: Task | None, given: Mapping[str, str], source: str
) -> tuple[Task, dict[RowKey, str]]:
    """Return the task that columns are for, and the column of each key of its rows.

    An instruction and an answer are preferred to the messages of a chat, and these to a text.
    """
    listed = one_line(", ".join(found))
    for key, column in given.items():
        if column not in found:
            raise UsageError(f"--column {key}={column}: {source} has the columns {listed}")
    likely: dict[str, str] = {}
    for key, names in _COLUMNS.items():
        lower = {name.lower(): name for name in found if name not in likely.values()}
        likely |= {key: given[key]} if key in given else {}
        for name in names if key not in likely else ():
            if name in lower:
                likely[key] = lower[name]
                break
    if len(found) == 1 and MESSAGES not in likely:
        likely.setdefault("quote", found[0])
    if task in SCORES and "quote" in likely:  # a text with its label or summary
        likely.setdefault("instruction", likely["quote"])
    tasks: list[Task] = [task] if task else ["question-answering", "text-generation"]
    choices: list[tuple[Task, list[RowKey]]] = []
    for each in tasks:
        choices.append((each, ROW_KEYS[each]))
        choices += [(each, [MESSAGES])] if "answer" in ROW_KEYS[each] else []
    for each, keys in sorted(choices, key=lambda choice: given.keys().isdisjoint(choice[1])):
        if all(key in likely for key in keys):
            return each, {key: likely[key] for key in keys}
    keys = choices[0][1]
    example = " ".join(f"--column {key}=COLUMN" for key in keys)
    raise UsageError(
        f"{source}: which of its columns ({listed}) to learn is not clear; name them, such as {example}"
    )


def _from_here(given: str) -> str:
    """Return a path, relative to the current folder if it is inside, so that both can be moved together."""
    path, here = Path(given), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else given


def _hub(given: str, kind: str, place: str, local: str) -> Hub:
    path = Path(given)
    if path.exists():
        raise UsageError(f"{given}: it is no {place}; expected {local}, or OWNER/NAME of a {kind} on a hub")
    is_path = path.suffix in ROW_FILES or (len(path.parts) > 1 and path.parent.is_dir())
    if is_path or not _REPOSITORY.fullmatch(given):
        raise UsageError(
            f"{given}: there is no such {place}; expected {local}, or OWNER/NAME of a {kind} on a hub"
        )
    repository, _, revision = given.partition("@")
    return Hub(repository, revision or "main")
