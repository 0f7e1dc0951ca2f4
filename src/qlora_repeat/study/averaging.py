"""Averages of adapters: a remedy for the spread of trials besides pinning their randomness.

An arm with averages has trials like any other; their adapters are averages instead of trained.
"""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from qlora_repeat.study.data_sources import STRICT

MEAN, LAST = "mean-of-", "last-"


@dataclass(frozen=True, config=STRICT)
class Averaging:
    """The averages that each arm of a study adds as arms of their own."""

    trials: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Average the adapters of this many trials: trial 1 is the mean of the first ones, and so on. Trials that
    are left over are not averaged. The mean is of B A, because only these products are comparable."""
    last_steps: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """Average the adapter after each of the last steps of a trial: its parameters A and B, which differ
    little between them (as stochastic weight averaging, Izmailov et al., arXiv 1803.05407)."""

    def arms(self, optimizers: list[str], trials: int) -> list[tuple[str, int]]:
        """Return the names of the averaged arms with their numbers of trials."""
        kinds = []
        if self.trials is not None:
            kinds.append((f"{MEAN}{self.trials}", trials // self.trials))
        if self.last_steps is not None:
            kinds.append((f"{LAST}{self.last_steps}-steps", trials))
        return [(f"{name}~{kind}", count) for kind, count in kinds for name in optimizers if count]
