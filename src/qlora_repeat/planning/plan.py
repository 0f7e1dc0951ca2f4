"""What a study will need on a GPU: memory, disk and hours, told before anything is fetched.

docs/explanation/memory-and-time.md says how each number comes about, and which of them are estimates.
"""

import heapq
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.errors import MissingError
from qlora_repeat.planning.gpu_catalog import Gpu, large_enough
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.data_sources import Data
from qlora_repeat.study.study import Dtype, FrozenWeights
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace

CONTEXT_BYTES = 1343 * 2**20
"""Nominal allowance for the CUDA context and kernels: what transformers' documentation (GPU memory anatomy)
finds occupied before any model is there. It depends on GPU, driver and libraries."""
PAPER_PARAMETERS = {
    "gpt-neox-20b": 20_554_567_680,
    "gpt-neoxt-chat-20b": 20_554_567_680,
    "llama2-7b": 6_738_415_616,
    "llama2-chat-7b": 6_738_415_616,
}
"""Of the paper's models: only a model of the same size is compared with them."""
PAPER_STEPS = {"text-generation": 3 * 2006, "question-answering": 3 * 19940}
"""Three epochs of 80 % of 2,508 quotes and of 24,926 instructions, an example a step (sections III, VII)."""
DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ArmPlan:
    """What a trial of an arm needs; bytes and seconds."""

    model: str
    optimizer: str
    optimizer_state: int
    finetune_peak: int
    """With the context."""
    finetune_share: float
    """Of the GPU's memory, 0 to 1."""
    paper_share: float | None
    """Table 3, where the model is as large as the paper's."""
    trials: int
    steps: int
    train_seconds: float | None
    """Estimated; None where the model is not as large as the paper's."""


@dataclass(frozen=True)
class ModelPlan:
    """What a model of the study needs, whatever the optimizer; bytes."""

    model: str
    base: str
    parameters: int
    weights: FrozenWeights
    """How the study wants the frozen base; "auto" is planned as unpacked, which takes more."""
    base_quantized: int
    base_scales: int
    base_materialized: int
    base_unquantized: int
    adapter: int
    saved: int
    """Kept for the backward pass of the longest batch."""
    passing: int
    """What else a step takes at its peak."""
    evaluate_weights: int
    evaluate_work: int
    evaluate_peak: int
    """With the context."""
    evaluate_share: float
    arms: list[ArmPlan]

    def quantized_copy(self, compute: Dtype) -> int:
        """What the cached copy of the base in 4 bits takes on disk, with a byte of scales for 64 weights."""
        size = DTYPE_BYTES[compute]
        packed = 2 * self.base_quantized or self.base_materialized // size
        return packed // 2 + packed // 64 + size * (self.parameters - packed)

    @property
    def peak(self) -> tuple[int, str]:
        """The most that the GPU needs, and for what."""
        finetune = max(arm.finetune_peak for arm in self.arms)
        return max((finetune, "fine-tuning"), (self.evaluate_peak, "testing the merged model"))


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on disk; converting pickled weights takes the download's size again for a while."""

    bases: int
    """The download, each base once: as locked, or else the parameters in float16."""
    quantized: int
    """Copies of the bases in 4 bits, that trials load."""
    adapters: int
    merged: int
    """Of every trial, or, unless they are kept, of as many of the largest as run at once."""


@dataclass(frozen=True)
class Plan:
    """What a study needs on some GPUs of a kind."""

    study: str
    gpu: Gpu
    gpus: int
    context: int
    models: list[ModelPlan]
    disk: DiskPlan
    gpu_hours: float | None
    """Of fine-tuning, those trials that have an estimate; None if none has."""
    wall_hours: float | None
    """The same on all GPUs, a trial on one GPU, in the study's order."""
    trials_without_estimate: int

    def too_large(self) -> list[str]:
        """A line for each model that the GPU has too little memory for."""
        lines = []
        for model in self.models:
            size, stage = model.peak
            if size > self.gpu.memory:
                lines.append(
                    f"model {model.model}: {stage} needs {size / 1e9:.1f} GB on one GPU, {self.gpu.name} has "
                    f"{self.gpu.memory / 1e9:.1f}; enough have "
                    f"{', '.join(large_enough(size)) or 'none of the known ones'}"
                )
        return lines


def make_plan(workspace: Workspace, gpu: Gpu, gpus: int, published: Sequence[TrialResult]) -> Plan:
    """Plans a study for some GPUs of a kind; `published` are the paper's results.

    Raises:
        MissingError: a base has no architecture in the study, and is not in the cache.
        UsageError: an architecture or target module that there is not.
    """
    study, footprints = workspace.study, _Footprints()
    models = [_model_plan(workspace, model, gpu, published, footprints) for model in study.models]
    seconds = [arm.train_seconds for model in models for arm in model.arms for _ in range(arm.trials)]
    known = [each for each in seconds if each is not None]
    return Plan(
        study=study.label,
        gpu=gpu,
        gpus=gpus,
        context=CONTEXT_BYTES,
        models=models,
        disk=disk_plan(workspace, models, gpus),
        gpu_hours=sum(known) / 3600 if known else None,
        wall_hours=makespan(known, gpus) / 3600 if known else None,
        trials_without_estimate=len(seconds) - len(known),
    )


