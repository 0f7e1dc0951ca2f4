"""The comparison of two arms, for a terminal."""

from statistics import median
from typing import Literal

from qlora_repeat.results.number_format import number, rounded
from qlora_repeat.results.statistical_methods import rank
from qlora_repeat.results.tidy_file import Values
from qlora_repeat.results.two_arms import Comparison, Decision, Estimate
from qlora_repeat.system.printable import one_line

_DIGITS = 4


def comparison_text(
    first: Values,
    second: Values,
    found: Comparison,
    decision: Decision | None,
    of: Literal["shift", "spread"],
    margin: float | None,
) -> str:
    """Return the arms, the three estimates with their intervals, and the decision, if there is a margin."""
    scale = " of logarithms" if found.is_on_log_scale else ""
    lines = [
        _arm("A", first),
        _arm("B", second),
        f"{found.n} pairs with the same seeds" if found.is_paired else "not paired: seeds are not shared",
        "",
        f"shift, B - A              {_estimate(found.shift)}",
        f"probability of B above A  {_estimate(found.superiority)}",
        f"spread{scale}, B / A ".ljust(26)
        + (_estimate(found.spread) if found.spread else "no spread at all"),
    ]
    if decision is not None and margin is not None:
        lines += ["", _decision(decision, of, margin)]
    return "\n".join(lines)


def _arm(letter: str, own: Values) -> str:
    middle = number(median(map(rank, own.values)))
    return (
        f"{letter}  {one_line(own.arm)}: {len(own.values)} values of {one_line(own.metric)}, median {middle}"
    )


def _estimate(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{rounded(found.value, _DIGITS)} (too few values for an interval)"
    low, high = (rounded(each, _DIGITS) for each in (found.low, found.high))
    return f"{rounded(found.value, _DIGITS)} (95 %: {low} to {high})"


def _decision(decision: Decision, of: str, margin: float) -> str:
    within = f"a factor of {margin:g}" if of == "spread" else f"{margin:g}"
    if decision.kind == "equivalent":
        return f"equivalent: the interval of the {of} lies within {within}"
    if decision.kind == "different":
        return f"different: the interval of the {of} excludes {'1' if of == 'spread' else '0'}"
    more = (
        f"; about {decision.more} more trials in each arm would decide, if the estimate stays"
        if decision.more is not None
        else "; how many more trials would decide cannot be said"
    )
    return f"undecided: the interval of the {of} has no difference, and reaches beyond {within}{more}"
