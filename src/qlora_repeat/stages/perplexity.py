"""Perplexity (equation 1) and exact-match accuracy of a model, from the same logits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_repeat.assets.datasets import Example
from qlora_repeat.stages.padding import attention_mask, right_padded
from qlora_repeat.study.study import Loss


@dataclass(frozen=True)
class ExampleLoss:
    """The loss of a model on one example."""

    row: int
    tokens: int
    """Number of predicted tokens: all but the first, or those of the answer."""
    loss: float
    """Negative log-likelihood in nats, summed over the predicted tokens."""
    answered: bool | None
    """Whether greedy decoding gives exactly the answer; None if there is none, or if it is cut."""


def example_losses(
    model: Any,
    examples: list[Example],
    batch_size: int,
    pad_token_id: int,
    report: Callable[[int], None],
    loss: Loss = "all-tokens",
) -> list[ExampleLoss]:
    """Return the losses of the examples that have a token to predict, in their order.

    Sort by length before batching, and pad on the right, so that batches have little padding. Logits are
    converted to float32 before the log-likelihood. `report` is called with the number of examples done.
    """
    import torch

    examples = [example for example in examples if any(example.is_target(loss))]
    by_length = sorted(examples, key=lambda example: (len(example.ids), example.row))
    losses: dict[int, ExampleLoss] = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        rows = [example.ids for example in batch]
        ids, mask = right_padded(rows, pad_token_id), attention_mask(rows)
        with torch.inference_mode():
            logits = model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
            ).logits
            for place, example in enumerate(batch):
                losses[example.row] = _loss(logits[place, : len(example.ids) - 1], example, loss)
        report(len(losses))
    return [losses[example.row] for example in examples]


def _loss(logits: Any, example: Example, loss: Loss) -> ExampleLoss:
    """Return the loss of one example; `logits` predict its tokens from the second on."""
    import torch

    targets = torch.tensor(example.ids[1:], device=logits.device)
    each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    answered = None
    if example.answer_start < len(example.ids) and not example.cut:
        # Greedy decoding gives exactly the answer if each of its tokens has the highest logit.
        first = max(example.answer_start - 1, 0)
        last = example.answers[-1][1] - 1 if example.answers else len(targets)
        answered = bool((logits[first:last].argmax(-1) == targets[first:last]).all())
    if loss != "all-tokens":
        each = each[torch.tensor(example.is_target(loss)[1:], device=each.device)]
    return ExampleLoss(example.row, len(each), each.double().sum().item(), answered)


def perplexity(losses: list[ExampleLoss]) -> float:
    """Return exp(total negative log-likelihood / tokens), equation 1 over all examples; inf on overflow."""
    return _exp(sum(loss.loss for loss in losses) / sum(loss.tokens for loss in losses))


def mean_example_perplexity(losses: list[ExampleLoss]) -> float:
    """Return the mean of the examples' perplexities, which weighs long and short texts equally."""
    return sum(_exp(loss.loss / loss.tokens) for loss in losses) / len(losses)


def accuracy(losses: list[ExampleLoss]) -> float | None:
    """Return the share of examples answered exactly, or None if no example has an answer."""
    answered = [loss.answered for loss in losses if loss.answered is not None]
    return sum(answered) / len(answered) if answered else None


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
