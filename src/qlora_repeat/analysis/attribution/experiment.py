"""Design and run the experiment that shows which source makes the trials of an arm differ.

Each source has two levels in each replicate, drawn independently. The baseline has the first levels of all
sources and ``joint`` the second; each other condition has the second level of one or two sources and the
first levels of the rest (pick-freeze; Sobol 1993). So the effect of a source is measured at as many levels of
the other sources as there are replicates.

One trial of the baseline is run twice with everything pinned: it must be bitwise the same.

Each condition is a study derived from the given one, so its trials run in parallel, resume, have records and
become stale like those of any study.
"""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qlora_repeat.analysis.adapter_distance import Adapter, distances, read_adapter, update_distance
from qlora_repeat.analysis.attribution.measurements import (
    BASELINE,
    FREED,
    NUDGE,
    OTHER,
    REPEAT,
    Freed,
    Measurements,
    Outcome,
    freed_by_condition,
)
from qlora_repeat.analysis.trial_diff import Side, first_divergence, read_side
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.jobs import TrialJob, is_open
from qlora_repeat.execution.run_study import Observer, run_study
from qlora_repeat.records.trial_state import stage_states
from qlora_repeat.study.averaging import Averaging
from qlora_repeat.study.optimizers import Optimizer, OptimizerName
from qlora_repeat.study.randomness import SOURCES, PerTrial, Randomness, Setting, Source, stream_seed
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.determinism import Kernels
from qlora_repeat.system.fingerprint import machine_digest, machine_name, software_names
from qlora_repeat.system.hashing import json_digest

CHOICES = (*FREED, "nudge", "optimizer")
"""The values of ``--sources``; the last two are not random."""
DEFAULT = tuple(choice for choice in CHOICES if choice != "split")
STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
"""The stages of a trial of the experiment, which measures no time."""
REPLICATES = 7
"""Default number of replicates, as many as the paper has trials of each arm."""
PINNED = 42
"""The seed of a source if the study does not set one."""
LATE = 4
"""The late loss is the mean loss over the last 1/LATE of the steps."""


@dataclass(frozen=True)
class Experiment:
    """The design of an experiment on one arm."""

    workspace: Workspace
    model: str
    optimizer: OptimizerName
    sources: tuple[str, ...]
    """Some of `CHOICES`, in their order."""
    replicates: int
    interactions: bool
    """Whether to free each pair of random sources together too, to show which of them interact."""
    kernels: Kernels
    """The kernels of the baseline; default ones only if an operation has no deterministic form."""

    @property
    def study(self) -> Study:
        return self.workspace.study

    @property
    def runs(self) -> Path:
        """Return the folder of the experiment's trials."""
        return self.workspace.runs / self.label

    @property
    def label(self) -> str:
        """Return the name of that folder. Another choice of sources with levels has another baseline."""
        levels: list[str] = [source for source in self.freed if source != "kernels"]
        choice = [] if levels == ["adapter_init", "data_order", "dropout"] else levels or ["pinned"]
        return "-".join([f"{self.study.label}@attribute", *choice])

    @property
    def freed(self) -> tuple[Freed, ...]:
        """Return the sources that are freed."""
        return tuple(source for source in FREED if source in self.sources)

    @property
    def pairs(self) -> list[tuple[Freed, ...]]:
        """Return the pairs of random sources that are freed together; none if ``joint`` is the only pair."""
        random = [source for source in self.freed if source != "kernels"]
        return [*itertools.combinations(random, 2)] if self.interactions and len(self.freed) > 2 else []

    @property
    def other(self) -> OptimizerName:
        """Return the optimizer whose state has the other precision."""
        return Optimizer.parse(self.optimizer).other_precision.name

    @property
    def file(self) -> Path:
        """Return the path of measurements and analysis; a smaller experiment has its own file."""
        lacking = [f"no-{source}" for source in DEFAULT if source not in self.sources]
        fewer = [f"{self.replicates}-replicates"] if self.replicates < REPLICATES else []
        pinned = ["default-kernels"] if self.kernels == "default" else []
        name = "-".join(["attribution", *lacking, *fewer, *pinned])
        return self.runs / self.model / self.optimizer / f"{name}.json"


