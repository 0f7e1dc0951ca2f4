"""Check that an experiment really pins what it should; otherwise it cannot be interpreted."""

from collections.abc import Iterator

from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    JOINT,
    NUDGE,
    OTHER,
    REPEAT,
    Measurements,
    Outcome,
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
_DRAWN = ("split", "adapter_init", "data_order", "dropout")
"""The sources that have a seed."""
_ORDER = {"data_order", "split"}
"""The sources that determine the rows of a step."""


def find_problems(measured: Measurements) -> list[str]:
    """Return a line for each unexpected difference, and for each unexpected agreement.

    Compare each trial with its reference: the first difference, seeds, rows, learning rates, initial adapter,
    optimizer, kernels and threads. Compare machine and software of all trials. In each condition, a freed
    source must have the same level as in the condition that frees all sources.
    """
    problems = list(_repeated(measured))
    baseline = measured.of(BASELINE)
    for outcome in measured.outcomes:
        if outcome.condition != REPEAT:
            problems += _unlike(measured, outcome, baseline[outcome.replicate - 1])
    problems += _same_levels(measured)
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


def _freed(measured: Measurements, condition: str) -> list[str]:
    """Return the sources that have their second levels in a condition."""
    return [part for part in measured.freed if condition == JOINT or part in condition.split(" × ")]


def _unlike(measured: Measurements, outcome: Outcome, reference: Outcome) -> Iterator[str]:
    """Yield a line for each difference from the reference, or agreement, that the condition rules out."""
    name = f"{outcome.condition} {outcome.replicate}"
    freed = _freed(measured, outcome.condition)
    changed = freed or [outcome.condition]
    expected = {kind for source in changed for kind in _EXPECTED.get(source, set())}
    expected |= set() if measured.kernels == "deterministic" else _NOISE
    if outcome.condition != BASELINE and outcome.first_kind not in {None, *expected}:
        yield (
            f"{name} first differs in {outcome.first_kind}, at step {outcome.first_step}. Changing only "
            f"{', '.join(changed)} shows first in {' or '.join(sorted(expected))}, so something else is not "
            "pinned."
        )
    for source in _DRAWN:
        ours, theirs = outcome.seeds.get(source), reference.seeds.get(source)
        if source in freed and ours == theirs:
            yield f"{name} has the baseline's seed of {source}, but should have another."
        if source not in freed and ours != theirs:
            yield f"{name} has another seed of {source} than the baseline, but it should be pinned."
    order = "data_order" in freed
    must_agree = [
        ("rates_digest", "learning rates", True),
        ("rows_digest", "rows in its steps", None if "split" in freed and not order else not order),
        ("initial_digest", "initial adapter", not {"adapter_init", NUDGE} & set(changed)),
        ("optimizer", "optimizer", outcome.condition != OTHER),
        ("kernels", "kind of kernels", "kernels" not in freed or measured.kernels == "default"),
        ("threads", "number of threads", "kernels" not in freed),
    ]
    for key, words, pinned in must_agree:
        same = getattr(outcome, key) == getattr(reference, key)
        if pinned is not None and pinned != same:
            verb, should = ("differs from", "be pinned") if pinned else ("agrees with", "differ")
            yield f"{name} {verb} the baseline in {words}, which should {should}."


def _same_levels(measured: Measurements) -> Iterator[str]:
    """Yield a line for each source whose second level varies within a replicate, or whose levels repeat."""
    together = measured.of(measured.together) if measured.freed else []
    drawn = [source for source in measured.freed if source in _DRAWN]
    for outcome in measured.outcomes:
        freed = _freed(measured, outcome.condition)
        joint = together[outcome.replicate - 1] if freed else outcome
        unlike = [
            f"another seed of {source}"
            for source in drawn
            if source in freed and outcome.seeds.get(source) != joint.seeds.get(source)
        ]
        if "adapter_init" in freed and outcome.initial_digest != joint.initial_digest:
            unlike.append("another initial adapter")
        order = _ORDER & set(measured.freed)
        if order and order <= set(freed) and outcome.rows_digest != joint.rows_digest:
            unlike.append("other rows in its steps")
        name = f"{outcome.condition} {outcome.replicate}"
        yield from (f"{name} has {what} than the trial that has all second levels." for what in unlike)
    for source in drawn:
        seeds = [outcome.seeds.get(source) for outcome in (*measured.of(BASELINE), *together)]
        if len(set(seeds)) < len(seeds):
            yield f"Two levels of {source} have the same seed."
