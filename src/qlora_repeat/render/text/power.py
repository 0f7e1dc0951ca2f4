"""How many trials decide a question, for a terminal."""

from collections.abc import Sequence

from qlora_repeat.results.number_format import number, percent, rounded
from qlora_repeat.results.power import MOST_TRIALS, Effect, PlannedEffect
from qlora_repeat.results.tidy_file import Values
from qlora_repeat.system.printable import one_line

_TESTS = {
    "mean": "difference of means (t test)",
    "median": "difference of medians (rank-sum test)",
    "spread": "ratio of spreads (permutation test)",
    "collapse": "rates of collapse (Fisher's exact test)",
}


def power_text(
    pilot: Values | None, sd: float | None, trials: int | None, power: float, effects: Sequence[PlannedEffect]
) -> str:
    """Return the pilot, and for each effect the trials that it needs and what the present ones find."""
    lines = []
    if pilot is not None:
        what = f"{len(pilot.values)} values of {one_line(pilot.metric)}"
        lines.append(f"pilot {one_line(pilot.arm)}: {what}, SD {rounded(sd)}")
    adjusted = effects[0].effect.comparisons
    several = f", as the smallest p of {adjusted} comparisons" if adjusted > 1 else ""
    lines.append(f"for {percent(power)} power at 5 %, two-sided{several}:")
    for each in effects:
        lines += ["", *_lines(each, sd, trials)]
    return "\n".join(lines)


def _lines(found: PlannedEffect, sd: float | None, trials: int | None) -> list[str]:
    effect = found.effect
    lines = [f"{_TESTS[effect.of]}{_size(effect, sd)}"]
    if effect.size:
        needed = f"more than {MOST_TRIALS}" if found.needed is None else str(found.needed)
        lines.append(f"  needs {needed} trials in each arm")
    if found.assurance is not None:
        lines.append(
            f"  which find it in {percent(found.assurance)} of cases, as the pilot leaves the SD open"
        )
    if found.power is not None:
        lines.append(f"  {trials} trials in each arm find it in {percent(found.power)} of cases")
    if trials is not None:
        lines.append(f"  {trials} trials in each arm can find {_smallest(found, sd)}")
    return lines


def _size(effect: Effect, sd: float | None) -> str:
    if not effect.size:
        return ""
    if effect.of == "collapse":
        return f", {percent(effect.rate)} and {percent(effect.size)}"
    if effect.of == "spread":
        return f", {effect.size:g}"
    return f", {number(effect.size * (sd or 1))} ({rounded(effect.size)} SD)"


def _smallest(found: PlannedEffect, sd: float | None) -> str:
    if found.smallest is None:
        return "no such effect"
    if found.effect.of == "collapse":
        return f"{percent(found.smallest)} beside {percent(found.effect.rate)}"
    if found.effect.of == "spread":
        return f"a ratio of {rounded(found.smallest)}"
    own = f"{rounded(found.smallest)} SD"
    return own if sd is None else f"{rounded(found.smallest * sd)} ({own})"
