"""Prepare a study's data for its models: the seeded 80/20 split, the text of each row, and token ids."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.assets.chat import chat_prompt, chat_text
from qlora_repeat.assets.pins import (
    Pin,
    file_digest_of,
    find_folder,
    found_of,
    hub_identity,
    not_pinned,
    pin_of,
    rows_sha256,
    source_name,
)
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import ROW_KEYS, Data, Row
from qlora_repeat.study.randomness import stream_seed
from qlora_repeat.study.study import Loss, Model
from qlora_repeat.study.template import CHAT, filled
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import LARGEST_ROWS, read_file
from qlora_repeat.system.hashing import manifest_digest, read_manifest, text_digest

Part = Literal["train", "test"]
ROWS = "rows.jsonl"
BETWEEN_FILES = "\n\n"
"""An empty line, which separates the test rows from the others, if they have files of their own."""
_PROMPTS = 2
"""The number of prompts, if the study gives none: as many as in the paper."""
_WORDS = 4
"""The number of words of such a prompt for text generation, about as many as in the paper."""


@dataclass(frozen=True)
class Example:
    """A row as token ids. The answer begins at `answer_start`, which is the length if there is none."""

    row: int
    """The index of the row in its split."""
    ids: list[int]
    answer_start: int
    cut: bool = False
    """Whether `max_length` cuts all or a part of the answer."""
    answers: tuple[tuple[int, int], ...] = ()
    """For a chat: where each answer begins and ends. Otherwise, the only one ends with the text."""

    def is_target(self, loss: Loss) -> list[bool]:
        """Return for each token whether it is predicted; the first one never is."""
        if loss == "all-tokens":
            return [place > 0 for place in range(len(self.ids))]
        spans = self.answers or ((self.answer_start, len(self.ids)),)
        found = [False] * len(self.ids)
        for start, end in spans:
            found[start:end] = [True] * len(found[start:end])
        return [False, *found[1:]] if found else []


@dataclass(frozen=True)
class Prompt:
    """A prompt: the text to show, and the text to feed to the model."""

    shown: str
    fed: str
    has_options: bool


def data_source(workspace: Workspace, name: str) -> str:
    """Return the name of a data set with a digest of its source and seed, without the commit."""
    data, found = workspace.study.data[name], found_of(workspace, "data", name)
    kept = {**vars(data), "hub": hub_identity(data.hub)}
    for key in ("max_new_tokens", "max_rows", "prompts", "test_share", "file", "test_file"):
        del kept[key]
    kept["rows"] = data.rows or found.rows
    known: list[int | str | None] = [kept["rows"]]
    if data.file is not None:
        kept["file"] = {**data.file.place, "sha256": file_digest_of(found, data.file, "file")}
        known.append(kept["file"]["sha256"])
    if data.test_file is not None:
        test_digest = file_digest_of(found, data.test_file, "test_file")
        kept["test_file"] = {**data.test_file.place, "sha256": test_digest}
        known.append(test_digest)
    if data.hub is None and data.file is None:
        kept["sha256"] = data.sha256 or found.sha256
        known.append(kept["sha256"])
    return source_name(name, None if None in known else kept)


def data_folder(workspace: Workspace, name: str) -> Path:
    """Return the cache folder of a data set's rows; for data from a hub, its name ends with the commit."""
    source, data = data_source(workspace, name), workspace.study.data[name]

    def is_here(folder: Path, pin: Pin | None) -> bool:
        manifest = read_manifest(folder) or {}
        return ROWS in manifest and manifest[ROWS] == rows_digest(workspace, name, pin, manifest[ROWS])

    return find_folder(workspace, "data", source, data.hub, is_here)


def rows_digest(workspace: Workspace, name: str, pin: Pin | None, found: str) -> str | None:
    """Return the SHA-256 that the rows must have, by the study, its lock file or the pin of their repository.

    None if the pin does not say; `found` for rows of a file, whose own SHA-256 is known.
    """
    if workspace.study.data[name].hub is not None:
        return pin.converted.get(data_source(workspace, name)) if pin else None
    return rows_sha256(workspace, name) or found


def data_is_fetched(workspace: Workspace, name: str) -> bool:
    """Return whether the cache has a data set with the rows that the study or the lock file asks for.

    Raises:
        MissingError: it has other rows.
        UsageError: the lock file contradicts the study.
    """
    folder, data = data_folder(workspace, name), workspace.study.data[name]
    found = (read_manifest(folder) or {}).get(ROWS)
    pin = pin_of(workspace, data.hub, "dataset") if data.hub else None
    if found is None:
        return False
    expected = rows_digest(workspace, name, pin, found)
    if expected not in (found, None):
        if data.hub is not None:
            raise not_pinned(workspace, data.hub, folder / ROWS)
        raise MissingError(
            f"{folder / ROWS}: not the rows of study {workspace.study.name}; delete the folder and run "
            f"`{workspace.command('fetch')}`"
        )
    return expected is not None