@dataclass(frozen=True)
class Condition:
    """The sources that are freed together or the change that is made, with a trial for each replicate."""

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
    """Return the experiment on an arm; by default, the study's first model with the 32-bit optimizer.

    Raises:
        UsageError: the study has no such model or optimizer, a source is unknown, or there is no source.
    """
    study = workspace.study
    model = model or next(iter(study.models))
    optimizer = optimizer or ("adamw-32bit" if "adamw-32bit" in study.optimizers else study.optimizers[0])
    workspace.trial(f"{model}/{optimizer}/1")  # raises an error if there is none
    for source in sources or [""]:
        if source not in CHOICES:
            raise UsageError(f"--sources {source}: expected one or more of {', '.join(CHOICES)}")
    chosen = tuple(choice for choice in CHOICES if choice in sources)
    name = Optimizer.parse(optimizer).name
    return Experiment(workspace, model, name, chosen, replicates, interactions, kernels)


def conditions(experiment: Experiment) -> list[Condition]:
    """Return the conditions with their trials, the baseline first."""
    chosen = freed_by_condition(experiment.freed, experiment.pairs)
    chosen |= {name: () for name in (NUDGE, OTHER) if name in experiment.sources}
    return [
        Condition(
            name,
            own,
            [
                _trial(experiment, name, own, number)
                for number in range(1, 2 if name == REPEAT else experiment.replicates + 1)
            ],
        )
        for name, own in chosen.items()
    ]


def _trial(experiment: Experiment, condition: str, freed: tuple[Freed, ...], number: int) -> Trial:
    """Return a trial of its own study, with the shortest generation, on which fine-tuning does not depend.

    Its folder is named after the freed sources, so experiments on other optimizers or sources may share it.
    """
    study, profile = experiment.study, experiment.study.randomness
    optimizer = experiment.other if condition == OTHER else experiment.optimizer
    kernels, threads = experiment.kernels, study.threads
    if "kernels" in freed:
        kernels, threads = "default", other_threads(study.threads)
    named = "kernels" in freed or experiment.kernels == "default"

    def setting(source: Source) -> Setting:
        seed = _pinned(getattr(profile, source))
        if source not in experiment.freed:
            return seed
        return PerTrial(stream_seed(seed, source, "second level") if source in freed else seed)

    name = "-".join(freed) or (condition if condition in (NUDGE, REPEAT) else BASELINE)
    data = study.models[experiment.model].data
    derived = replace(
        study,
        name=name,
        variant=f"{kernels}-{threads}-threads" if named else "",
        trials=number,
        threads=threads,
        digest_every=1,
        keep_merged=False,
        optimizers=[optimizer],
        profile=name,
        profiles={
            name: Randomness(
                **{source: setting(source) for source in SOURCES if source != "generation"},
                generation=_pinned(profile.generation),
                kernels=kernels,
                nudge=condition == NUDGE,
            )
        },
        models={experiment.model: study.models[experiment.model]},
        data={**study.data, data: replace(study.data[data], max_new_tokens=1)},
        generation=replace(study.generation, samplings=study.generation.samplings[:1]),
        ablation=None,
        averaging=Averaging(),
    )
    workspace = replace(experiment.workspace, study=derived, runs=experiment.runs)
    return Trial(workspace, experiment.model, optimizer, number)


def _pinned(setting: Setting) -> int:
    """Return the study's seed of a source, or else `PINNED`."""
    if isinstance(setting, PerTrial):
        return setting.per_trial
    return PINNED if setting == "fresh" else setting


def other_threads(threads: int) -> int:
    """Return another number of threads: half as many, so that there are enough cores; two instead of one."""
    return threads // 2 or 2


