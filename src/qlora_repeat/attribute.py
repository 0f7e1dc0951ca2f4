"""The experiment that asks which source makes the runs of an arm differ: its conditions and their trials.

In the baseline every source is pinned, and the kernels are deterministic. Each other condition frees one
source, or several. A freed source takes a level of its own in each replicate, and the same one in every
condition that frees it: replicate 3 of ``joint`` has the initial adapter of replicate 3 of ``adapter_init``
and the data order of replicate 3 of ``data_order``. So effects are compared in pairs, and what the sources
do together that they do not do alone (interaction) shows in each replicate, without further runs.

Each condition is a study of its own, derived from the given one; whatever the kit does for studies it does
for the experiment: trials run side by side, go on where they were killed, have records, and become stale.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_repeat.adapter_distance import Adapter, distances, read_adapter, update_distance
from qlora_repeat.divergence import first_divergence
from qlora_repeat.errors import BusyError, MissingError, UsageError
from qlora_repeat.fingerprint import software_names
from qlora_repeat.lock import exclusive
from qlora_repeat.outcomes import (
    BASELINE,
    FREED,
    JOINT,
    JOINT_OTHER,
    NUDGE,
    OTHER,
    Freed,
    Measured,
    Outcome,
    pair_name,
)
from qlora_repeat.randomness import Kernels, PerTrial, Randomness, Setting
from qlora_repeat.record import Record
from qlora_repeat.stages import stage_states
from qlora_repeat.study import Optimizer, Study
from qlora_repeat.trace import Step, read_trace
from qlora_repeat.trial import Stage, Trial

CHOICES = (*FREED, "nudge", "optimizer")
"""What ``--sources`` takes; the last two are disturbances that are not random."""
DEFAULT = tuple(choice for choice in CHOICES if choice != "split")

STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
"""Those of a trial of the experiment: it measures no time."""
BASELINES = 2
"""Trials of the baseline. They must be the same bits; a third would show no more."""
PINNED = 42
"""The seed of a source for which the study has none of its own."""

LATE = 4
"""The late loss is the mean loss of the last of so many equal parts of the steps."""


@dataclass(frozen=True)
class Experiment:
    """What is asked of which arm."""

    study: Study
    model: str
    optimizer: Optimizer
    sources: tuple[str, ...]
    """Of `CHOICES`, in their order."""
    replicates: int
    interactions: bool
    """Whether also each pair of random sources is freed together, to tell which of them interact."""
    runs: Path

    @property
    def label(self) -> str:
        """The name of the folder of its trials, in that of results."""
        return f"{self.study.label}@attribute"

    @property
    def freed(self) -> tuple[Freed, ...]:
        """The sources that are freed."""
        return tuple(source for source in FREED if source in self.sources)

    @property
    def other(self) -> Optimizer:
        """The optimizer whose state has another precision."""
        return "adamw-32bit" if self.optimizer != "adamw-32bit" else "adamw-8bit"

    @property
    def file(self) -> Path:
        """What was measured, and what it says of the sources."""
        return self.runs / self.label / self.model / self.optimizer / "attribution.json"


@dataclass(frozen=True)
class Condition:
    """What is freed or changed together, and its trials: one for each replicate."""

    name: str
    freed: tuple[Freed, ...]
    trials: list[Trial]


def make_experiment(
    study: Study,
    model: str | None,
    optimizer: str | None,
    sources: Sequence[str],
    replicates: int,
    interactions: bool,
    runs: Path,
) -> Experiment:
    """The experiment on an arm: by default, of the study's first model and its 32-bit optimizer.

    Raises:
        UsageError: the study has no such model or optimizer, a source is unknown, or none is named.
    """
    model = model or next(iter(study.models))
    if model not in study.models:
        raise UsageError(f"--model {model}: study {study.name} has the models {', '.join(study.models)}")
    if optimizer is None:
        optimizer = "adamw-32bit" if "adamw-32bit" in study.optimizers else study.optimizers[0]
    if optimizer not in study.optimizers:
        known = ", ".join(study.optimizers)
        raise UsageError(f"--optimizer {optimizer}: study {study.name} has the optimizers {known}")
    for source in sources:
        if source not in CHOICES:
            raise UsageError(f"--sources {source}: a source is one of {', '.join(CHOICES)}")
    chosen = tuple(choice for choice in CHOICES if choice in sources)
    if not chosen:
        raise UsageError(f"--sources: name at least one of {', '.join(CHOICES)}")
    named: Any = optimizer
    return Experiment(study, model, named, chosen, replicates, interactions, runs)


def conditions(experiment: Experiment) -> list[Condition]:
    """The conditions, the baseline first; those with all sources freed only where there are two or more."""
    freed, other = experiment.freed, "optimizer" in experiment.sources
    every = range(1, experiment.replicates + 1)
    found = [_condition(experiment, BASELINE, (), range(1, BASELINES + 1))]
    found += [_condition(experiment, source, (source,), every) for source in freed]
    if len(freed) > 1:
        found += [_condition(experiment, pair_name(pair), pair, every) for pair in pairs(experiment)]
        found.append(_condition(experiment, JOINT, freed, every))
    if NUDGE in experiment.sources:
        found.append(_condition(experiment, NUDGE, (), every))
    if other:
        found.append(_condition(experiment, OTHER, (), range(1, 2)))
    if other and freed:
        found.append(_condition(experiment, JOINT_OTHER, freed, every))
    return found


def pairs(experiment: Experiment) -> list[tuple[Freed, ...]]:
    """The pairs of random sources that are freed together; none where the joint condition is that pair."""
    random = [source for source in experiment.freed if source != "kernels"]
    if not experiment.interactions or len(experiment.freed) < 3:
        return []
    return list(itertools.combinations(random, 2))


def _condition(experiment: Experiment, name: str, freed: tuple[Freed, ...], numbers: range) -> Condition:
    optimizer = experiment.other if name in (OTHER, JOINT_OTHER) else experiment.optimizer
    trials = [
        Trial(
            study=_derived(experiment, freed, optimizer, name == NUDGE, number),
            model_name=experiment.model,
            optimizer=optimizer,
            number=number,
            runs=experiment.runs / experiment.label,
        )
        for number in numbers
    ]
    return Condition(name, freed, trials)


def _derived(
    experiment: Experiment, freed: tuple[Freed, ...], optimizer: Optimizer, nudge: bool, number: int
) -> Study:
    """The study of one trial. What it does not measure is cut short, and no fine-tuning depends on it.

    Its folder is named after what is freed, and so may be shared: by the baselines of two optimizers, or by
    experiments with other choices of sources.
    """
    study, profile = experiment.study, experiment.study.randomness
    kernels: Kernels = "deterministic"
    threads, variant = study.threads, ""
    if "kernels" in freed:
        kernels, threads = next(itertools.islice(arithmetics(study.threads), number - 1, None))
        variant = f"{kernels}-{threads}-threads"

    def setting(source: Freed) -> Setting:
        seed = _pinned(getattr(profile, source))
        return PerTrial(seed) if source in freed else seed

    name = NUDGE if nudge else "-".join(freed) or BASELINE
    data = study.models[experiment.model].data
    return replace(
        study,
        name=name,
        variant=variant,
        trials=number,
        threads=threads,
        keep_merged=False,
        optimizers=[optimizer],
        profile=name,
        profiles={
            name: Randomness(
                split=setting("split"),
                adapter_init=setting("adapter_init"),
                data_order=setting("data_order"),
                dropout=setting("dropout"),
                generation=_pinned(profile.generation),
                kernels=kernels,
                nudge=nudge,
            )
        },
        models={experiment.model: study.models[experiment.model]},
        data={**study.data, data: replace(study.data[data], max_new_tokens=1)},
        generation=replace(study.generation, samplings=study.generation.samplings[:1]),
        ablation=None,
    )


def _pinned(setting: Setting) -> int:
    """The study's own seed of a source, where it has one."""
    if isinstance(setting, PerTrial):
        return setting.per_trial
    return PINNED if setting == "fresh" else setting


