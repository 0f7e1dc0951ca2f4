"""The results of an attribution, in sentences."""

import math

from qlora_repeat.analysis.attribution.decompose import (
    MAIN,
    SMALL,
    Amplification,
    Attribution,
    Decomposition,
    PrecisionEffect,
)
from qlora_repeat.analysis.attribution.measurements import JOINT, NUDGE, OTHER, REPEAT, Measurements
from qlora_repeat.analysis.attribution.paired_statistics import Estimate
from qlora_repeat.results.number_format import cell, number, percent, rounded
from qlora_repeat.study.optimizers import Optimizer

_TITLES = {
    REPEAT: "nothing (repeated)",
    "adapter_init": "adapter init",
    "data_order": "data order",
    "dropout": "dropout",
    "split": "split",
    "kernels": "kernels and threads",
    NUDGE: "one weight by one ulp",
    JOINT: "all together",
}


def title(condition: str, measured: Measurements) -> str:
    """Return a title that says what is freed or changed in a condition."""
    if condition == OTHER:
        return f"{Optimizer.parse(measured.other).bits}-bit state"
    return " × ".join(_TITLES.get(part, part) for part in condition.split(" × "))


def sentences(measured: Measurements, found: Attribution) -> list[str]:
    """Return sentences on the effects: problems, sizes, largest share, additivity, nudge and precision.

    If there are problems, the first sentence says that the results must not be interpreted.
    """
    made = [f"Do not interpret these results: {problem}" for problem in found.problems[:1]]
    if (others := len(found.problems) - 1) > 0:
        made[0] += f" (And {others} more such problem{'s' if others > 1 else ''}.)"
    if (decomposition := found.decompositions.get(MAIN)) is not None:
        made += [_sizes(measured, found), _largest(measured, decomposition), _additive(decomposition)]
    elif measured.freed:
        (effect,) = (effect for effect in found.effects if effect.condition == measured.freed[0])
        made.append(
            f"{title(measured.freed[0], measured).capitalize()} alone gives log perplexity a standard "
            f"deviation of {cell(effect.changes[MAIN].sd)}. Shares and additivity need at least two sources."
        )
    if found.amplification is not None:
        made.append(_nudge(found.amplification))
    if found.precision is not None:
        made.append(_precision(measured, found.precision))
    return made


def _sizes(measured: Measurements, found: Attribution) -> str:
    """Return the median effect of each source alone, largest first."""
    known = {}
    for effect in found.effects:
        size = effect.changes[MAIN].median
        known[effect.condition] = math.inf if size is None or math.isnan(size) else size
    order = sorted(measured.freed, key=lambda source: known[source], reverse=True)
    alone = ", ".join(f"{title(source, measured)} {number(known[source])}" for source in order)
    begin = (
        f"Median change of log perplexity with one source freed: {alone}; with all sources freed: "
        f"{number(known[measured.together])}."
    )
    apart = next((each.distance for each in found.effects if each.condition == measured.together), None)
    if apart is None:
        return begin
    return f"{begin} The adapters are then {percent(apart)} of their size apart; unrelated ones, about 141 %."


def _largest(measured: Measurements, found: Decomposition) -> str:
    if any(found.shares[source].value is None for source in measured.freed):
        return (
            "The largest source is unknown: with all sources freed, log perplexity does not change, or is "
            "finite in only one replicate."
        )
    order = sorted(measured.freed, key=lambda source: found.shares[source].value or 0, reverse=True)
    shares = ", ".join(f"{title(source, measured)} {in_percent(found.shares[source])}" for source in order)
    lost = measured.replicates - found.replicates
    without = f" ({lost} of {measured.replicates} replicates left out: not finite)" if lost else ""
    begin = f"Shares of the variance of log perplexity with all sources freed{without}: {shares}."
    if found.largest is None:
        return f"{begin} {found.replicates} replicates do not show which is the largest."
    return (
        f"{begin} {title(found.largest, measured).capitalize()} is the largest (sign-flip tests; in "
        "simulations, one of two equal sources is named in 5 % of experiments)."
    )


def _additive(found: Decomposition) -> str:
    if found.interactions.value is None:
        return "Additivity is unknown: there is no finite spread to divide."
    begin = {
        "additive": "The sources are practically additive",
        "not additive": "The sources are not additive",
        "cannot tell": f"{found.replicates} replicates are too few to decide whether sources are additive",
    }[found.additive]
    beside = "there is no nudge whose noise it could be compared with"
    if found.above_floor is not None:
        beside = f"F test against the noise of a nudge: p = {found.above_floor:.2g}"
    taken = ", assumed to be of two sources," if len(found.shares) > 3 else ""  # one share is the rest
    return (
        f"{begin}: interactions{taken} have {in_percent(found.interactions)} of this variance ({beside}). In "
        f"simulations at {percent(SMALL)}, either verdict is wrong in 2 to 4 % of cases (normal effects)."
    )


def _nudge(found: Amplification) -> str:
    if found.value_distance == 0:
        return "Moving one weight of the initial adapter by one unit in the last place changes nothing."
    return (
        "Moving one weight of the initial adapter by one unit in the last place (at most "
        f"{found.one_ulp:.1e}) moves the final adapter by {found.value_distance:.1e}, at least "
        f"{rounded(found.factor, 2)} times as far, and gives log perplexity a standard deviation "
        f"of {cell(found.sd)}."
    )


def _precision(measured: Measurements, found: PrecisionEffect) -> str:
    change = with_interval(found.mean)
    begin = f"With {found.other} and the same seeds and kernels, log perplexity differs by {change}"
    if found.spread.value is None:
        return f"{begin}."
    return (
        f"{begin} in the mean. Its spread over {measured.replicates} replicates is "
        f"{with_interval(found.spread)} times that of this arm."
    )


def in_percent(found: Estimate) -> str:
    """Return a share with its interval: ``74 % (31 to 117 %)``."""
    if found.low is None or found.high is None:
        return percent(found.value)
    low, high = (percent(end).removesuffix(" %") for end in (found.low, found.high))
    return f"{percent(found.value)} ({low} to {high} %)"


def with_interval(found: Estimate) -> str:
    """Return a number with its interval: ``0.022 (0.014 to 0.05)``."""
    if found.low is None or found.high is None:
        return cell(found.value)
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
