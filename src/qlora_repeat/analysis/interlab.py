"""The results of several laboratories side by side: what each measured, and what they have in common."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from qlora_repeat.analysis.interlab_statistics import Reproducibility, reproducibility
from qlora_repeat.analysis.verify.consistency import APART
from qlora_repeat.archive.unpack import Unpacked, opened
from qlora_repeat.errors import UsageError
from qlora_repeat.records.trial_state import stage_record
from qlora_repeat.results.trial_result import TrialResult, read_results
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import Stage, all_trials

DECADE = 10.0
"""Values that span more are compared on the log scale."""

Key = tuple[str, str]
"""Model and optimizer."""
Conditions = dict[str, set[str]]
"""What trials of an arm were run with, by name: each value that one has, as JSON."""


@dataclass(frozen=True)
class Laboratory:
    """Where a study was run, and what was collected there."""

    name: str
    results: list[TrialResult]
    conditions: dict[Key, Conditions] = field(default_factory=dict)
    """What records tell; without them (of a results file alone) it is less."""


@dataclass(frozen=True)
class Measured:
    """What the trials of an arm gave in one laboratory."""

    laboratory: str
    n: int
    """Perplexities that are finite."""
    not_finite: int
    adapters: int | None
    """Different ones, by digest; None where results have no digests."""
    mean: float | None
    """On the log scale, the geometric one."""
    sd: float | None
    """Of the perplexities, or of their natural logarithms."""


@dataclass(frozen=True)
class Arm:
    """An arm that several laboratories have run."""

    model: str
    optimizer: str
    logarithmic: bool
    """Whether it is compared on the log scale."""
    laboratories: list[Measured]
    common_adapters: int | None
    """Those that more than one laboratory has, bit for bit; None where fewer than two have digests."""
    common_seeds: int
    """The same of seeds of the initial adapter. Runs that share one are not independent."""
    unlike: list[str]
    """What was not the same in all laboratories; then nothing is pooled."""
    pooled: Reproducibility | None
    """In the unit of the SDs."""


def read_laboratory(name: str, path: Path) -> Laboratory:
    """A laboratory's results, from an archive or a results file.

    Raises:
        MissingError: there is no such file, or it is not an archive as `pack` writes it.
        UsageError: a line is not a row of results; names it.
    """
    if path.suffix != ".zip":
        return Laboratory(name, read_results(path))
    with opened(path) as unpacked:
        return Laboratory(name, unpacked.results(), _recorded_conditions(unpacked))


def _recorded_conditions(unpacked: Unpacked) -> dict[Key, Conditions]:
    """Settings, base and data of what was fine-tuned and evaluated."""
    found: dict[Key, Conditions] = {}
    stages: tuple[Stage, ...] = ("finetune", "evaluate")
    for trial in all_trials(load_study(unpacked.study_file), unpacked.runs):
        own = found.setdefault((trial.model_name, trial.optimizer), {})
        for stage in stages:
            record, _ = stage_record(trial.record(stage), trial.name, stage)
            if record is None:
                continue
            told = {name: record.inputs.get(name) for name in ("base", "data")} | record.inputs["settings"]
            for key, value in told.items():
                if key not in APART and value is not None:
                    own.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return found


def compare_laboratories(laboratories: Sequence[Laboratory]) -> list[Arm]:
    """The arms that at least two of them have measured, in the order of the first.

    Raises:
        UsageError: there are fewer than two laboratories, two of one name, two rows of one trial, or no such
            arm.
    """
    names = [laboratory.name for laboratory in laboratories]
    if len(names) < 2:
        raise UsageError("give the results of at least two laboratories to compare")
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} laboratories are named {twice!r}; name them otherwise, as in NAME=FILE")
    rows = {laboratory.name: _by_arm(laboratory) for laboratory in laboratories}
    keys = list(dict.fromkeys(key for own in rows.values() for key in own))
    arms = []
    for key in keys:
        having = [laboratory for laboratory in laboratories if key in rows[laboratory.name]]
        if len(having) > 1:
            arms.append(_arm(key, {each.name: rows[each.name][key] for each in having}, having))
    if not arms:
        told = "; ".join(f"{name} has {_told(own)}" for name, own in rows.items())
        raise UsageError(f"no model and optimizer with results of two laboratories: {told}")
    return arms


def _by_arm(laboratory: Laboratory) -> dict[Key, list[TrialResult]]:
    """The trials that have a perplexity, by arm."""
    found: dict[Key, list[TrialResult]] = {}
    seen = Counter((row.model, row.optimizer, row.trial) for row in laboratory.results)
    for (model, optimizer, trial), count in seen.items():
        if count > 1:
            raise UsageError(f"{laboratory.name}: {count} rows are of trial {model}/{optimizer}/{trial}")
    for row in laboratory.results:
        if row.measured and row.perplexity is not None:
            found.setdefault((row.model, row.optimizer), []).append(row)
    return found


def _told(arms: dict[Key, Any]) -> str:
    return ", ".join(f"{model}/{optimizer}" for model, optimizer in arms) or "none"


def _arm(key: Key, rows: dict[str, list[TrialResult]], having: list[Laboratory]) -> Arm:
    values = {
        name: [row.perplexity for row in own if row.perplexity is not None] for name, own in rows.items()
    }
    finite = {name: [value for value in own if math.isfinite(value)] for name, own in values.items()}
    seen = [value for own in finite.values() for value in own]
    logarithmic = bool(seen) and min(seen) > 0 and max(seen) > DECADE * min(seen)
    scaled = {
        name: [math.log(value) for value in own] if logarithmic else own for name, own in finite.items()
    }
    adapters = [_adapters(own) for own in rows.values()]
    unlike = list(_unlike([_conditions(each, key, rows[each.name]) for each in having]))
    return Arm(
        model=key[0],
        optimizer=key[1],
        logarithmic=logarithmic,
        laboratories=[
            Measured(
                laboratory=name,
                n=len(own),
                not_finite=len(values[name]) - len(own),
                adapters=len(_adapters(rows[name])) or None,
                mean=_center(own, logarithmic),
                sd=stdev(own) if len(own) > 1 else None,
            )
            for name, own in scaled.items()
        ],
        common_adapters=None if len([own for own in adapters if own]) < 2 else _common(adapters),
        common_seeds=_common([_seeds(own) for own in rows.values()]),
        unlike=unlike,
        pooled=None if unlike else reproducibility(list(scaled.values())),
    )


def _center(values: list[float], logarithmic: bool) -> float | None:
    if not values:
        return None
    return math.exp(mean(values)) if logarithmic else mean(values)


def _adapters(rows: list[TrialResult]) -> set[str]:
    return {row.adapter_digest for row in rows if row.adapter_digest is not None}


def _seeds(rows: list[TrialResult]) -> set[str]:
    return {str(row.adapter_init_seed) for row in rows if row.adapter_init_seed is not None}


def _common(own: list[set[str]]) -> int:
    """How many of these are in more than one of the sets."""
    return sum(count > 1 for count in Counter(each for found in own for each in found).values())


def _conditions(laboratory: Laboratory, key: Key, rows: list[TrialResult]) -> Conditions:
    """What is known of an arm in a laboratory, from results and from records, if there are any."""
    told: dict[str, set[Any]] = {
        "randomness profile": {row.randomness for row in rows},
        "number of test examples": {row.test_examples for row in rows},
        "miniature": {row.miniature for row in rows},
    }
    known = {name: {json.dumps(each) for each in own if each is not None} for name, own in told.items()}
    return known | laboratory.conditions.get(key, {})


def _unlike(conditions: list[Conditions]) -> Iterator[str]:
    """What two of them tell, and tell otherwise."""
    for name in dict.fromkeys(name for own in conditions for name in own):
        told = [own[name] for own in conditions if own.get(name)]
        if any(each != told[0] for each in told):
            yield name
