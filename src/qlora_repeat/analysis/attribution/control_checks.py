"""Is what an experiment pins really pinned? Otherwise nothing can be read from it."""

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
"""What may differ first between a trial and its reference, by what is freed or changed between them."""
_NOISE: set[DivergenceKind] = {"loss", "gradient", "skipped", "update"}
"""What kernels that do not repeat may show in."""
_DRAWN = ("split", "adapter_init", "data_order", "dropout")
"""The sources that have a seed."""
_ORDER = {"data_order", "split"}
"""Those that the rows of a step depend on."""


def find_problems(measured: Measurements) -> list[str]:
    """What differs that should not, or does not that should: one line for each.

    Of a trial and its reference: the first difference, seeds, rows, learning rates, initial adapter,
    optimizer, kernels and threads. Of all trials: the machine and its software. A freed source must have, in
    each condition, the level that it has where all are freed.
    """
    problems = list(_repeated(measured))
    baseline = measured.of(BASELINE)
    for outcome in (outcome for outcome in measured.outcomes if outcome.condition != REPEAT):
        problems += _unlike(measured, outcome, baseline[outcome.replicate - 1])
    problems += _same_levels(measured)
    if (kinds := len({outcome.machine for outcome in measured.outcomes})) > 1:
        names = sorted({f"{outcome.device}, {outcome.software}" for outcome in measured.outcomes})
        problems.append(
            f"Trials ran on {kinds} kinds of machine (processor, its instructions, driver and packages are "
            f"compared): {'; '.join(names)}."
        )
    return problems


def _repeated(measured: Measurements) -> Iterator[str]:
    """Whether one trial of the baseline, run again, is the same bits; default kernels promise none."""
    if measured.kernels != "deterministic":
        return
    first, again = measured.of(BASELINE)[0], measured.of(REPEAT)[0]
    begin = "Trial 1 of the baseline, where everything is pinned, and its repetition"
    if again.first_kind is not None:
        yield (
            f"{begin} differ: first at step {again.first_step}, in {again.first_kind}. "
            f"{MEANINGS[again.first_kind]}"
        )
    elif again.adapter_digest != first.adapter_digest:
        yield f"{begin} have other adapters after one trace."
    elif repr(again.perplexity) != repr(first.perplexity):  # nan is like nan
        yield f"{begin} have other perplexities with one adapter."


def freed_in(measured: Measurements, condition: str) -> list[str]:
    """The sources that have their second levels in a condition."""
    if condition == JOINT:
        return measured.freed
    return [part for part in condition.split(" × ") if part in measured.freed]


def _unlike(measured: Measurements, outcome: Outcome, reference: Outcome) -> Iterator[str]:
    """In what a trial is unlike its reference, or alike, that its condition does not say."""
    name = f"{outcome.condition} {outcome.replicate}"
    freed = freed_in(measured, outcome.condition)
    changed = freed or [outcome.condition]
    expected = {kind for source in changed for kind in _EXPECTED.get(source, set())}
    expected |= set() if measured.kernels == "deterministic" else _NOISE
    if outcome.condition != BASELINE and outcome.first_kind not in {None, *expected}:
        yield (
            f"{name} first differs in {outcome.first_kind}, at step {outcome.first_step}, where only "
            f"{', '.join(changed)} differs, which shows first in {' or '.join(sorted(expected))}: "
            "something else is not pinned."
        )
    for source in _DRAWN:
        ours, theirs = outcome.seeds.get(source), reference.seeds.get(source)
        if source in freed and ours == theirs:
            yield f"{name} has the baseline's seed of {source}, where it should have another."
        if source not in freed and ours != theirs:
            yield f"{name} has another seed of {source} than the baseline, where it should be pinned."
    order = "data_order" in freed
    alike = [
        ("rates_digest", "learning rates", True),
        ("rows_digest", "rows in its steps", None if "split" in freed and not order else not order),
        ("initial_digest", "initial adapter", not {"adapter_init", NUDGE} & set(changed)),
        ("optimizer", "optimizer", outcome.condition != OTHER),
        ("kernels", "kind of kernels", "kernels" not in freed or measured.kernels == "default"),
        ("threads", "number of threads", "kernels" not in freed),
    ]
    for key, words, pinned in alike:
        same = getattr(outcome, key) == getattr(reference, key)
        if pinned is True and not same:
            yield f"{name} has other {words} than the baseline, where they should be pinned."
        if pinned is False and same:
            yield f"{name} has the same {words} as the baseline, where they should differ."


def _same_levels(measured: Measurements) -> Iterator[str]:
    """Whether a source has one second level in each replicate, another in each, and first ones as well."""
    together = measured.of(measured.together) if measured.freed else []
    for outcome in measured.outcomes:
        freed = freed_in(measured, outcome.condition)
        joint = together[outcome.replicate - 1] if freed else outcome
        name = f"{outcome.condition} {outcome.replicate}"
        for source in (source for source in freed if source in _DRAWN):
            if outcome.seeds.get(source) != joint.seeds.get(source):
                yield f"{name} has another seed of {source} than the trial that has all second levels."
        if "adapter_init" in freed and outcome.initial_digest != joint.initial_digest:
            yield f"{name} has another initial adapter than the trial that has all second levels."
        order = _ORDER & set(measured.freed)
        if order and order <= set(freed) and outcome.rows_digest != joint.rows_digest:
            yield f"{name} has other rows in its steps than the trial that has all second levels."
    for source in (source for source in measured.freed if source in _DRAWN):
        seeds = [outcome.seeds.get(source) for outcome in (*measured.of(BASELINE), *together)]
        if len(set(seeds)) < len(seeds):
            yield f"Two levels of {source} are the same seed."