def arithmetics(threads: int) -> Iterator[tuple[Kernels, int]]:
    """Ways to do the same arithmetic, without the baseline's: both kinds of kernels, few threads first.

    More threads than cores are slower, but divide sums in yet another way.
    """
    yield "default", threads
    for number in itertools.count(1):
        if number != threads:
            yield "deterministic", number
            yield "default", number


def measure(experiment: Experiment, cache: Path) -> Measured:
    """Reads what all trials of an experiment left.

    Raises:
        MissingError: one is not done; says which.
    """
    found = conditions(experiment)
    by_name = {condition.name: condition for condition in found}
    sources = [name for name in by_name if name in experiment.freed]
    joint = by_name.get(JOINT, by_name[sources[-1]] if sources else by_name[BASELINE])
    baseline = _Left.of(by_name[BASELINE].trials[0], cache)
    outcomes: list[Outcome] = []
    apart: dict[str, list[float | None]] = {}
    for condition in found:
        trials = [_Left.of(trial, cache) for trial in condition.trials]
        references = (
            [_Left.of(trial, cache) for trial in joint.trials]
            if condition.name == JOINT_OTHER
            else [baseline] * len(trials)
        )
        outcomes += [
            _outcome(condition, trial, reference) for trial, reference in zip(trials, references, strict=True)
        ]
        apart[condition.name] = [
            _steady(update_distance(one.adapter, other.adapter))
            for one, other in itertools.combinations(trials, 2)
        ]
    return Measured(
        study=experiment.study.label,
        model=experiment.model,
        model_title=experiment.study.models[experiment.model].title,
        optimizer=experiment.optimizer,
        other=experiment.other,
        freed=list(experiment.freed),
        pairs=[list(pair) for pair in pairs(experiment)],
        replicates=experiment.replicates,
        steps=len(baseline.steps) - 1,
        one_ulp=_one_ulp(baseline.adapter),
        outcomes=outcomes,
        apart=apart,
    )


