"""The experiment that asks which source makes the runs of an arm differ: its conditions and their trials.

Each source that is looked at has two levels in each replicate, drawn independently. The baseline has the
first of all, ``joint`` the second of all, and each other condition takes the second of one source, or of two,
and the first of the rest (pick-freeze; Sobol 1993). So what a source does is seen at as many levels of the
other sources as there are replicates, and not only at those that a study happens to have.

One trial of the baseline is run twice, with everything pinned: it must be the same bits.

Each condition is a study of its own, derived from the given one; whatever the kit does for studies it does
for the experiment: trials run side by side, go on where they were killed, have records, and become stale.
"""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_repeat.analysis.adapter_distance import Adapter, distances, read_adapter, update_distance
from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    FREED,
    JOINT,
    NUDGE,
    OTHER,
    REPEAT,
    Freed,
    Measurements,
    Outcome,
    pair_name,
)
from qlora_repeat.analysis.trial_diff import first_divergence
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.jobs import TrialJob, is_open
from qlora_repeat.execution.run_study import Observer, run_study
from qlora_repeat.records.record import Record
from qlora_repeat.records.trace import Step, read_trace
from qlora_repeat.records.trial_state import stage_states
from qlora_repeat.study.optimizers import Optimizer, OptimizerName
from qlora_repeat.study.randomness import PerTrial, Randomness, Setting, Source, stream_seed
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import Kernels
from qlora_repeat.system.fingerprint import machine_digest, machine_name, software_names
from qlora_repeat.system.hashing import json_digest

CHOICES = (*FREED, "nudge", "optimizer")
"""What ``--sources`` takes; the last two are disturbances that are not random."""
DEFAULT = tuple(choice for choice in CHOICES if choice != "split")

STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
"""Those of a trial of the experiment: it measures no time."""
REPLICATES = 7
"""By default; so many trials has the paper of each arm."""
PINNED = 42
"""The seed of a source for which the study has none of its own."""
LATE = 4
"""The late loss is the mean loss of the last of so many equal parts of the steps."""


@dataclass(frozen=True)
class Experiment:
    """What is asked of which arm."""

    workspace: Workspace
    model: str
    optimizer: OptimizerName
    sources: tuple[str, ...]
    """Of `CHOICES`, in their order."""
    replicates: int
    interactions: bool
    """Whether also each pair of random sources is freed together, to tell which of them interact."""
    kernels: Kernels
    """Those of the baseline: default ones only where an operation has no deterministic form."""

    @property
    def study(self) -> Study:
        return self.workspace.study

    @property
    def runs(self) -> Path:
        """The folder of the results of its trials."""
        return self.workspace.runs / self.label

    @property
    def label(self) -> str:
        """The name of the folder of its trials, in that of results.

        Another choice of sources that have levels makes another baseline, and so another folder.
        """
        levels: list[str] = [source for source in self.sources if source in FREED and source != "kernels"]
        usual = [source for source in DEFAULT if source in FREED and source != "kernels"]
        choice = [] if levels == usual else levels or ["pinned"]
        return "-".join([f"{self.study.label}@attribute", *choice])

    @property
    def freed(self) -> tuple[Freed, ...]:
        """The sources that are freed."""
        return tuple(source for source in FREED if source in self.sources)

    @property
    def other(self) -> OptimizerName:
        """The optimizer whose state has another precision."""
        return Optimizer.parse(self.optimizer).other_precision.name

    @property
    def file(self) -> Path:
        """What was measured, and what it says of the sources. A smaller experiment has a file of its own."""
        lacking = [f"no-{source}" for source in DEFAULT if source not in self.sources]
        fewer = [f"{self.replicates}-replicates"] if self.replicates < REPLICATES else []
        pinned = ["default-kernels"] if self.kernels == "default" else []
        name = "-".join(["attribution", *lacking, *fewer, *pinned])
        return self.runs / self.model / self.optimizer / f"{name}.json"


@dataclass(frozen=True)
class Condition:
    """What is freed or changed together, and its trials: one for each replicate."""

    name: str
    freed: tuple[Freed, ...]
    """The sources that have their second levels."""
    trials: list[Trial]


def make_experiment(
    workspace: Workspace,
    model: str | None,
    optimizer: str | None,
    sources: Sequence[str],
    replicates: int,
    interactions: bool,
    kernels: Kernels = "deterministic",
) -> Experiment:
    """The experiment on an arm: by default, of the study's first model and its 32-bit optimizer.

    Raises:
        UsageError: the study has no such model or optimizer, a source is unknown, or none is named.
    """
    study = workspace.study
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
    return Experiment(workspace, model, named, chosen, replicates, interactions, kernels)


def conditions(experiment: Experiment) -> list[Condition]:
    """The conditions, the baseline first; that of all sources only where there are two or more."""
    freed = experiment.freed
    chosen: list[tuple[str, tuple[Freed, ...]]] = [(BASELINE, ()), (REPEAT, ())]
    chosen += [(source, (source,)) for source in freed]
    if len(freed) > 1:
        chosen += [(pair_name(pair), pair) for pair in pairs(experiment)] + [(JOINT, freed)]
    chosen += [(name, ()) for name in (NUDGE, OTHER) if name in experiment.sources]
    return [_condition(experiment, name, freed) for name, freed in chosen]


def pairs(experiment: Experiment) -> list[tuple[Freed, ...]]:
    """The pairs of random sources that are freed together; none where the joint condition is that pair."""
    random = [source for source in experiment.freed if source != "kernels"]
    if not experiment.interactions or len(experiment.freed) < 3:
        return []
    return list(itertools.combinations(random, 2))


