"""The test rows whose answers are generated and scored: their prompts, references and labels."""

import re
from dataclasses import dataclass
from typing import Any

from qlora_repeat.assets.datasets import part_rows, prompt_ids, prompt_text, read_rows
from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import Row, Task
from qlora_repeat.study.scores import MOST_CHARACTERS, MOST_LABELS
from qlora_repeat.study.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """A test row to be answered."""

    row: int
    """The index of the row in the test part."""
    ids: list[int]
    """The prompt."""
    reference: str


def asked_rows(
    workspace: Workspace, model_name: str, split_seed: int, tokenizer: Any
) -> tuple[list[Asked], int]:
    """Return the first test rows that can be answered and scored, and the number of those left out.

    Left out is a row whose prompt is longer than the study's batches, or whose reference cannot be scored.
    """
    study = workspace.study
    model, settings = study.models[model_name], study.evaluation.answers
    task = study.data[model.data].task
    rows = part_rows(workspace, model.data, "test", split_seed)[: settings.examples]
    asked = [
        Asked(
            index,
            prompt_ids(tokenizer, model, prompt_text(tokenizer, model, row)),
            reference_text(row),
        )
        for index, row in enumerate(rows)
    ]
    kept = [
        each
        for each in asked
        if 0 < len(each.ids) <= settings.prompt_length and _can_be_scored(each.reference, task)
    ]
    return kept, len(asked) - len(kept)


def _can_be_scored(reference: str, task: Task) -> bool:
    """Return whether a reference is not too long and, for ROUGE, has a word of letters a to z or digits."""
    has_words = task == "classification" or re.search(r"[a-z0-9]", reference.lower()) is not None
    return has_words and len(reference) <= MOST_CHARACTERS


def reference_text(row: Row) -> str:
    """Return the label or the reference of a row."""
    return row["answer"].strip()


def data_labels(workspace: Workspace, name: str) -> list[str]:
    """Return the labels of a data set for a classification: its different answers, in their order.

    Raises:
        UsageError: they are too few, too many, too long, empty, or differ only in case.
    """
    labels = sorted({reference_text(row) for row in read_rows(workspace, name)})
    where = f"data.{name}: the answers are labels for a classification"
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UsageError(f"{where}; expected 2 to {MOST_LABELS} different ones, found {len(labels)}")
    if "" in labels:
        raise UsageError(f"{where}; a row has none")
    if (longest := max(labels, key=len)) and len(longest) > MOST_CHARACTERS:
        raise UsageError(f"{where}; one has {len(longest)} characters, expected at most {MOST_CHARACTERS}")
    known: dict[str, str] = {}
    for label in labels:
        if (other := known.setdefault(label.casefold(), label)) != label:
            raise UsageError(f"{where}; {other!r:.60} and {label!r:.60} differ only in case")
    return labels
