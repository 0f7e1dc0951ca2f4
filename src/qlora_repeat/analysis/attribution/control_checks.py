"""Check that an experiment really pins what it should; otherwise it cannot be interpreted."""

from collections.abc import Callable, Iterator
from typing import Any

from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    NUDGE,
    OTHER,
    REPEAT,
    Measurements,
    Outcome,
    freed_by_condition,
)
from qlora_repeat.analysis.trial_diff import MEANINGS, DivergenceKind

_EXPECTED: dict[str, set[DivergenceKind]] = {
    "adapter_init": {"init"},
    "data_order": {"data"},
    "split": {"data", "loss"},  # rows of the same length may come first
    "dropout": {"loss", "gradient"},  # as B begins at zero, it first shows in the gradient
    "kernels": {"loss", "gradient", "update"},
    NUDGE: {"init"},
    OTHER: {"update"},
}
"""What may differ first between a trial and its reference, by the freed source or changed condition."""
_NOISE: set[DivergenceKind] = {"loss", "gradient", "skipped", "update"}
"""What may differ first with nondeterministic kernels."""
_SEEDED = ("split", "adapter_init", "data_order", "dropout")
_INIT = {"adapter_init", NUDGE}


def _seed_of(source: str) -> Callable[[Outcome], Any]:
    return lambda outcome: outcome.seeds.get(source)


_PROPERTIES: list[tuple[str, Callable[[Outcome], Any], set[str], set[str]]] = [
    *((f"seed of {source}", _seed_of(source), {source}, {source}) for source in _SEEDED),
    ("learning rates", lambda outcome: outcome.rates_digest, set(), set()),
    ("rows in its steps", lambda outcome: outcome.rows_digest, {"data_order", "split"}, {"data_order"}),
    ("initial adapter", lambda outcome: outcome.initial_digest, _INIT, _INIT),
    ("optimizer", lambda outcome: outcome.optimizer, {OTHER}, {OTHER}),
    ("kind of kernels", lambda outcome: outcome.kernels, {"kernels"}, {"kernels"}),
    ("number of threads", lambda outcome: outcome.threads, {"kernels"}, {"kernels"}),
]
"""Each property of a trial: the sources and changes that may change it, and those that must."""


def find_problems(measured: Measurements) -> list[str]:
    """Return a line for each unexpected difference, and for each unexpected agreement.

    Compare each trial with its reference: the first difference, seeds, rows, learning rates, initial adapter,
    optimizer, kernels and threads. Compare machine and software of all trials. In each condition, a freed
    source must have the same level as in the condition that frees all sources.
    """
    problems = list(_repeated(measured))
    baseline, together = measured.of(BASELINE), measured.of(measured.together)
    for outcome in measured.outcomes:
        if outcome.condition != REPEAT:
            place = outcome.replicate - 1
            joint = together[place] if measured.freed else outcome
            problems += _unexpected(measured, outcome, baseline[place], joint)
    for source in (source for source in _SEEDED if source in measured.freed):
        seeds = [outcome.seeds.get(source) for outcome in (*baseline, *together)]
        if len(set(seeds)) < len(seeds):
            problems.append(f"Two levels of {source} have the same seed.")
    if (kinds := len({outcome.machine for outcome in measured.outcomes})) > 1:
        names = sorted({f"{outcome.device}, {outcome.software}" for outcome in measured.outcomes})
        problems.append(
            f"Trials ran on {kinds} kinds of machine (compared by processor, instruction sets, driver and "
            f"packages): {'; '.join(names)}."
        )
    return problems


def _repeated(measured: Measurements) -> Iterator[str]:
    """Yield a line if the repeated baseline trial is not bitwise the same despite deterministic kernels."""
    if measured.kernels != "deterministic":
        return
    first, again = measured.of(BASELINE)[0], measured.of(REPEAT)[0]
    begin = "Trial 1 of the baseline, where everything is pinned, and its repetition"
    if (kind := again.first_kind) is not None:
        yield f"{begin} differ first at step {again.first_step}, in {kind}. {MEANINGS[kind]}"
    elif again.adapter_digest != first.adapter_digest:
        yield f"{begin} have the same trace but different adapters."
    elif repr(again.perplexity) != repr(first.perplexity):  # repr, because NaN is not equal to NaN
        yield f"{begin} have the same adapter but different perplexities."


def _unexpected(measured: Measurements, outcome: Outcome, baseline: Outcome, joint: Outcome) -> Iterator[str]:
    """Yield a line for each difference or agreement that the condition rules out.

    Compare with the trials of the same replicate that have the first (`baseline`) and the second levels of
    all sources (`joint`).
    """
    name, condition = f"{outcome.condition} {outcome.replicate}", outcome.condition
    freed: set[str] = {*freed_by_condition(measured.freed, measured.pairs).get(condition, ())}
    changed = freed or {condition}
    expected = {kind for source in changed for kind in _EXPECTED.get(source, set())}
    expected |= set() if measured.kernels == "deterministic" else _NOISE
    if condition != BASELINE and outcome.first_kind not in {None, *expected}:
        yield (
            f"{name} first differs in {outcome.first_kind}, at step {outcome.first_step}. Changing only "
            f"{', '.join(sorted(changed))} shows first in {' or '.join(sorted(expected))}, so something else "
            "is not pinned."
        )
    for words, read, may_change, must_change in _PROPERTIES:
        value, same = read(outcome), read(outcome) == read(baseline)
        if not same and not may_change & changed:
            yield f"{name} differs from the baseline in {words}, which should be pinned."
        if same and must_change & changed and value != "default":  # kernels of such a baseline stay
            yield f"{name} agrees with the baseline in {words}, which should differ."
        sources = may_change & set(measured.freed)
        if sources and sources <= freed and value != read(joint):
            yield f"{name} differs in {words} from the trial that has all second levels."
