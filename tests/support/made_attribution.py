"""Attribution experiments with made-up outcomes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    JOINT,
    NUDGE,
    OTHER,
    REPEAT,
    Measurements,
    Outcome,
    pair_name,
)

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

Levels = dict[str, float]
Model = Callable[[Levels], float]
"""Gives the log perplexity at levels of the sources."""


def made(
    model: Model,
    replicates: int = 7,
    freed: Sequence[str] = FREED,
    pairs: bool = False,
    noise: float = 1e-6,
    seed: int = 1,
    draw: Callable[[np.random.Generator], float] = lambda generator: float(generator.normal()),
) -> Measurements:
    """Return an experiment whose levels of sources are drawn at random; `noise` is the effect of a nudge."""
    generator = np.random.default_rng(seed)
    first = [{source: draw(generator) for source in freed} for _ in range(replicates)]
    second = [{source: draw(generator) for source in freed} for _ in range(replicates)]
    freed_pairs = [list(pair) for pair in itertools.combinations(freed, 2)] if pairs else []
    conditions: dict[str, Sequence[str]] = {source: [source] for source in freed}
    conditions |= {pair_name(pair): pair for pair in freed_pairs}
    if len(freed) > 1:
        conditions[JOINT] = freed
    changes = {OTHER: 0.25}
    outcomes = []
    for name, own in [(BASELINE, []), (REPEAT, []), *conditions.items(), (NUDGE, []), (OTHER, [])]:
        for place in range(1 if name == REPEAT else replicates):
            at = first[place] | {source: second[place][source] for source in own}
            shaken = 0.0 if name in (BASELINE, REPEAT) else float(generator.normal(0, noise))
            value = 2.0 + model(at) + shaken + changes.get(name, 0.0)
            outcomes.append(outcome(name, place + 1, value, own))
    return Measurements(
        study="made",
        model="model",
        model_title="Model",
        optimizer="adamw-32bit",
        other="adamw-8bit",
        kernels="deterministic",
        freed=list(freed),
        pairs=freed_pairs,
        replicates=replicates,
        steps=8,
        one_ulp=4e-9,
        outcomes=outcomes,
    )


def outcome(
    condition: str, replicate: int, log_perplexity: float, freed: Sequence[str] = (), **changes: Any
) -> Outcome:
    """Return one trial with the seeds, digests and first difference that its condition implies."""
    seeds = {
        source: replicate + (100 if source in freed else 0)
        for source in ("adapter_init", "data_order", "dropout")
    }
    seeds |= {"generation": 42, "split": replicate + (100 if "split" in freed else 0)}
    shown = [*freed] or ([condition] if condition in FIRST else [])
    step, kind = min((FIRST[each] for each in shown), default=(None, None))
    same = condition in (BASELINE, REPEAT)
    content: dict[str, Any] = {
        "condition": condition,
        "replicate": replicate,
        "optimizer": "adamw-8bit" if condition == OTHER else "adamw-32bit",
        "kernels": "default" if "kernels" in freed else "deterministic",
        "threads": 2 if "kernels" in freed else 1,
        "seeds": seeds,
        "perplexity": math.exp(log_perplexity),
        "final_loss": 3 + log_perplexity,
        "late_loss": 2 + log_perplexity,
        "diverged_at": None,
        "adapter_digest": f"{BASELINE if same else condition} {replicate}",
        "initial_digest": f"{seeds['adapter_init']} {condition == NUDGE}",
        "rows_digest": f"{seeds['data_order']} {seeds['split']}",
        "rates_digest": "rates",
        "first_step": step,
        "first_kind": kind,
        "update_distance": 0.0 if same else 0.5,
        "value_distance": 0.0 if same else 8e-6,
        "device": "a CPU",
        "machine": "digest",
        "software": "torch 2",
        "finished": "2026-11-25T01:02:03+00:00",
    }
    return Outcome(**content | changes)


def changed(measured: Measurements, condition: str, replicate: int, **changes: Any) -> Measurements:
    """Return the measurements with changes in one trial."""
    outcomes = [
        dataclasses.replace(each, **changes)
        if (each.condition, each.replicate) == (condition, replicate)
        else each
        for each in measured.outcomes
    ]
    return dataclasses.replace(measured, outcomes=outcomes)


def additive(at: Levels) -> float:
    """Return a sum in which adapter init has 90 % of the variance, data order 9 %, dropout 1 %."""
    return sum(weight * at.get(source, 0) for source, weight in WEIGHTS.items())


WEIGHTS = {"adapter_init": math.sqrt(0.9), "data_order": math.sqrt(0.09), "dropout": math.sqrt(0.01)}


def interacting(at: Levels) -> float:
    """Return a value in which adapter init and data order have an effect only together."""
    return 0.1 * at.get("dropout", 0) + at.get("adapter_init", 0) * at.get("data_order", 0)
