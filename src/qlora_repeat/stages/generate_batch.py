"""Many responses at once, each with the text that it has when it is drawn alone.

On a CPU a token takes as long as it takes to read the weights, so that many answers at once take little
longer than one. But a row among others has not the logits of the row alone: other shapes are added up in
another order. So a token counts only if it is drawn whatever the logits are, within a bound of those that
are seen; else the response is drawn alone, by `respond`.

Measured in float32 on a CPU, over 32 rows of 20 tokens, as the largest difference among a row's logits
relative to the largest of them (40 for SmolLM2-135M, 10 for NeoX-pocket): for SmolLM2-135M 1.4e-6 in the
median, and at most 6.7e-6, or 1.3e-4 of a logit; for NeoX-pocket at most 1.2e-6. Damaged weights amplify
rounding: with noise of 0.3, 3 and 30 times their own deviation SmolLM2-135M had at most 3.5e-5, 6.7e-4 and
4.5e-3, which was 15, 27 and 50 times what its first tokens had. So the bound is six times the most of whole
models, and more where the model at hand differs by more: it computes the first tokens of a row of each prompt
alone, too.

Each prompt is read once, and alone, as `generate` reads it. What follows is computed together; rows that have
ended, or are no longer sure, are left out of it.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_repeat.assets.datasets import Prompt
from qlora_repeat.stages.generate import cut, prompt_ids, respond
from qlora_repeat.study.study import Sampling, Study

ROWS = 32
"""Responses at once: each keeps the keys and values of its prompt and its answer."""
LOGIT_BOUND = 4e-5
"""How far a logit may be from that of the row alone, relative to the row's largest, or to 1 if it is less."""
MARGIN = 30
"""The bound is at least so many times what the model at hand is seen to differ by."""
CHECKED = 2
"""So many tokens of the first row of each prompt are computed alone, too, to see that."""
LARGEST = 1e30
"""Scores up to this are sampled from as they are; see `respond.finite_scores`."""
ROUNDING = 1e-6
"""What `generate` may lose in a scaled score, relative to the largest: some of float32's last places."""
MASS_ROUNDING = 1e-5
"""What it may lose in a sum of probabilities."""

_HARMLESS = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens",
    "output_attentions", "output_hidden_states", "pad_token_id", "temperature", "top_k", "top_p",
    "transformers_version", "use_cache",
}  # fmt: skip
"""What a model's own generation config may say: told otherwise in each call, or heeded here."""


@dataclass(frozen=True)
class Asked:
    """What tells a response."""

    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Answers:
    """Responses, in the order in which they were asked for."""

    texts: list[str]
    alone: int
    """How many of them were drawn alone."""


@dataclass
class _Row:
    """A response that is being drawn."""

    asked: Asked
    generator: Any
    ids: list[int] = field(default_factory=list)
    text: str | None = None
    """Once it has ended."""
    alone: Any = None
    """A cache of its own, of the first row of each prompt."""


def respond_batch(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    study: Study,
    model_name: str,
    bound: float = LOGIT_BOUND,
) -> Answers:
    """The responses that `respond` gives, drawn together where that is sure to change no text."""
    import torch

    found: list[str | None] = []
    for start in range(0, len(asked), ROWS):
        some = asked[start : start + ROWS]
        rows = [_Row(one, torch.Generator(model.device).manual_seed(one.seed)) for one in some]
        if len(rows) > 1 and can_batch(model):
            with torch.inference_mode():
                _draw(model, tokenizer, rows, study, model_name, bound)
        found += [row.text for row in rows]
    texts = [
        respond(model, tokenizer, one.prompt, study, model_name, one.sampling, one.seed)
        if text is None
        else text
        for one, text in zip(asked, found, strict=True)
    ]
    return Answers(texts, found.count(None))


def can_batch(model: Any) -> bool:
    """Whether the bound is meant for a model: its device, its arithmetic, and what it does to scores.

    It was measured on a CPU only. In 16 bits logits differ by so much that few responses would be sure.
    """
    import torch

    taken = inspect.signature(model.forward).parameters
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and {"position_ids", "logits_to_keep"} <= taken.keys()
        and model.generation_config.to_diff_dict().keys() <= _HARMLESS
    )


