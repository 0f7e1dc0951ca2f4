"""A study's data as its models see them: the seeded 80/20 split, the text of each row, and token ids."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import ROW_KEYS, Data, Row
from qlora_repeat.study.randomness import stream_seed
from qlora_repeat.study.study import Model
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.hashing import MANIFEST, json_digest, manifest_digest, text_digest

Part = Literal["train", "test"]
ROWS = "rows.jsonl"


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


def data_folder(workspace: Workspace, name: str) -> Path:
    """Where a data set's rows stand in the cache: another source or seed of its rows is another folder."""
    data = workspace.study.data[name]
    origin = {**vars(data), "hub": vars(data.hub) if data.hub else None}
    left_out = ("max_new_tokens", "max_rows", "prompts", "test_share", "file")
    kept = {key: value for key, value in origin.items() if key not in left_out}
    if data.file is not None:
        kept["file"] = data.file.identity
    return workspace.cache / "data" / f"{name}-{json_digest(kept)[:16]}"


def data_digest(workspace: Workspace, name: str) -> str | None:
    """The digest of prepared data, or None if they are not in the cache."""
    return manifest_digest(data_folder(workspace, name))


def read_rows(workspace: Workspace, name: str) -> list[Row]:
    """All rows of a data set, in the order of their source.

    Raises:
        MissingError: the data are not in the cache, or their bytes are not the ones that were put there.
    """
    folder = data_folder(workspace, name)
    try:
        text = (folder / ROWS).read_text(encoding="utf-8")
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))[ROWS]
    except (OSError, ValueError, KeyError):
        text, expected = "", None
    if data_digest(workspace, name) is None:
        raise MissingError(f"{folder}: data {name} are not there; run `qlora-repeat fetch` for this study")
    if text_digest(text) != expected:
        raise MissingError(f"{folder / ROWS} was changed; delete the folder and run `qlora-repeat fetch`")
    return [json.loads(line) for line in text.split("\n") if line]


def split_rows(data: Data, rows: list[Row], seed: int) -> dict[Part, list[Row]]:
    """The seeded split into train and test (section III).

    The paper's prompts and instructions come from its test part (section VIII). Where the draw has put the
    row that begins so among those to train on, it changes places with the first test row not asked about.
    """
    import datasets

    parts = datasets.Dataset.from_list(rows).train_test_split(
        test_size=data.test_share, seed=stream_seed(seed, "split")
    )
    train, test = ([dict(row) for row in parts[part]] for part in ("train", "test"))
    key = ROW_KEYS[data.task][0]
    for beginning in data.prompts:
        if any(begins(row[key], beginning) for row in test):
            continue
        place = next((at for at, row in enumerate(train) if begins(row[key], beginning)), None)
        if place is None:
            continue  # no such row: `study_prompts` tells, where one is needed
        free = [not any(begins(row[key], each) for each in data.prompts) for row in test]
        if True in free:
            other = free.index(True)
            train[place], test[other] = test[other], train[place]
    return {"train": train, "test": test}


def part_rows(workspace: Workspace, name: str, part: Part, seed: int, *, whole: bool = False) -> list[Row]:
    """The rows of a part of the split of that seed: the first `max_rows`, or the whole."""
    data = workspace.study.data[name]
    rows = split_rows(data, read_rows(workspace, name), seed)[part]
    return rows if whole else rows[: data.max_rows]


def row_text(model: Model, row: Row) -> str:
    """The whole text of a row, with the model's tags."""
    return model.template.format(**row)


def instruction_text(model: Model, row: Row) -> str:
    """The text of a row up to where its answer begins."""
    return model.template.partition("{answer}")[0].format(**row)


def batch_order(examples: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """The places of the examples in each optimizer step's batch; each epoch is shuffled by its own stream."""
    import torch

    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < steps:
        generator = torch.Generator().manual_seed(stream_seed(seed, "data_order", epoch))
        order = torch.randperm(examples, generator=generator).tolist()
        batches += [order[start : start + batch_size] for start in range(0, examples, batch_size)]
        epoch += 1
    return batches[:steps]


def encode(tokenizer: Any, model: Model, rows: list[Row]) -> list[Example]:
    """Rows as token ids, cut at the model's maximum length; marks where each answer begins."""
    encoded = tokenizer(
        [row_text(model, row) for row in rows],
        truncation=True,
        add_special_tokens=model.special_tokens,
        max_length=model.training.max_length,
        return_offsets_mapping=True,
    )
    examples = []
    for place, row in enumerate(rows):
        start = len(instruction_text(model, row)) if "answer" in row else None
        ends = [end for _, end in encoded["offset_mapping"][place]]
        answer = next((i for i, end in enumerate(ends) if start is not None and end > start), len(ends))
        examples.append(Example(place, encoded["input_ids"][place], answer))
    return examples


def begins(text: str, beginning: str) -> bool:
    """Whether a row begins like that, whatever blanks or quotation marks stand before."""
    return text.lstrip(" \n\"'“‘").startswith(beginning)


def study_prompts(workspace: Workspace, model_name: str, seed: int) -> list[Prompt]:
    """What the study asks a model (section VIII): the prompts themselves, or test rows by how they begin.

    `seed` is that of the split.

    Raises:
        UsageError: no row of the test part begins so.
    """
    model = workspace.study.models[model_name]
    data = workspace.study.data[model.data]
    if data.task == "text-generation":
        return [Prompt(text, text, has_options=False) for text in data.prompts]
    rows = part_rows(workspace, model.data, "test", seed, whole=True)
    return [_instruction(model, data, rows, beginning) for beginning in data.prompts]


def _instruction(model: Model, data: Data, rows: list[Row], beginning: str) -> Prompt:
    row = next((row for row in rows if begins(row["instruction"], beginning)), None)
    if row is None:
        raise UsageError(f"data.{model.data}.prompts: no row of the test part begins with {beginning!r}")
    shown = row["instruction"]
    return Prompt(
        shown, instruction_text(model, row).rstrip(" "), re.search(r"\bA: .*\bD: ", shown, re.S) is not None
    )
