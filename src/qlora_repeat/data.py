"""A study's data as its models see them: the seeded 80/20 split, the text of each row, and token ids."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.digest import json_digest, text_digest
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.sources import Data, Row
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


def begins(text: str, beginning: str) -> bool:
    """Whether a row begins like that, whatever blanks or quotation marks stand before."""
    return text.lstrip(" \n\"'“‘").startswith(beginning)


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
    row = next((row for row in rows if begins(row["instruction"], beginning)), None)
    if row is None:
        raise UsageError(f"data.{model.data}.prompts: no row of the test part begins with {beginning!r}")
    shown = row["instruction"]
    return Prompt(
        shown, instruction_text(model, row).rstrip(" "), re.search(r"\bA: .*\bD: ", shown, re.S) is not None
    )
