"""What the trials of an attribution experiment left: a row for each.

With it goes the file that keeps them, ``attribution.json``, from which the experiment's table, figure and
sentences are made, without the trials.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.analysis.trial_diff import DivergenceKind
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.system.files import read_json, strict, write_json

FORMAT = 2
Freed = Literal["adapter_init", "data_order", "dropout", "split", "kernels"]
"""A source that can be freed. ``kernels`` are the kind of kernels and the number of threads."""
FREED: tuple[Freed, ...] = get_args(Freed)

BASELINE, REPEAT, JOINT, NUDGE, OTHER = "baseline", "repeat", "joint", "nudge", "optimizer"
"""Conditions that free no single source: the first levels; the first trial of these once more; the second
levels of all sources; one weight of the initial adapter moved; and the other optimizer."""


@dataclass(frozen=True)
class Outcome:
    """One trial of a condition. Its reference is the trial of the baseline in the same replicate."""

    condition: str
    replicate: int
    """From 1; in one replicate each source has the same two levels in all conditions."""
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
    initial_digest: str
    """Of the adapter before any update."""
    rows_digest: str
    """Of the rows that each step saw, and of their numbers of tokens."""
    rates_digest: str
    """Of the learning rates of all steps."""
    first_step: int | None
    """The first step at which its trace differs from that of its reference; None where none does."""
    first_kind: DivergenceKind | None
    """In what it differs there."""
    update_distance: float | None
    """From its reference, in what the adapter adds to the weights; see `adapter_distance.update_distance`."""
    value_distance: float
    """From its reference, in the adapter's values: the norm of the difference."""
    device: str
    """For people; `machine` tells more exactly."""
    machine: str
    """A digest of what of processor, driver and packages may change bits, in training and in testing."""
    software: str
    finished: str

    @property
    def log_perplexity(self) -> float:
        """Whose differences are about relative differences of the perplexity."""
        return math.log(self.perplexity) if self.perplexity > 0 else math.nan


@dataclass(frozen=True)
class Measurements:
    """What an experiment measured."""

    study: str
    """With what follows @."""
    model: str
    model_title: str
    optimizer: str
    other: str
    """The optimizer of the condition that has another."""
    kernels: str
    """Those of the baseline; only ``deterministic`` ones are pinned."""
    freed: list[str]
    """The sources, in their order."""
    pairs: list[list[str]]
    """Those that were also freed two at a time."""
    replicates: int
    steps: int
    one_ulp: float
    """The largest that one unit in the last place of an initial weight of the adapter can be."""
    outcomes: list[Outcome]

    @property
    def arm(self) -> str:
        """A name of model and optimizer that files can have."""
        return f"{self.model}-{self.optimizer}"

    @property
    def together(self) -> str:
        """The condition that has the second levels of all sources: with a single one, that of its own."""
        return JOINT if len(self.freed) != 1 else self.freed[0]

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


def write_attribution(measured: Measurements, analysis: Any, sentences: list[str], path: Path) -> None:
    """Writes what was measured; and, to be read, what it says: an `attribution.Attribution` and sentences."""
    content = {
        "format": FORMAT,
        "measured": dataclasses.asdict(measured),
        "analysis": dataclasses.asdict(analysis),
        "sentences": sentences,
    }
    write_json(path, strict(content))


def read_experiments(study: str, runs: Path, tell: Callable[[str], None]) -> list[Measurements]:
    """What the attribution experiments of a study with this label measured, each of the default's sources.

    A file that cannot be read is told of, and left out: it is a supplement to the tables.
    """
    found = []
    for path in sorted((runs / f"{study}@attribute").glob("*/*/attribution.json")):
        try:
            found.append(read_measured(path))
        except (MissingError, UsageError) as error:
            tell(f"no table S2 or figure S2: {error}")
    return found


def read_measured(path: Path) -> Measurements:
    """What was measured, from a file that may come from elsewhere.

    Raises:
        MissingError: there is no such file, or it is no JSON.
        UsageError: it is not of this format; names the key.
    """
    content = read_json(path, "run `qlora-repeat attribute`, which leaves such a file")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path}: not an attribution of format {FORMAT}; run `qlora-repeat attribute` again")
    try:
        measured = TypeAdapter(Measurements).validate_python(content.get("measured"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: not an attribution: measured.{place}: {first['msg']}") from None
    _check(measured, path)
    return measured


def _check(measured: Measurements, path: Path) -> None:
    """Whether its conditions are those of an experiment, with all replicates that are compared in pairs."""

    def refuse(reason: str) -> NoReturn:
        raise UsageError(f"{path}: not an attribution: {reason}")

    for name in (measured.model, measured.optimizer):
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name, re.ASCII):
            refuse(f"{name!r:.40} is no name of a model or an optimizer")
    if measured.replicates < 2 or len(set(measured.freed)) < len(measured.freed):
        refuse("it has fewer than two replicates, or frees a source twice")
    if not {*measured.conditions} - {BASELINE, REPEAT}:
        refuse("it has nothing to compare with its baseline")
    if unknown := [name for name in measured.freed if name not in FREED]:
        refuse(f"it frees {unknown[0]!r:.40}; sources are {', '.join(FREED)}")
    if any(
        len({*pair}) != 2 or len(pair) != 2 or not set(pair) <= set(measured.freed) for pair in measured.pairs
    ):
        refuse("a pair is not of two sources that it frees")
    if not 0 < measured.one_ulp < math.inf:
        refuse(f"one_ulp is {measured.one_ulp}")
    pairs = [pair_name(pair) for pair in measured.pairs]
    needed = [BASELINE, REPEAT, *measured.freed, *pairs, *([JOINT] if len(measured.freed) > 1 else [])]
    for name in needed:
        if name not in measured.conditions:
            refuse(f"it has no condition {name}")
    for name in measured.conditions:
        numbers = [outcome.replicate for outcome in measured.of(name)]
        whole = list(range(1, (1 if name == REPEAT else measured.replicates) + 1))
        if name not in {*needed, NUDGE, OTHER}:
            refuse(f"it has a condition {name!r:.40}")
        if numbers != whole:
            refuse(f"condition {name} has the replicates {numbers}")
