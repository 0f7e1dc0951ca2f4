"""Experiments with outcomes that a test makes up."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qlora_repeat.outcomes import BASELINE, JOINT, JOINT_OTHER, NUDGE, OTHER, Measured, Outcome, pair_name

FREED = ["adapter_init", "data_order", "dropout"]
FIRST: dict[str, tuple[int, Any]] = {
    "adapter_init": (0, "init"),
    "data_order": (1, "data"),
    "dropout": (1, "gradient"),
    "split": (1, "data"),
    "kernels": (1, "gradient"),
    NUDGE: (0, "init"),
    OTHER: (1, "update"),
}

Model = Callable[[dict[str, float]], float]
"""The log perplexity at levels of the sources; 0 is where they are pinned."""


def made(
    model: Model,
    replicates: int = 7,
    freed: Sequence[str] = FREED,
    pairs: bool = False,
    noise: float = 1e-6,
    seed: int = 1,
) -> Measured:
    """An experiment on a model whose sources have standard normal levels, and whose noise is a nudge's."""
    generator = np.random.default_rng(seed)
    levels = {source: generator.normal(size=replicates) for source in freed}
    freed_pairs = [list(pair) for pair in itertools.combinations(freed, 2)] if pairs else []
    conditions = {source: [source] for source in freed} | {pair_name(pair): pair for pair in freed_pairs}
    conditions |= {JOINT: list(freed), NUDGE: [], JOINT_OTHER: list(freed)}
    outcomes = [outcome(BASELINE, number, 2.0 + model({})) for number in (1, 2)]
    for name, own in conditions.items():
        for place in range(replicates):
            at = {source: float(levels[source][place]) for source in own}
            value = 2.0 + model(at) + float(generator.normal(0, noise))
            first = FIRST[OTHER if name == JOINT_OTHER else own[0] if own else NUDGE]
            seeds = dict.fromkeys(own, place)
            changes: dict[str, Any] = {"optimizer": "adamw-8bit"} if name == JOINT_OTHER else {}
            outcomes.append(outcome(name, place + 1, value, first, seeds, **changes))
    outcomes.append(outcome(OTHER, 1, 2.0 + model({}) + 0.25, FIRST[OTHER], optimizer="adamw-8bit"))
    return Measured(
        study="made",
        model="model",
        model_title="Model",
        optimizer="adamw-32bit",
        other="adamw-8bit",
        freed=list(freed),
        pairs=freed_pairs,
        replicates=replicates,
        steps=8,
        one_ulp=4e-9,
        outcomes=outcomes,
        apart={name: [0.5, 0.75, 1.0] for name in (*conditions, BASELINE)},
    )


def outcome(
    condition: str,
    replicate: int,
    log_perplexity: float,
    first: tuple[int, Any] | tuple[None, None] = (None, None),
    seeds: dict[str, int] | None = None,
    **changes: Any,
) -> Outcome:
    """One trial."""
    pinned = {"split": 42, "adapter_init": 42, "data_order": 42, "dropout": 42, "generation": 42}
    content: dict[str, Any] = {
        "condition": condition,
        "replicate": replicate,
        "optimizer": "adamw-32bit",
        "kernels": "deterministic",
        "threads": 1,
        "seeds": pinned | (seeds or {}),
        "perplexity": math.exp(log_perplexity),
        "final_loss": 3 + log_perplexity,
        "late_loss": 2 + log_perplexity,
        "diverged_at": None,
        "adapter_digest": "same" if condition == BASELINE else f"{condition} {replicate}",
        "first_step": first[0],
        "first_kind": first[1],
        "update_distance": 0.5,
        "value_distance": 0.0 if condition == BASELINE else 8e-6,
        "device": "a CPU",
        "software": "torch 2",
        "finished": "2026-11-25T01:02:03+00:00",
    }
    return Outcome(**content | changes)


def additive(at: dict[str, float]) -> float:
    """Adapter init has 90 % of the variance, data order 9 %, dropout 1 %."""
    return sum(weight * at.get(source, 0) for source, weight in WEIGHTS.items())


WEIGHTS = {"adapter_init": math.sqrt(0.9), "data_order": math.sqrt(0.09), "dropout": math.sqrt(0.01)}


def interacting(at: dict[str, float]) -> float:
    """Adapter init and data order matter only together."""
    return 0.1 * at.get("dropout", 0) + at.get("adapter_init", 0) * at.get("data_order", 0)