def _condition(experiment: Experiment, name: str, freed: tuple[Freed, ...]) -> Condition:
    numbers = range(1, 2 if name == REPEAT else experiment.replicates + 1)
    optimizer = experiment.other if name == OTHER else experiment.optimizer
    trials = [
        Trial(
            workspace=replace(
                experiment.workspace,
                study=_derived(experiment, name, freed, optimizer, number),
                runs=experiment.runs,
            ),
            model_name=experiment.model,
            optimizer=optimizer,
            number=number,
        )
        for number in numbers
    ]
    return Condition(name, freed, trials)


def _derived(
    experiment: Experiment, condition: str, freed: tuple[Freed, ...], optimizer: OptimizerName, number: int
) -> Study:
    """The study of one trial. What it does not measure is cut short, and no fine-tuning depends on it.

    Its folder is named after what is freed, and so may be shared by experiments on two optimizers, or with
    other choices of sources.
    """
    study, profile = experiment.study, experiment.study.randomness
    kernels, threads, variant = experiment.kernels, study.threads, ""
    if "kernels" in freed:
        kernels, threads = "default", other_threads(study.threads)
    if "kernels" in freed or experiment.kernels == "default":
        variant = f"{kernels}-{threads}-threads"

    def setting(source: Source) -> Setting:
        seed = _pinned(getattr(profile, source))
        if source not in experiment.freed:
            return seed
        second = stream_seed(seed, source, "second level")
        return PerTrial(second if source in freed else seed)

    name = "-".join(freed) or {NUDGE: NUDGE, REPEAT: REPEAT}.get(condition, BASELINE)
    data = study.models[experiment.model].data
    return replace(
        study,
        name=name,
        variant=variant,
        trials=number,
        threads=threads,
        digest_every=1,
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
                nudge=condition == NUDGE,
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


def other_threads(threads: int) -> int:
    """Another number of threads: half as many, for which there are cores; two for one."""
    return threads // 2 or 2


def measure(experiment: Experiment) -> Measurements:
    """Reads what all trials of an experiment left.

    Raises:
        MissingError: one is not done; says which.
    """
    found = conditions(experiment)
    baseline = [_Left.of(trial) for trial in found[0].trials]
    outcomes = [_outcome(BASELINE, left, left) for left in baseline]
    for condition in found[1:]:
        outcomes += [
            _outcome(condition.name, _Left.of(trial), reference)
            for trial, reference in zip(condition.trials, baseline, strict=False)
        ]
    return Measurements(
        study=experiment.study.label,
        model=experiment.model,
        model_title=experiment.study.models[experiment.model].title,
        optimizer=experiment.optimizer,
        other=experiment.other,
        kernels=experiment.kernels,
        freed=list(experiment.freed),
        pairs=[list(pair) for pair in pairs(experiment)],
        replicates=experiment.replicates,
        steps=len(baseline[0].steps) - 1,
        one_ulp=_one_ulp(baseline[0].adapter),
        outcomes=outcomes,
    )


def run_experiment(experiment: Experiment, observer: Observer, jobs: int | None = None) -> None:
    """Run the trials of an experiment that are not done; of merged weights nothing stays.

    Raises:
        StageError, BusyError, StoppedError: as `run_study`.
    """
    found = conditions(experiment)
    baseline = found[0].trials[0].study
    # With default kernels: a trial sets what its own need, and those of one need not be those of all.
    profiles = {name: replace(each, kernels="default") for name, each in baseline.profiles.items()}
    study = replace(baseline, profiles=profiles)
    workspace = replace(experiment.workspace, study=study, runs=experiment.runs)
    # Where there are more threads than cores, those that wait by spinning take the cores from those that they
    # wait for (measured: 5 s became 140 s). This changes no bit.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def open_trials() -> list[TrialJob]:
        return [
            TrialJob(trial, STAGES, delete_merged=True, title=f"{condition.name} {trial.number}")
            for condition in found
            for trial in condition.trials
            if trial.merged.exists() or is_open(trial, STAGES)
        ]

    run_study(workspace, STAGES, observer, jobs=jobs, find=open_trials, title=experiment.label)


@dataclass(frozen=True)
class _Left:
    """What a trial left."""

    trial: Trial
    records: dict[Stage, Record]
    steps: list[Step]
    adapter: Adapter

    @staticmethod
    def of(trial: Trial) -> "_Left":
        states = stage_states(trial)
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


def _outcome(condition: str, left: _Left, reference: _Left) -> Outcome:
    trained, tested = left.records["finetune"], left.records["evaluate"]
    parted = first_divergence(reference.steps, left.steps)
    losses = [step.loss for step in left.steps if step.loss is not None]
    late = losses[-math.ceil(len(losses) / LATE) :]
    return Outcome(
        condition=condition,
        replicate=left.trial.number,
        optimizer=left.trial.optimizer,
        kernels=left.trial.study.randomness.kernels,
        threads=left.trial.study.threads,
        seeds=dict(trained.outputs["seeds"]),
        perplexity=tested.outputs["perplexity"],
        final_loss=trained.outputs["final_loss"],
        late_loss=math.fsum(late) / len(late) if all(map(math.isfinite, late)) else sum(late) / len(late),
        diverged_at=trained.outputs["diverged_at"],
        adapter_digest=trained.outputs["adapter_digest"],
        initial_digest=str(left.steps[0].adapter),
        rows_digest=json_digest([(step.examples, step.tokens) for step in left.steps]),
        rates_digest=json_digest([step.learning_rate for step in left.steps]),
        first_step=parted.step if parted else None,
        first_kind=parted.kind if parted else None,
        update_distance=_steady(update_distance(reference.adapter, left.adapter)),
        value_distance=_steady(distances(reference.adapter, left.adapter)["all"].l2) or 0.0,
        device=machine_name(trained.fingerprint),
        machine=json_digest([machine_digest(record.fingerprint) for record in (trained, tested)]),
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
