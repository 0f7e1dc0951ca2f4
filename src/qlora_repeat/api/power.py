"""How many trials decide a question, from a pilot or a stated standard deviation."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from qlora_repeat.api.arm_comparison import read_arm
from qlora_repeat.api.results import Results
from qlora_repeat.errors import UsageError
from qlora_repeat.render.text.power import power_text
from qlora_repeat.results.power import (
    POWER,
    Effect,
    PlannedEffect,
    assurance,
    power_of,
    smallest_found,
    trials_needed,
)
from qlora_repeat.results.tidy_file import Values


@dataclass(frozen=True, repr=False)
class Power:
    """The trials that each arm needs, and what the present number of trials can find."""

    pilot: Values | None
    sd: float | None
    trials: int | None
    """The present number of trials in each arm."""
    power: float
    effects: list[PlannedEffect]
    """What to find; without any, the smallest effects that the present trials find."""

    def __str__(self) -> str:
        return power_text(self.pilot, self.sd, self.trials, self.power, self.effects)

    __repr__ = __str__


def power(
    pilot: str | Path | Results | None = None,
    *,
    metric: str | None = None,
    sd: float | None = None,
    difference: float | None = None,
    ratio: float | None = None,
    rates: tuple[float, float] | None = None,
    trials: int | None = None,
    comparisons: int = 1,
    wanted: float = POWER,
    runs: str | Path | None = None,
) -> Power:
    """Return how many trials in each arm find an effect, and what the present trials can find.

    Args:
        pilot: an arm, as for `compare`; its values give the standard deviation and the present trials.
        metric: as for `compare`.
        sd: the standard deviation, in place of a pilot.
        difference: a difference of means or medians, in the unit of the values.
        ratio: a ratio of spreads, above 1.
        rates: the rates of collapse of two arms.
        trials: the present number of trials in each arm; by default the pilot's.
        comparisons: how many comparisons there are; this one may have the smallest p.
        wanted: the chance to find the effect.
        runs: the folder of results, where a study is named.

    Raises:
        MissingError, UsageError: as `compare`; or a number cannot be used.
    """
    own = None if pilot is None else read_arm(pilot, metric, Path(runs) if runs is not None else None)
    finite = [value for value in own.values if math.isfinite(value)] if own else []
    if own is not None and sd is None:
        if len(finite) < 2:
            raise UsageError(f"{own.arm}: {len(finite)} finite values; a standard deviation needs 2")
        sd = stdev(finite)
    count = len(own.values) if own else None
    present = trials if trials is not None else count
    _require(sd, difference, ratio, rates, wanted)
    effects = []
    if difference is not None and sd is not None:
        effects += [Effect(of, abs(difference) / sd, comparisons=comparisons) for of in ("mean", "median")]
    if ratio is not None:
        effects.append(Effect("spread", ratio, comparisons=comparisons))
    if rates is not None:
        effects.append(Effect("collapse", max(rates), min(rates), comparisons))
    of_pilot = len(finite) if own is not None and len(finite) > 1 else None
    found = [_planned(effect, present, wanted, of_pilot) for effect in effects]
    if not effects:
        if present is None:
            raise UsageError("give --difference, --ratio or --rates, or a pilot or --trials")
        of_all = [Effect("mean", 0, comparisons=comparisons), Effect("median", 0, comparisons=comparisons)]
        of_all += [Effect("spread", 0, comparisons=comparisons), Effect("collapse", 0, 0, comparisons)]
        found = [PlannedEffect(each, smallest=smallest_found(each, present, wanted)) for each in of_all]
    return Power(own, sd, present, wanted, found)


def _planned(effect: Effect, present: int | None, wanted: float, pilot: int | None) -> PlannedEffect:
    needed = trials_needed(effect, wanted)
    is_of_sd = pilot is not None and effect.of in ("mean", "median")
    return PlannedEffect(
        effect,
        needed=needed,
        power=None if present is None else power_of(effect, present),
        smallest=None if present is None else smallest_found(effect, present, wanted),
        assurance=assurance(effect, needed, pilot) if is_of_sd and needed and pilot else None,
    )


def _require(
    sd: float | None,
    difference: float | None,
    ratio: float | None,
    rates: tuple[float, float] | None,
    wanted: float,
) -> None:
    if difference is not None and sd is None:
        raise UsageError("--difference needs --sd or a pilot")
    if sd is not None and not 0 < sd < math.inf:
        raise UsageError(f"SD {sd:g}: expected above 0")
    if difference is not None and not 0 < abs(difference) < math.inf:
        raise UsageError(f"difference {difference:g}: expected one that is not 0")
    if ratio is not None and not 1 < ratio < math.inf:
        raise UsageError(f"ratio {ratio:g}: expected above 1")
    if rates is not None and not (0 <= min(rates) < max(rates) <= 1):
        raise UsageError(f"rates {rates[0]:g} and {rates[1]:g}: expected two different ones from 0 to 1")
    if not 0.05 < wanted < 1:
        raise UsageError(f"power {wanted:g}: expected between 0.05 and 1, such as 0.8")