def _model_plan(
    workspace: Workspace,
    name: str,
    gpu: Gpu,
    published: Sequence[TrialResult],
    footprints: "_Footprints",
) -> ModelPlan:
    from qlora_repeat.planning.memory_estimate import optimizer_bytes

    study, model = workspace.study, workspace.study.models[name]
    architecture = base_architecture(workspace, model.base)
    trial = Trial(workspace, name, study.optimizers[0], 1)
    parameters, tuning, testing = footprints.of(trial, architecture)
    weights = tuning.weights
    comparable = PAPER_PARAMETERS.get(model.counterpart or "") == parameters
    steps = model.training.total_steps(train_examples(trial.data))
    arms = []
    for optimizer in study.optimizers:
        paper = [
            row
            for row in published
            if comparable and (row.model, row.optimizer) == (model.counterpart, optimizer)
        ]
        peak = tuning.peak(optimizer) + CONTEXT_BYTES
        arms.append(
            ArmPlan(
                model=name,
                optimizer=optimizer,
                optimizer_state=optimizer_bytes(tuning.adapter_tensors, optimizer),
                finetune_peak=peak,
                finetune_share=peak / gpu.memory,
                paper_share=paper[0].peak_memory_share if paper else None,
                trials=study.trials,
                steps=steps,
                train_seconds=train_seconds(paper, steps, gpu) if paper else None,
            )
        )
    return ModelPlan(
        model=name,
        base=model.base,
        parameters=parameters,
        weights=study.weights,
        base_quantized=weights.quantized,
        base_scales=weights.scales,
        base_materialized=weights.materialized,
        base_unquantized=weights.unquantized,
        adapter=weights.adapter,
        saved=tuning.saved,
        passing=tuning.step - tuning.saved,
        evaluate_weights=testing.weights,
        evaluate_work=testing.work,
        evaluate_peak=testing.peak + CONTEXT_BYTES,
        evaluate_share=(testing.peak + CONTEXT_BYTES) / gpu.memory,
        arms=arms,
    )


def base_architecture(workspace: Workspace, name: str) -> Mapping[str, Any]:
    """A base's architecture: as the study says, or that of the fetched model.

    Raises:
        MissingError: neither is there.
    """
    given = workspace.study.bases[name].architecture
    if given is not None:
        return given
    path = base_folder(workspace, name) / "config.json"
    try:
        fetched: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(
            f"base {name}: the study has no [bases.{name}.architecture], and {path.parent} is not there; "
            "add the one, or run `qlora-repeat fetch` for this study"
        ) from None
    return fetched


class _Footprints:
    """Footprints that were told already: models of a study often differ in nothing that matters to them."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def of(self, trial: Trial, architecture: Mapping[str, Any]) -> tuple[int, Any, Any]:
        """Parameters, memory of fine-tuning, memory of testing."""
        from qlora_repeat.planning.memory_estimate import (
            evaluate_memory,
            finetune_memory,
            model_config,
            parameter_count,
        )

        config = model_config(architecture, trial.model.base)
        training = trial.model.training
        shape = [training.batch_size, training.max_length, training.gradient_checkpointing]
        return (
            self._told(parameter_count, [architecture], config),
            self._told(finetune_memory, [architecture, shape, trial.model.target_modules], trial, config),
            self._told(
                evaluate_memory,
                [architecture, training.max_length, trial.data.max_new_tokens],
                trial,
                config,
            ),
        )

    def _told(self, function: Any, depends_on: list[Any], *arguments: Any) -> Any:
        key = json.dumps([function.__name__, depends_on], sort_keys=True)
        if key not in self._known:
            self._known[key] = function(*arguments)
        return self._known[key]


def train_examples(data: Data) -> int:
    """How many examples of some data are trained on: what the test part, rounded up, leaves (section III)."""
    examples = data.rows - math.ceil(data.test_share * data.rows)
    return min(examples, data.max_rows or examples)


def train_seconds(paper: Sequence[TrialResult], steps: int, gpu: Gpu) -> float:
    """So many steps at the mean pace of the paper's trials of an arm (Tables 10 and 11), at a GPU's speed."""
    mean = statistics.mean(row.train_seconds for row in paper if row.train_seconds is not None)
    return mean * steps / PAPER_STEPS[paper[0].task] / gpu.speed


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last job ends, if each goes to the worker that is free first; jobs are not divided."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def disk_plan(workspace: Workspace, models: Sequence[ModelPlan], gpus: int) -> DiskPlan:
    """What a study takes on disk while so many GPUs work on it."""
    study = workspace.study
    size = DTYPE_BYTES[study.precision.merged]
    merged = sorted(
        size * model.parameters for model in models for arm in model.arms for _ in range(arm.trials)
    )
    return DiskPlan(
        bases=sum({model.base: _base_bytes(workspace, model) for model in models}.values()),
        quantized=sum(
            {model.base: model.quantized_copy(study.precision.compute) for model in models}.values()
        ),
        adapters=sum(model.adapter * len(model.arms) * study.trials for model in models),
        merged=sum(merged if study.keep_merged else merged[-gpus:]),
    )


def _base_bytes(workspace: Workspace, model: ModelPlan) -> int:
    hub = workspace.study.bases[model.base].hub
    pin = lock_file(workspace).pin(hub) if hub else None
    return sum(file.size for file in pin.files.values()) if pin else 2 * model.parameters