def undone(trial: Trial, cache: Path) -> list[str]:
    """The stages of a trial that are still to be done, with how they stand."""
    states = stage_states(trial, cache)
    return [f"{stage} ({states[stage].state})" for stage in STAGES if states[stage].state != "done"]


def free_merged(trial: Trial, cache: Path) -> None:
    """Deletes the merged weights of a trial that has been tested, unless another process works on it."""
    from qlora_repeat.merge import delete_merged

    if trial.merged.exists() and not undone(trial, cache):
        with contextlib.suppress(BusyError), exclusive(trial.lock, trial.name):
            delete_merged(trial)


@dataclass(frozen=True)
class _Left:
    """What a trial left."""

    trial: Trial
    records: dict[Stage, Record]
    steps: list[Step]
    adapter: Adapter

    @staticmethod
    def of(trial: Trial, cache: Path) -> "_Left":
        states = stage_states(trial, cache)
        records: dict[Stage, Record] = {}
        for stage in STAGES:
            state = states[stage]
            if state.state != "done" or state.record is None:
                changed = f" ({', '.join(state.changed)})" if state.changed else ""
                raise MissingError(
                    f"{trial.folder}: its {stage} stage is {state.state}{changed}; "
                    "the same `qlora-repeat attribute` goes on with it"
                )
            records[stage] = state.record
        return _Left(trial, records, read_trace(trial.trace), read_adapter(trial.adapter))


def _outcome(condition: Condition, left: _Left, reference: _Left) -> Outcome:
    trained, tested = left.records["finetune"], left.records["evaluate"].outputs
    parted = first_divergence(reference.steps, left.steps)
    losses = [step.loss for step in left.steps if step.loss is not None]
    late = losses[-math.ceil(len(losses) / LATE) :]
    return Outcome(
        condition=condition.name,
        replicate=left.trial.number,
        optimizer=left.trial.optimizer,
        kernels=left.trial.study.randomness.kernels,
        threads=left.trial.study.threads,
        seeds=dict(trained.outputs["seeds"]),
        perplexity=tested["perplexity"],
        final_loss=trained.outputs["final_loss"],
        late_loss=math.fsum(late) / len(late) if all(map(math.isfinite, late)) else sum(late) / len(late),
        diverged_at=trained.outputs["diverged_at"],
        adapter_digest=trained.outputs["adapter_digest"],
        first_step=parted.step if parted else None,
        first_kind=parted.kind if parted else None,
        update_distance=_steady(update_distance(reference.adapter, left.adapter)),
        value_distance=_steady(distances(reference.adapter, left.adapter)["all"].l2) or 0.0,
        device=str(trained.fingerprint["gpu"] or trained.fingerprint["cpu"]),
        software=software_names(trained.fingerprint),
        finished=max(record.finished for record in left.records.values()),
    )


def _steady(distance: float | None) -> float | None:
    """Without the last digits, in which matrix products vary with the threads that compute them."""
    return None if distance is None else float(f"{distance:.9g}")


def _one_ulp(adapter: Adapter) -> float:
    """A unit in the last place of the largest weight that an initial A can have, which is a float32.

    PEFT draws A evenly from ±1/√(its columns).
    """
    import numpy as np

    columns = [value.shape[1] for name, value in adapter.items() if "lora_A" in name]
    return float(np.spacing(np.float32(1 / math.sqrt(min(columns)))))
