"""Pad batches on the right: a row has the same positions, and so the same loss, in any batch."""

from collections.abc import Sequence
from typing import Any

IGNORED = -100
"""The label of a position that the loss ignores."""


def right_padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Return a tensor with rows of token ids or labels, padded with `value` to the longest, at least to 1."""
    import torch

    longest = max(1, *map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def attention_mask(rows: Sequence[Sequence[int]]) -> Any:
    """Return 1 where `right_padded` has a token, else 0; and 1 at the start of an empty row.

    Attention to nothing would be NaN.
    """
    return right_padded([[1] * max(1, len(row)) for row in rows], 0)


def padding_id(model: Any, tokenizer: Any) -> int:
    """Return the tokenizer's padding token, or 0 if it has none or the model has no embedding for it.

    Padding is masked, so any token does.
    """
    wanted, known = tokenizer.pad_token_id, model.get_input_embeddings().weight.shape[0]
    return wanted if wanted is not None and 0 <= wanted < known else 0


def collate(rows: Sequence[dict[str, list[int]]], padding: int) -> dict[str, Any]:
    """Return ``input_ids``, ``attention_mask`` and ``labels`` to train on, each of shape (rows, longest)."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": right_padded(ids, padding),
        "attention_mask": attention_mask(ids),
        "labels": right_padded([row["labels"] for row in rows], IGNORED),
    }


def collate_step(rows: Sequence[dict[str, list[int]]], padding: int, batch_size: int) -> dict[str, Any]:
    """Return the ``batches`` of a step, whose gradients are accumulated."""
    starts = range(0, len(rows), batch_size)
    return {"batches": [collate(rows[start : start + batch_size], padding) for start in starts]}


def predicts(labels: Any) -> bool:
    """Return whether a batch has a token to predict; the first one of a row has nothing before it."""
    return targets(labels) > 0


def targets(labels: Any) -> int:
    """Return the number of tokens to predict in a batch."""
    return int((labels[:, 1:] != IGNORED).sum())
