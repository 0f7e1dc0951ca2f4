"""What the trials of an attribution experiment left: a row for each, and how far their adapters are apart.

With it goes the file that keeps them, ``attribution.json``, from which the experiment's table, figure and
sentences are made, without the trials.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.divergence import Kind
from qlora_repeat.errors import UsageError
from qlora_repeat.files import read_json, write_json

FORMAT = 1
Freed = Literal["adapter_init", "data_order", "dropout", "split", "kernels"]
"""A source that can be freed. ``kernels`` are the kind of kernels and the number of threads."""
FREED: tuple[Freed, ...] = get_args(Freed)

BASELINE, JOINT, NUDGE = "baseline", "joint", "nudge"
OTHER, JOINT_OTHER = "optimizer", "joint, optimizer"
"""Conditions with the other optimizer: with all sources pinned, and with all of them freed."""


@dataclass(frozen=True)
class Outcome:
    """One trial of a condition. It is compared with its reference: the first trial of the baseline, or, with
    the other optimizer and freed sources, the trial of the same seeds with the arm's own."""

    condition: str
    replicate: int
    """From 1; freed sources have the same level in the same replicate of all conditions."""
    optimizer: str
    kernels: str
    threads: int
    seeds: dict[str, int]
    perplexity: float
    final_loss: float
    late_loss: float
    """The mean of the last quarter of the steps; the loss of the last one is that of one batch alone."""
    diverged_at: int | None
    adapter_digest: str
    first_step: int | None
    """The first step at which its trace differs from that of its reference; None where none does."""
    first_kind: Kind | None
    """In what it differs there."""
    update_distance: float | None
    """From its reference, in what the adapter adds to the weights; see `adapter_distance.update_distance`."""
    value_distance: float
    """From its reference, in the adapter's values: the norm of the difference."""
    device: str
    software: str
    finished: str

    @property
    def log_perplexity(self) -> float:
        """Whose differences are about relative differences of the perplexity."""
        return math.log(self.perplexity) if self.perplexity > 0 else math.nan


@dataclass(frozen=True)
class Measured:
    """What an experiment measured."""

    study: str
    """With what follows @."""
    model: str
    model_title: str
    optimizer: str
    other: str
    """The optimizer of the conditions that have another."""
    freed: list[str]
    """The sources, in their order."""
    pairs: list[list[str]]
    """Those that were also freed two at a time."""
    replicates: int
    steps: int
    one_ulp: float
    """The largest that one unit in the last place of an initial weight of the adapter can be."""
    outcomes: list[Outcome]
    apart: dict[str, list[float | None]]
    """The update distances within each condition, between its replicates two by two."""

    def of(self, condition: str) -> list[Outcome]:
        """The outcomes of a condition, by replicate."""
        found = [outcome for outcome in self.outcomes if outcome.condition == condition]
        return sorted(found, key=lambda outcome: outcome.replicate)

    @property
    def conditions(self) -> list[str]:
        """Their names, in their order."""
        return list(dict.fromkeys(outcome.condition for outcome in self.outcomes))


def pair_name(pair: Sequence[str]) -> str:
    """The name of the condition that frees these two."""
    return " × ".join(pair)


def write_attribution(measured: Measured, analysis: Any, sentences: list[str], path: Path) -> None:
    """Writes what was measured; and, to be read, what it says: an `attribution.Attribution` and sentences."""
    content = {
        "format": FORMAT,
        "measured": dataclasses.asdict(measured),
        "analysis": dataclasses.asdict(analysis),
        "sentences": sentences,
    }
    write_json(path, content)


def read_measured(path: Path) -> Measured:
    """What was measured, from a file that may come from elsewhere.

    Raises:
        MissingError: there is no such file, or it is no JSON.
        UsageError: it is not of this format; names the key.
    """
    content = read_json(path, "run `qlora-repeat attribute`, which leaves such a file")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path}: not an attribution of format {FORMAT}; run `qlora-repeat attribute` again")
    try:
        measured = TypeAdapter(Measured).validate_python(content.get("measured"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: not an attribution: measured.{place}: {first['msg']}") from None
    _check(measured, path)
    return measured


def _check(measured: Measured, path: Path) -> None:
    """Whether its conditions are those of an experiment, with all replicates that are compared in pairs."""

    def refuse(reason: str) -> NoReturn:
        raise UsageError(f"{path}: not an attribution: {reason}")

    if unknown := [name for name in measured.freed if name not in FREED]:
        refuse(f"it frees {unknown[0]!r:.40}; sources are {', '.join(FREED)}")
    if any(len(pair) != 2 or not set(pair) <= set(measured.freed) for pair in measured.pairs):
        refuse("a pair is not of two sources that it frees")
    if not 0 < measured.one_ulp < math.inf:
        refuse(f"one_ulp is {measured.one_ulp}")
    pairs = [pair_name(pair) for pair in measured.pairs]
    compared = [*measured.freed, *pairs]
    known = {BASELINE, JOINT, NUDGE, OTHER, JOINT_OTHER, *compared}
    for name in (BASELINE, *compared):
        if name not in measured.conditions:
            refuse(f"it has no condition {name}")
    for name in measured.conditions:
        numbers = [outcome.replicate for outcome in measured.of(name)]
        whole = list(range(1, measured.replicates + 1))
        if name not in known:
            refuse(f"it has a condition {name!r:.40}")
        if numbers != (whole[: len(numbers)] if name in (BASELINE, OTHER) else whole):
            refuse(f"condition {name} has the replicates {numbers}")