def data_digest(workspace: Workspace, name: str) -> str | None:
    """Return the digest of prepared data, or None if they are not in the cache."""
    return manifest_digest(data_folder(workspace, name))


def read_rows(workspace: Workspace, name: str) -> list[Row]:
    """Return all rows of a data set, in the order of their source; raises as `read_row_files`."""
    return [row for rows in read_row_files(workspace, name) for row in rows]


def read_row_files(workspace: Workspace, name: str) -> list[list[Row]]:
    """Return the rows of a data set, and in a second list its test rows, if they have files of their own.

    Raises:
        MissingError: the data are not in the cache, their bytes have changed, or the study or its lock file
            asks for other rows.
        UsageError: the lock file contradicts the study.
    """
    folder = data_folder(workspace, name)
    if not data_is_fetched(workspace, name):
        raise MissingError(f"{folder}: data {name} are missing; run `{workspace.command('fetch')}`")
    try:
        text = read_file(folder / ROWS, LARGEST_ROWS, follow=True).decode("utf-8")
    except (OSError, ValueError):
        text = None
    if text is None or text_digest(text) != (read_manifest(folder) or {}).get(ROWS):
        again = f"delete the folder and run `{workspace.command('fetch')}`"
        raise MissingError(f"{folder / ROWS} was changed; {again}")
    return [[json.loads(line) for line in rows.split("\n") if line] for rows in text.split(BETWEEN_FILES)]


def parts_of(data: Data, files: list[list[Row]], seed: int) -> dict[Part, list[Row]]:
    """Return train and test part of the rows of `read_row_files`; raises as `split_rows`."""
    if data.has_test:
        return {"train": files[0], "test": files[1]}
    return split_rows(data, files[0], seed)


def split_rows(data: Data, rows: list[Row], seed: int) -> dict[Part, list[Row]]:
    """Return the seeded split into train and test (section III), as ``Dataset.train_test_split`` draws it.

    The paper's prompts and instructions come from its test part (section VIII). If the split puts the row
    of a prompt into the training part, the row is swapped with the first test row that is no prompt.

    Raises:
        UsageError: no row is left for training.
    """
    import numpy as np

    tested = math.ceil(data.test_share * len(rows))
    if rows and tested == len(rows):
        raise UsageError(f"test_share: of {len(rows)} rows, {data.test_share} leaves none to train on")
    order = np.random.default_rng(stream_seed(seed, "split")).permutation(len(rows)).tolist()
    train, test = ([rows[place] for place in part] for part in (order[tested:], order[:tested]))
    key = ROW_KEYS[data.task][0]
    for beginning in data.prompts:
        if any(begins(row[key], beginning) for row in test):
            continue
        index = next((at for at, row in enumerate(train) if begins(row[key], beginning)), None)
        if index is None:
            continue  # `study_prompts` reports it if the row is needed
        free = [not any(begins(row[key], each) for each in data.prompts) for row in test]
        if True in free:
            other = free.index(True)
            train[index], test[other] = test[other], train[index]
    return {"train": train, "test": test}


def part_rows(workspace: Workspace, name: str, part: Part, seed: int, *, whole: bool = False) -> list[Row]:
    """Return the first `max_rows` rows of a part of the split of a seed, or the `whole` part."""
    data = workspace.study.data[name]
    rows = parts_of(data, read_row_files(workspace, name), seed)[part]
    return rows if whole else rows[: data.max_rows]


@dataclass(frozen=True)
class RowText:
    """The text of a row, and where its answers begin and end; a chat can have several."""

    text: str
    answers: list[tuple[int, int]]


def text_of(tokenizer: Any, model: Model, row: Row) -> RowText:
    """Return the text of a row by a model's template, or by the chat template of the tokenizer.

    Raises:
        UsageError: the chat template cannot be used for the row.
    """
    if model.template == CHAT:
        return RowText(*chat_text(tokenizer, row))
    text = filled(model.template, row)
    return RowText(text, [(len(instruction_text(model, row)), len(text))] if "answer" in row else [])


def instruction_text(model: Model, row: Row) -> str:
    """Return the text of a row before its answer, by a template that is no chat template."""
    return filled(model.template, row, until="answer")


