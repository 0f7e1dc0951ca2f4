"""Tokenize a part of the data once for all trials that use the same token ids."""

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_digest
from qlora_repeat.assets.datasets import Example, Part, encode, instruction_text, part_rows, row_text
from qlora_repeat.assets.derived_cache import copy_folder, has_copy, keep_copy
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import packages
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.safetensors_file import read_weights

FILE = "examples.safetensors"


def encoded_part(
    workspace: Workspace,
    model_name: str,
    part: Part,
    seed: int,
    tokenizer: Any,
    limit: int | None = None,
) -> list[Example]:
    """Return the first examples of a part of the split of a seed, as token ids for a model of the study.

    `tokenizer` belongs to the model's base.
    """
    model = workspace.study.models[model_name]
    rows = part_rows(workspace, model.data, part, seed)[:limit]
    texts = [
        [row_text(model, row), instruction_text(model, row) if "answer" in row else None] for row in rows
    ]
    depends_on = [
        base_digest(workspace, model.base),
        json_digest(texts),
        model.training.max_length,
        model.special_tokens,
        packages(),
    ]
    folder = copy_folder(workspace.cache, "encoded", model_name, depends_on)
    if has_copy(folder):
        return _read(folder)
    examples = encode(tokenizer, model, rows)
    keep_copy(folder, lambda new: _write(examples, new))
    return examples


def _write(examples: list[Example], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        "ids": torch.tensor([token for example in examples for token in example.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(example.ids) for example in examples], dtype=torch.int32),
        "answer_starts": torch.tensor([example.answer_start for example in examples], dtype=torch.int32),
    }
    save_file(tensors, folder / FILE)


def _read(folder: Path) -> list[Example]:
    tensors = {name: tensor.tolist() for name, tensor in read_weights(folder / FILE).items()}
    ends = pairwise(accumulate(tensors["lengths"], initial=0))
    return [
        Example(row, tensors["ids"][start:end], answer)
        for row, ((start, end), answer) in enumerate(zip(ends, tensors["answer_starts"], strict=True))
    ]
