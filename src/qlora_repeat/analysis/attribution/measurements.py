"""Read and write the measurements of an attribution experiment, with one outcome for each trial.

Its table, figure and sentences are made from the file ``attribution.json``, without the trials.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from qlora_repeat.analysis.trial_diff import DivergenceKind
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.number_format import computable
from qlora_repeat.system.files import read_json, strict, write_json
from qlora_repeat.system.typed_json import first_problem

FORMAT = 2
Freed = Literal["adapter_init", "data_order", "dropout", "split", "kernels"]
"""A source that can be freed. ``kernels`` stands for the kind of kernels and the number of threads."""
FREED: tuple[Freed, ...] = get_args(Freed)

Number = Annotated[float, AfterValidator(computable)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]

BASELINE, REPEAT, JOINT, NUDGE, OTHER = "baseline", "repeat", "joint", "nudge", "optimizer"
"""Conditions that free no single source: first levels of all sources; their first trial again; second levels
of all sources; one weight of the initial adapter moved; the other optimizer."""

MOST_REPLICATES = 200
"""The most trials of a condition."""


@dataclass(frozen=True)
class Outcome:
    """One trial of a condition. Its reference is the baseline trial of the same replicate."""

    condition: str
    replicate: int
    """From 1; within a replicate, each source has the same two levels in all conditions."""
    optimizer: str
    kernels: str
    threads: int
    seeds: dict[str, int]
    perplexity: Number
    final_loss: Number
    late_loss: Number
    """The mean loss of the last quarter of the steps; the final loss is that of a single batch."""
    diverged_at: int | None
    adapter_digest: str
    initial_digest: str
    """Digest of the adapter before any update."""
    rows_digest: str
    """Digest of the rows of each step and their numbers of tokens."""
    rates_digest: str
    """Digest of the learning rates of all steps."""
    first_step: int | None
    """The first step at which its trace differs from its reference's, if any."""
    first_kind: DivergenceKind | None
    """The kind of that difference."""
    update_distance: Number | None
    """`adapter_distance.update_distance` from its reference."""
    value_distance: Number
    """Norm of the difference of the adapter's values from its reference's."""
    device: str
    """Display name; `machine` is more exact."""
    machine: str
    """Digest of all that may change bits in processor, driver and packages, in training and in testing."""
    software: str
    finished: str

    @property
    def log_perplexity(self) -> float:
        """Return the log perplexity; its differences approximate relative differences of perplexity."""
        return math.log(self.perplexity) if self.perplexity > 0 else math.nan


@dataclass(frozen=True)
class Measurements:
    """The measurements of an experiment."""

    study: str
    """The study's label, including what follows @."""
    model: _Name
    model_title: str
    optimizer: _Name
    other: str
    """The optimizer of the condition ``optimizer``."""
    kernels: str
    """The kernels of the baseline; only ``deterministic`` ones are pinned."""
    freed: list[Freed]
    """The freed sources, in order."""
    pairs: list[list[Freed]]
    """Pairs of sources that were also freed together."""
    replicates: Annotated[int, Field(ge=2, le=MOST_REPLICATES)]
    steps: int
    one_ulp: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Upper bound of a unit in the last place of an initial weight of the adapter."""
    outcomes: list[Outcome]

    @property
    def arm(self) -> str:
        """Return model and optimizer as part of a file name."""
        return f"{self.model}-{self.optimizer}"

    @property
    def together(self) -> str:
        """Return the condition that has the second levels of all sources; of a single source, its own."""
        return JOINT if len(self.freed) != 1 else self.freed[0]

    def of(self, condition: str) -> list[Outcome]:
        """Return the outcomes of a condition, by replicate."""
        found = [outcome for outcome in self.outcomes if outcome.condition == condition]
        return sorted(found, key=lambda outcome: outcome.replicate)

    @property
    def conditions(self) -> list[str]:
        """Return the names of the conditions, in order."""
        return list(dict.fromkeys(outcome.condition for outcome in self.outcomes))


def pair_name(pair: Sequence[str]) -> str:
    """Return the name of the condition that frees these two sources."""
    return " × ".join(pair)


def freed_by_condition(
    freed: Sequence[Freed], pairs: Sequence[Sequence[Freed]]
) -> dict[str, tuple[Freed, ...]]:
    """Return the sources that each condition frees; ``joint`` only if there are two or more sources."""
    found: dict[str, tuple[Freed, ...]] = {BASELINE: (), REPEAT: ()}
    found |= {pair_name(sources): tuple(sources) for sources in (*((source,) for source in freed), *pairs)}
    return found | ({JOINT: tuple(freed)} if len(freed) > 1 else {})


def write_attribution(measured: Measurements, analysis: Any, sentences: list[str], path: Path) -> None:
    """Write the measurements and, for readers, their analysis: a `decompose.Attribution` and sentences."""
    content = {
        "format": FORMAT,
        "measured": dataclasses.asdict(measured),
        "analysis": dataclasses.asdict(analysis),
        "sentences": sentences,
    }
    write_json(path, strict(content))


def read_experiments(study: str, runs: Path, tell: Callable[[str], None]) -> list[Measurements]:
    """Read the attribution experiments with default sources of the study with this label.

    Call `tell` for a file that cannot be read, and leave it out: it only supplements the tables.
    """
    found = []
    for path in sorted((runs / f"{study}@attribute").glob("*/*/attribution.json")):
        try:
            found.append(read_measured(path))
        except (MissingError, UsageError) as error:
            tell(f"no table S2 or figure S2: {error}")
    return found


def read_measured(path: Path) -> Measurements:
    """Read measurements from a file of any origin.

    Raises:
        MissingError: there is no such file, or it is not JSON.
        UsageError: it does not have this format; names the key.
    """
    content = read_json(path, "run `qlora-repeat attribute`, which writes it")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path}: not an attribution of format {FORMAT}; run `qlora-repeat attribute` again")
    try:
        measured = TypeAdapter(Measurements).validate_python(content.get("measured"))
    except ValidationError as error:
        raise UsageError(f"{path}: not an attribution: measured.{first_problem(error)}") from None
    for problem in _problems(measured):
        raise UsageError(f"{path}: not an attribution: {problem}")
    return measured


def _problems(measured: Measurements) -> Iterator[str]:
    """Yield why conditions and replicates are not those of an experiment."""
    freed = set(measured.freed)
    if len(freed) < len(measured.freed):
        yield "it frees a source twice"
    if any(len(pair) != 2 or len({*pair}) != 2 or not freed.issuperset(pair) for pair in measured.pairs):
        yield "a pair must be two of the freed sources"
    needed = freed_by_condition(measured.freed, measured.pairs)
    for name in dict.fromkeys([*needed, *measured.conditions]):
        numbers = [outcome.replicate for outcome in measured.of(name)]
        if name not in {*needed, NUDGE, OTHER}:
            yield f"it has a condition {name!r:.40}"
        elif not numbers:
            yield f"it has no condition {name}"
        elif len(numbers) != (1 if name == REPEAT else measured.replicates) or numbers != [
            *range(1, len(numbers) + 1)
        ]:
            yield f"condition {name} has the replicates {numbers}"
    if not {*measured.conditions} - {BASELINE, REPEAT}:
        yield "it has no condition to compare with its baseline"