def _draw(model: Any, tokenizer: Any, rows: list[_Row], study: Study, model_name: str, bound: float) -> None:
    """Draws all rows; those that end while they are sure have their text then."""
    import torch
    from transformers.cache_utils import DynamicLayer

    wanted, device = study.models[model_name], model.device
    read: dict[str, Any] = {}
    for row in rows:
        prompt = row.asked.prompt
        if prompt.fed in read:
            continue
        ids = prompt_ids(tokenizer, prompt, wanted).to(device)
        read[prompt.fed] = output = model(**ids, use_cache=True, logits_to_keep=1)
        if any(type(layer) is not DynamicLayer for layer in output.past_key_values.layers):
            return  # not plain keys and values, which can be padded
        row.alone = output.past_key_values
    outputs = [read[row.asked.prompt.fed] for row in rows]
    cache, mask = _stacked([output.past_key_values for output in outputs])
    logits = torch.cat([output.logits[:, -1] for output in outputs])
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]

    while True:
        going = []
        for place, (row, scores) in enumerate(zip(rows, logits.cpu(), strict=True)):
            waits = torch.empty_like(logits[:1]).exponential_(generator=row.generator)[0].cpu()
            token = sure_token(scores, waits, row.asked.sampling, study.generation.top_k, bound)
            if token is None:
                continue
            row.ids.append(token)
            stopped = wanted.stop is not None and wanted.stop in tokenizer.decode(row.ids)
            if stopped or token in ends or len(row.ids) == study.data[wanted.data].max_new_tokens:
                row.text = cut(tokenizer, row.ids, wanted)
            else:
                going.append(place)
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask = mask[kept]
        last = torch.tensor([row.ids[-1:] for row in rows], device=device)
        positions = mask.sum(dim=1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits = model(
            input_ids=last, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits[:, -1]
        for place, row in enumerate(rows):
            if row.alone is not None and len(row.ids) <= CHECKED:
                alone = model(input_ids=last[[place]], past_key_values=row.alone).logits[0, -1]
                seen = (logits[place] - alone).abs().max() / alone.abs().max().clamp(min=1)
                bound = max(bound, MARGIN * seen.nan_to_num(nan=math.inf, posinf=math.inf).item())


def _stacked(caches: list[Any]) -> tuple[Any, Any]:
    """One cache with a row for each of those given, padded at their left, and its attention mask."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    lengths = [cache.get_seq_length() for cache in caches]
    longest = max(lengths)
    stacked = DynamicCache()
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        padding = [(0, 0, longest - length, 0) for length in lengths]
        keys = [pad(layer.keys, wide) for layer, wide in zip(layers, padding, strict=True)]
        values = [pad(layer.values, wide) for layer, wide in zip(layers, padding, strict=True)]
        stacked.update(torch.cat(keys), torch.cat(values), number)
    places = torch.arange(longest, device=caches[0].layers[0].keys.device)
    mask = torch.stack([places >= longest - length for length in lengths]).long()
    return stacked, mask


def sure_token(scores: Any, waits: Any, sampling: Sampling, top_k: int, bound: float) -> int | None:
    """The token that is drawn whichever scores within the bound a model gives; None if there is no such one.

    `torch.multinomial` draws the token with the largest probability / wait, of waits that are exponentially
    distributed: that with the largest score / temperature - log(wait) among those that top-k and top-p leave.

    Args:
        scores: a row's logits; others than finite ones are never sure.
        waits: what the row's generator gave for each.
    """
    import torch

    largest = scores.abs().max().item()
    if not largest <= LARGEST or waits.min().item() <= 0:
        return None
    scaled = scores.double() / sampling.temperature
    off = bound * max(1.0, largest) / sampling.temperature
    off += ROUNDING * max(1.0, largest / sampling.temperature)
    if off > 20:  # of which the exponential would overflow
        return None

    # Sorted from the largest, both the tokens that may pass top-k and those that must are the first ones.
    may, must = -math.inf, -math.inf
    if 0 < top_k < len(scaled):
        *_, last_in, first_out = torch.topk(scaled, top_k + 1).values.tolist()
        may, must = last_in - 2 * off, first_out + 2 * off
    tokens = (scaled >= may).nonzero()[:, 0]
    values, order = scaled[tokens].sort(descending=True)
    tokens = tokens[order]
    passing = int((values >= must).sum())

    keys = values - waits[tokens].double().log()
    weights = (values - values[0]).exp()
    mass = torch.cat([weights.new_zeros(1), weights.cumsum(0)])  # of so many of the first
    swing = math.exp(2 * off)  # how far the ratio of two sums of weights may be from what is seen
    if sampling.top_p < 1:
        # A token passes where those above it have less than this share of all that pass top-k.
        above = mass[torch.searchsorted(-values, -(values + 2 * off)).clamp(max=passing)]
        least_share = above / (above + swing * (mass[-1] - above))
        keys[least_share >= sampling.top_p + MASS_ROUNDING] = -math.inf
    winner = int(keys.argmax())
    lead = keys[winner] - torch.cat([keys[:winner], keys[winner + 1 :], keys.new_tensor([-math.inf])]).max()
    if winner >= passing or lead <= 2 * off:
        return None
    if sampling.top_p < 1:
        near = int((values >= values[winner] - 2 * off).sum())
        above = swing * (mass[near] - weights[winner])
        below = weights[winner] + (mass[passing] - mass[near]).clamp(min=0)
        if near > 1 and above >= (sampling.top_p - MASS_ROUNDING) * (above + below):
            return None
    return int(tokens[winner])
