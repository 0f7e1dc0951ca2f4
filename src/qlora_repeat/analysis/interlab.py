"""Compare the results of several laboratories."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from qlora_repeat.analysis.interlab_statistics import Reproducibility, reproducibility
from qlora_repeat.errors import UsageError
from qlora_repeat.results.arms import Arm, ArmKey, group_arms
from qlora_repeat.results.statistical_methods import spans_a_decade
from qlora_repeat.results.trial_result import TrialResult

Conditions = dict[str, set[str]]
"""The conditions of an arm's trials: each name with all values that occur, as JSON."""


@dataclass(frozen=True)
class Laboratory:
    """A laboratory and its collected results."""

    name: str
    arms: list[Arm]
    conditions: dict[ArmKey, Conditions] = field(default_factory=dict)
    """Conditions from records; empty if there is only a results file."""


@dataclass(frozen=True)
class LaboratoryArm:
    """The results of an arm in one laboratory."""

    laboratory: str
    n: int
    """Number of finite perplexities."""
    not_finite: int
    adapters: int | None
    """Number of distinct adapters, by digest; None if results have no digests."""
    mean: float | None
    """Arithmetic mean of the perplexities; on the log scale, the geometric mean."""
    sd: float | None
    """Standard deviation of the perplexities, or of their natural logarithms."""


@dataclass(frozen=True)
class SharedArm:
    """An arm that several laboratories have run."""

    model: str
    optimizer: str
    logarithmic: bool
    """Whether it is compared on the log scale."""
    laboratories: list[LaboratoryArm]
    common_adapters: int | None
    """Number of adapters that more than one laboratory has; None if fewer than two have digests."""
    common_seeds: int
    """Number of seeds of the initial adapter that more than one has. Such trials are not independent."""
    unlike: list[str]
    """Conditions that differ between laboratories; then nothing is pooled."""
    pooled: Reproducibility | None
    """In the unit of the SDs."""


def laboratory(
    name: str, results: Sequence[TrialResult], conditions: dict[ArmKey, Conditions] | None = None
) -> Laboratory:
    """Return the laboratory that collected these results.

    Raises:
        UsageError: two rows have the same trial.
    """
    return Laboratory(name, group_arms(results, where=name), conditions or {})


def compare_laboratories(laboratories: Sequence[Laboratory]) -> list[SharedArm]:
    """Compare the arms that at least two laboratories have measured.

    Raises:
        UsageError: there are fewer than two laboratories, two have the same name, or none share an arm.
    """
    names = Counter(each.name for each in laboratories)
    if len(laboratories) < 2:
        raise UsageError("give the results of at least two laboratories to compare")
    twice, count = names.most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} laboratories are named {twice!r}; give each its own name with NAME=FILE")
    measured = {each.name: {arm.key: arm for arm in each.arms if arm.perplexities} for each in laboratories}
    shared = []
    for key in dict.fromkeys(key for own in measured.values() for key in own):
        having = [each for each in laboratories if key in measured[each.name]]
        if len(having) > 1:
            shared.append(_shared(key, having, {each.name: measured[each.name][key] for each in having}))
    if not shared:
        found = "; ".join(
            f"{name} has {', '.join(map('/'.join, own)) or 'none'}" for name, own in measured.items()
        )
        raise UsageError(f"no model and optimizer with results of two laboratories: {found}")
    return shared


def _shared(key: ArmKey, having: list[Laboratory], arms: dict[str, Arm]) -> SharedArm:
    rows = {name: [row for row in arm.done if row.perplexity is not None] for name, arm in arms.items()}
    finite = {name: list(filter(math.isfinite, arm.perplexities)) for name, arm in arms.items()}
    logarithmic = spans_a_decade([value for own in finite.values() for value in own])
    scaled = {name: list(map(math.log, own)) if logarithmic else own for name, own in finite.items()}
    adapters = {name: {row.adapter_digest for row in own} - {None} for name, own in rows.items()}
    seeds = [{row.adapter_init_seed for row in own} - {None} for own in rows.values()]
    unlike = list(_unlike([_conditions(each, key, rows[each.name]) for each in having]))
    return SharedArm(
        *key,
        logarithmic=logarithmic,
        laboratories=[
            LaboratoryArm(
                laboratory=name,
                n=len(own),
                not_finite=len(rows[name]) - len(own),
                adapters=len(adapters[name]) or None,
                mean=_center(own, logarithmic),
                sd=stdev(own) if len(own) > 1 else None,
            )
            for name, own in scaled.items()
        ],
        common_adapters=_common(adapters.values()) if sum(map(bool, adapters.values())) > 1 else None,
        common_seeds=_common(seeds),
        unlike=unlike,
        pooled=None if unlike else reproducibility(list(scaled.values())),
    )


def _center(values: list[float], logarithmic: bool) -> float | None:
    if not values:
        return None
    return math.exp(mean(values)) if logarithmic else mean(values)


def _common(own: Iterable[set[Any]]) -> int:
    """Return the number of elements that more than one set has."""
    return sum(count > 1 for count in Counter(each for found in own for each in found).values())


def _conditions(laboratory: Laboratory, key: ArmKey, rows: list[TrialResult]) -> Conditions:
    """Return the conditions of an arm in a laboratory, from results and, if there are any, from records."""
    found: dict[str, set[Any]] = {
        "randomness profile": {row.randomness for row in rows},
        "number of test examples": {row.test_examples for row in rows},
        "miniature": {row.miniature for row in rows},
    }
    known = {name: {json.dumps(each) for each in own if each is not None} for name, own in found.items()}
    return known | laboratory.conditions.get(key, {})


def _unlike(conditions: list[Conditions]) -> Iterator[str]:
    """Yield the names of known conditions that differ."""
    for name in dict.fromkeys(name for own in conditions for name in own):
        values = [own[name] for own in conditions if own.get(name)]
        if any(each != values[0] for each in values):
            yield name