def prompt_text(tokenizer: Any, model: Model, row: Row) -> str:
    """Return the text that asks for the answer of a row, for a chat for the last one.

    Raises:
        UsageError: the chat template cannot be used for the row.
    """
    if model.template == CHAT:
        return chat_prompt(tokenizer, row)
    return instruction_text(model, row).rstrip(" ")


def batch_order(examples: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the indices of the examples in each step's batch. Each epoch is shuffled by its own stream."""
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
    """Return rows as token ids, as `encode_texts`."""
    return encode_texts(tokenizer, model, [text_of(tokenizer, model, row) for row in rows])


def encode_texts(tokenizer: Any, model: Model, found: list[RowText]) -> list[Example]:
    """Return texts as token ids, truncated to the model's maximum length, with the start of each answer."""
    texts = [each.text for each in found]
    encoded = tokenizer(
        texts,
        truncation=True,
        add_special_tokens=model.special_tokens,
        max_length=model.training.max_length,
        return_offsets_mapping=True,
    )
    long = [index for index, ids in enumerate(encoded["input_ids"]) if len(ids) >= model.training.max_length]
    lengths = dict(zip(long, token_counts(tokenizer, model, [texts[index] for index in long]), strict=True))
    keeps_end = tokenizer.truncation_side == "left"
    examples = []
    for index, each in enumerate(found):
        offsets = encoded["offset_mapping"][index]
        spans = [_tokens(offsets, *span) for span in each.answers]
        answer = spans[-1][0] if spans else len(offsets)
        is_shorter = lengths.get(index, 0) > len(offsets)
        cut = bool(spans) and is_shorter and not (keeps_end and answer)
        turns = tuple(spans) if model.template == CHAT else ()
        examples.append(Example(index, encoded["input_ids"][index], answer, cut, turns))
    return examples


def _tokens(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Return the first token of a part of a text, and the one after its last.

    A token that begins before the part belongs to it.
    """
    first = next((place for place, (_, ends) in enumerate(offsets) if ends > start), len(offsets))
    inside = [place for place, (begins, ends) in enumerate(offsets) if begins < end and ends > start]
    return first, inside[-1] + 1 if inside else first


def token_counts(tokenizer: Any, model: Model, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text, without truncation."""
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=model.special_tokens, verbose=False)["input_ids"]
    return [len(each) for each in ids]


def prompt_ids(tokenizer: Any, model: Model, text: str) -> list[int]:
    """Return a prompt as token ids, without the end-of-text token that the tokenizer may add to a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=model.special_tokens)["input_ids"]
    if tokenizer.eos_token_id is None or ids[-1:] != [tokenizer.eos_token_id]:
        return ids
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    is_added = ids[-len(plain) :] != plain and ids[-len(plain) - 1 : -1] == plain
    return ids[:-1] if is_added else ids


def begins(text: str, beginning: str) -> bool:
    """Return whether a text begins like that after blanks and quotation marks."""
    return text.startswith(beginning) or text.lstrip(" \n\"'“‘").startswith(beginning)


def study_prompts(
    workspace: Workspace, model_name: str, seed: int, tokenizer: Any | None = None
) -> list[Prompt]:
    """Return a model's prompts (section VIII): the texts themselves, or the test rows that begin so.

    Without any in the study, they are the first rows with text of the test part, or their beginnings.
    `seed` is the seed of the split. Without the `tokenizer` of the base, chats have no text to feed.

    Raises:
        UsageError: no row of the test part begins with a prompt.
    """
    model = workspace.study.models[model_name]
    data = workspace.study.data[model.data]
    if data.task == "text-generation":
        texts = data.prompts
        if not texts:
            found = part_rows(workspace, model.data, "test", seed, whole=True)
            chosen = [row["quote"] for row in found if row["quote"].strip()][:_PROMPTS]
            texts = [" ".join(text.split()[:_WORDS]) for text in chosen]
        return [Prompt(text, text, has_options=False) for text in texts]
    rows, prompts = part_rows(workspace, model.data, "test", seed, whole=True), []
    first = [row["instruction"] for row in rows if row["instruction"].strip()][:_PROMPTS]
    for beginning in data.prompts or first:
        row = next((row for row in rows if begins(row["instruction"], beginning)), None)
        if row is None:
            raise UsageError(f"data.{model.data}.prompts: no row of the test part begins with {beginning!r}")
        has_options = re.search(r"\bA: .*\bD: ", row["instruction"], re.S) is not None
        is_known = model.template != CHAT or tokenizer is not None
        fed = prompt_text(tokenizer, model, row) if is_known else ""
        prompts.append(Prompt(row["instruction"], fed, has_options))
    return prompts
