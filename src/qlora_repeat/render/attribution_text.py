"""What an attribution says, in words."""

import math

from qlora_repeat.attribution import MAIN, Amplification, Attribution, Decomposition, Precision
from qlora_repeat.outcomes import BASELINE, JOINT, JOINT_OTHER, NUDGE, OTHER, Measured
from qlora_repeat.paired import Estimate
from qlora_repeat.render.summary import DASH, number
from qlora_repeat.statistics import LEVEL

_TITLES = {
    BASELINE: "nothing (baseline)",
    "adapter_init": "adapter init",
    "data_order": "data order",
    "dropout": "dropout",
    "split": "split",
    "kernels": "kernels and threads",
    NUDGE: "one weight by one ulp",
    JOINT: "all together",
}


def title(condition: str, measured: Measured) -> str:
    """What is freed or changed in a condition, for people."""
    if condition in (OTHER, JOINT_OTHER):
        state = measured.other.removeprefix("adamw-").replace("bit", "-bit")
        return f"{state} state" if condition == OTHER else f"{_TITLES[JOINT]}, {state} state"
    return " × ".join(_TITLES.get(part, part) for part in condition.split(" × "))


def sentences(measured: Measured, found: Attribution) -> list[str]:
    """First, where there are problems, that it is not to be interpreted. Then which source explains most,
    whether sources are additive, what becomes of a nudge, and what the state's precision does."""
    told = [f"Not to be interpreted: {problem}" for problem in found.problems[:1]]
    if (others := len(found.problems) - 1) > 0:
        told[0] += f" (And {others} more such problem{'s' if others > 1 else ''}.)"
    if (decomposition := found.decompositions.get(MAIN)) is not None:
        told += [_largest(measured, decomposition), _additive(measured, decomposition)]
    elif measured.freed:
        (effect,) = (effect for effect in found.effects if effect.condition == measured.freed[0])
        told.append(
            f"{title(measured.freed[0], measured).capitalize()} alone spreads log perplexity by a standard "
            f"deviation of {number(effect.spreads[MAIN].sd) or DASH}; what share that is, and whether "
            "sources are additive, takes two sources or more to tell."
        )
    if found.amplification is not None:
        told.append(_nudge(found.amplification))
    if found.precision is not None:
        told.append(_precision(found.precision))
    return told


def _largest(measured: Measured, found: Decomposition) -> str:
    if found.largest is None:
        return (
            "Which source explains most cannot be told: log perplexity is not finite in some trial, or the "
            "same in all trials with everything freed."
        )
    order = sorted(measured.freed, key=lambda source: found.shares[source].value or 0, reverse=True)
    first, *others = (f"{title(source, measured)} {in_percent(found.shares[source])}" for source in order)
    certain = ""
    if found.largest_in is not None:
        doubt = "" if found.largest_in >= LEVEL else "only "
        certain = f", the largest in {doubt}{percent(found.largest_in)} of bootstrap samples"
    return (
        f"Of the variance of log perplexity with all sources freed, {first} has the largest share{certain}; "
        f"then {', '.join(others)}."
    )


def _additive(measured: Measured, found: Decomposition) -> str:
    begin = {
        "additive": "The sources are additive, as far as this matters",
        "not additive": "The sources are not additive",
        "cannot tell": f"Whether the sources are additive, {measured.replicates} replicates cannot tell",
    }[found.additive]
    if found.interactions.value is None:
        return f"{begin}: there is no finite spread to divide."
    return (
        f"{begin}: what they do only together has {in_percent(found.interactions)} of that variance, and the "
        f"variances of each alone sum up to {in_percent(found.sum_alone)} of it."
    )


def _nudge(found: Amplification) -> str:
    if found.value_distance == 0:
        return "One weight of the initial adapter moved by one unit in the last place changes nothing."
    beside = f", {percent(found.of_joint)} of the spread with all sources freed" if found.of_joint else ""
    return (
        "One weight of the initial adapter moved by one unit in the last place (at most "
        f"{found.one_ulp:.1e}) moves the final adapter by {found.value_distance:.1e}, at least "
        f"{number(_rounded(found.factor))} times as far, and spreads log perplexity by a standard deviation "
        f"of {number(found.sd) or DASH}{beside}."
    )


def _precision(found: Precision) -> str:
    told = (
        f"With {found.other} and everything pinned, log perplexity differs by {number(found.pinned) or DASH}"
    )
    if found.paired.value is None or found.spread.value is None:
        return f"{told}."
    return (
        f"{told}; over the same seeds with all sources freed, by {with_interval(found.paired)} in the mean, "
        f"and its variance is {in_percent(found.spread)} of the arm's own."
    )


def percent(value: float | None) -> str:
    """A share: whole per cents from 10 % on, two digits below."""
    if value is None:
        return DASH
    return f"{value:.0%}".replace("%", " %") if abs(value) >= 0.095 else f"{100 * value:.2g} %"


def in_percent(found: Estimate) -> str:
    """A share with its interval: ``74 % (31 to 117 %)``."""
    if found.low is None or found.high is None:
        return percent(found.value)
    low, high = (percent(end).removesuffix(" %") for end in (found.low, found.high))
    return f"{percent(found.value)} ({low} to {high} %)"


def with_interval(found: Estimate) -> str:
    """A number with its interval: ``0.022 (0.014 to 0.05)``."""
    if found.low is None or found.high is None:
        return number(found.value) or DASH
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"


def _rounded(value: float) -> float:
    """Two significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, 1 - math.floor(math.log10(abs(value))))


INTERVALS = f"In parentheses: {LEVEL:.0%} intervals.".replace("%", " %")