def run_experiment(experiment: Experiment, observer: Observer, jobs: int | None = None) -> None:
    """Run the trials of an experiment that are not done, and delete their merged weights.

    Raises:
        StageError, BusyError, StoppedError: as `run_study`.
    """
    found = conditions(experiment)
    baseline = found[0].trials[0].study
    # With default kernels, because each trial sets its own kernels.
    profiles = {name: replace(each, kernels="default") for name, each in baseline.profiles.items()}
    study = replace(baseline, profiles=profiles)
    workspace = replace(experiment.workspace, study=study, runs=experiment.runs)
    # If there are more threads than cores, threads that wait by spinning slow down the others (measured: 5 s
    # became 140 s). This changes no bits.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def open_trials() -> list[TrialJob]:
        return [
            TrialJob(trial, STAGES, delete_merged=True, title=f"{condition.name} {trial.number}")
            for condition in found
            for trial in condition.trials
            if trial.merged.exists() or is_open(trial, STAGES)
        ]

    run_study(workspace, STAGES, observer, jobs=jobs, find=open_trials, title=experiment.label)


_Files = tuple[Trial, Side, Adapter]


def measure(experiment: Experiment) -> Measurements:
    """Read the records, traces and adapters of all trials of an experiment.

    Raises:
        MissingError: a trial is not done; says which.
    """
    first, *others = conditions(experiment)
    baseline = [_read(trial) for trial in first.trials]
    outcomes = [_outcome(first.name, files, files) for files in baseline]
    for condition in others:
        outcomes += [
            _outcome(condition.name, _read(trial), baseline[trial.number - 1]) for trial in condition.trials
        ]
    _, side, adapter = baseline[0]
    # PEFT draws A uniformly from ±1/√columns.
    columns = min(value.shape[1] for name, value in adapter.items() if "lora_A" in name)
    return Measurements(
        study=experiment.study.label,
        model=experiment.model,
        model_title=experiment.study.models[experiment.model].title,
        optimizer=experiment.optimizer,
        other=experiment.other,
        kernels=experiment.kernels,
        freed=list(experiment.freed),
        pairs=[list(pair) for pair in experiment.pairs],
        replicates=experiment.replicates,
        steps=side.last_step,
        one_ulp=float(np.spacing(np.float32(1 / math.sqrt(columns)))),
        outcomes=outcomes,
    )


def _read(trial: Trial) -> _Files:
    states = stage_states(trial)
    for stage in STAGES:
        if states[stage].state != "done":
            changed = f" ({', '.join(states[stage].changed)})" if states[stage].changed else ""
            raise MissingError(
                f"{trial.folder}: its {stage} stage is {states[stage].state}{changed}; "
                "run the same `qlora-repeat attribute` to resume"
            )
    return trial, read_side(trial.name, trial.folder), read_adapter(trial.adapter)


def _outcome(condition: str, files: _Files, reference: _Files) -> Outcome:
    (trial, side, adapter), (_, reference_side, reference_adapter) = files, reference
    trained, tested = side.records["finetune"], side.records["evaluate"]
    divergence = first_divergence(reference_side.steps, side.steps)
    losses = [step.loss for step in side.steps if step.loss is not None]
    late = losses[-math.ceil(len(losses) / LATE) :]
    return Outcome(
        condition=condition,
        replicate=trial.number,
        optimizer=trial.optimizer,
        kernels=trial.study.randomness.kernels,
        threads=trial.study.threads,
        seeds=dict(trained.outputs["seeds"]),
        perplexity=tested.outputs["perplexity"],
        final_loss=trained.outputs["final_loss"],
        late_loss=math.fsum(late) / len(late),
        diverged_at=trained.outputs["diverged_at"],
        adapter_digest=trained.outputs["adapter_digest"],
        initial_digest=str(side.steps[0].adapter),
        rows_digest=json_digest([(step.examples, step.tokens) for step in side.steps]),
        rates_digest=json_digest([step.learning_rate for step in side.steps]),
        first_step=divergence.step if divergence else None,
        first_kind=divergence.kind if divergence else None,
        update_distance=_stable(update_distance(reference_adapter, adapter)),
        value_distance=_stable(distances(reference_adapter, adapter)["all"].l2) or 0.0,
        device=machine_name(trained.fingerprint),
        machine=json_digest([machine_digest(record.fingerprint) for record in (trained, tested)]),
        software=software_names(trained.fingerprint),
        finished=max(record.finished for record in side.records.values()),
    )


def _stable(distance: float | None) -> float | None:
    """Return a distance without its last digits, which depend on the number of threads."""
    return None if distance is None else float(f"{distance:.9g}")
