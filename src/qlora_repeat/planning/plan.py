"""Estimate what a study needs on a GPU (memory, disk and hours) before anything is fetched.

docs/explanation/memory-and-time.md explains each number, and which of them are estimates.
"""

import heapq
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qlora_repeat.assets.architecture import base_architecture
from qlora_repeat.assets.hub_lock import lock_file
from qlora_repeat.assets.pins import data_with_rows
from qlora_repeat.errors import KitError, UsageError
from qlora_repeat.planning.gpu_catalog import Gpu, large_enough
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.data_sources import train_examples
from qlora_repeat.study.optimizers import OptimizerName
from qlora_repeat.study.study import Dtype, FrozenWeights, Quantization
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.memory import CONTEXT_BYTES

if TYPE_CHECKING:
    from qlora_repeat.planning.memory_estimate import EvaluateMemory, FinetuneMemory

PAPER_PARAMETERS = {
    "gpt-neox-20b": 20_554_567_680,
    "gpt-neoxt-chat-20b": 20_554_567_680,
    "llama2-7b": 6_738_415_616,
    "llama2-chat-7b": 6_738_415_616,
}
"""The sizes of the paper's models; a model is compared only with one of the same size."""
PAPER_STEPS = {"text-generation": 3 * 2006, "question-answering": 3 * 19940}
"""Three epochs of 80 % of 2,508 quotes and 24,926 instructions, one example per step (sections III, VII)."""
DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ArmPlan:
    """What a trial of an arm needs, in bytes and seconds."""

    model: str
    optimizer: str
    optimizer_state: int
    finetune_peak: int
    """Includes the context."""
    finetune_share: float
    """Of the GPU's memory, 0 to 1."""
    paper_share: float | None
    """From Table 3, if the model is as large as the paper's."""
    trials: int
    steps: int
    train_seconds: float | None
    """An estimate; None if the model is not as large as the paper's."""


@dataclass(frozen=True)
class ModelPlan:
    """What a model of the study needs with any optimizer, in bytes."""

    model: str
    base: str
    parameters: int
    share_in_4_bits: float
    """Of the base's weights, 0 to 1."""
    weights: FrozenWeights | Literal["int8", "none"]
    """The study's setting for the frozen base; "auto" is planned as dequantized, which needs more memory.
    Of a base that is not in 4 bits, its type."""
    base_quantized: int
    base_scales: int
    base_materialized: int
    base_unquantized: int
    adapter: int
    saved: int
    """What the forward pass of the longest batch keeps for the backward pass."""
    passing: int
    """What else a step needs at its peak."""
    evaluate_weights: int
    evaluate_work: int
    evaluate_peak: int
    """Includes the context."""
    evaluate_share: float
    arms: list[ArmPlan]

    def quantized_copy(self, compute: Dtype) -> int:
        """Return the disk space of the cached 4-bit copy of the base, with a scale byte for 64 weights."""
        size = DTYPE_BYTES[compute]
        packed = 2 * self.base_quantized or self.base_materialized // size
        return packed // 2 + packed // 64 + size * (self.parameters - packed)

    @property
    def peak(self) -> tuple[int, str]:
        """The peak on the GPU, and its stage."""
        finetune = max(arm.finetune_peak for arm in self.arms)
        return max((finetune, "fine-tuning"), (self.evaluate_peak, "testing the merged model"))


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on disk; converting pickled weights temporarily needs the size of the download again."""

    bases: int
    """The download of each base once, from the lock file or else the parameters in float16."""
    quantized: int
    """Copies of bases in 4 bits, which trials load."""
    adapters: int
    merged: int
    """Of every trial if the study keeps them, else of as many of the largest as run at once."""


@dataclass(frozen=True)
class Plan:
    """What a study needs on a number of equal GPUs."""

    study: str
    gpu: Gpu
    gpus: int
    context: int
    models: list[ModelPlan]
    disk: DiskPlan
    gpu_hours: float | None
    """Of fine-tuning, for the trials with an estimate; None if there are none."""
    wall_hours: float | None
    """The elapsed time on all GPUs, with each trial on one GPU, in the study's order."""
    trials_without_estimate: int

    def too_large(self) -> list[str]:
        """Return a line for each model that needs more memory than the GPU has."""
        lines = []
        for model in self.models:
            size, stage = model.peak
            if size > self.gpu.memory:
                enough = ", ".join(large_enough(size)) or "none of the known GPUs"
                lines.append(
                    f"model {model.model}: {stage} needs {size / 1e9:.1f} GB on one GPU, {self.gpu.name} has "
                    f"{self.gpu.memory / 1e9:.1f}; large enough: {enough}"
                )
        return lines


def make_plan(workspace: Workspace, gpu: Gpu, gpus: int, published: Sequence[TrialResult]) -> Plan:
    """Plan a study for a number of equal GPUs; `published` are the paper's results.

    Raises:
        MissingError: a base has no architecture in the study, and is not in the cache.
        UsageError: an architecture or a target module does not exist.
    """
    study, known_memory = workspace.study, dict[str, Any]()
    models = [_model_plan(workspace, model, gpu, published, known_memory) for model in study.models]
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
    workspace: Workspace, name: str, gpu: Gpu, published: Sequence[TrialResult], known: dict[str, Any]
) -> ModelPlan:
    """Plan a model. `known` keeps estimates of memory, which the models of a study often share."""
    from qlora_repeat.planning import memory_estimate as estimate

    study, model = workspace.study, workspace.study.models[name]
    trial, training = Trial(workspace, name, study.optimizers[0], 1), model.training
    architecture = base_architecture(workspace, model.base)
    config = estimate.model_config(architecture, model.base)

    def once(function: Callable[..., Any], depends_on: list[Any], *arguments: Any) -> Any:
        key = json.dumps([function.__name__, architecture, depends_on], sort_keys=True)
        if key not in known:
            try:
                known[key] = function(*arguments)
            except KitError:
                raise
            except Exception as error:  # of transformers, for an architecture of any origin
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UsageError(f"bases.{model.base}.architecture: cannot be planned ({reason})") from error
        return known[key]

    batch = [training.batch_size, training.max_length, training.gradient_checkpointing]
    batch.append(training.gradient_accumulation_steps > 1)
    parameters: int = once(estimate.parameter_count, [], config)
    kept = [batch, model.target_modules]
    tuning: FinetuneMemory = once(estimate.finetune_memory, kept, trial, config)
    lengths = [training.max_length, trial.data.max_new_tokens]
    testing: EvaluateMemory = once(estimate.evaluate_memory, lengths, trial, config)
    weights, evaluate_peak = tuning.weights, testing.weights + testing.work + CONTEXT_BYTES
    comparable = PAPER_PARAMETERS.get(model.counterpart or "") == parameters
    counterparts = [row for row in published if comparable and row.model == model.counterpart]
    arms = [_arm_plan(trial, optimizer, tuning, gpu, counterparts) for optimizer in study.optimizers]
    return ModelPlan(
        model=name,
        base=model.base,
        parameters=parameters,
        share_in_4_bits=tuning.counts.share,
        weights=study.weights if study.quantization.in_4_bits else _other_type(study.quantization),
        base_quantized=weights.quantized,
        base_scales=weights.scales,
        base_materialized=weights.materialized,
        base_unquantized=weights.unquantized,
        adapter=weights.adapter,
        saved=tuning.saved,
        passing=tuning.step - tuning.saved,
        evaluate_weights=testing.weights,
        evaluate_work=testing.work,
        evaluate_peak=evaluate_peak,
        evaluate_share=evaluate_peak / gpu.memory,
        arms=arms,
    )


def _other_type(quantization: Quantization) -> Literal["int8", "none"]:
    return "int8" if quantization.type == "int8" else "none"


def _arm_plan(
    trial: Trial,
    optimizer: OptimizerName,
    tuning: "FinetuneMemory",
    gpu: Gpu,
    counterparts: Sequence[TrialResult],
) -> ArmPlan:
    """Plan an arm of the trial's model. `counterparts`: the paper's trials that it can be compared with."""
    from qlora_repeat.planning.memory_estimate import optimizer_bytes

    paper = [row for row in counterparts if row.optimizer == optimizer]
    peak = tuning.peak(optimizer) + CONTEXT_BYTES
    steps = trial.model.training.total_steps(
        train_examples(data_with_rows(trial.workspace, trial.model.data))
    )
    return ArmPlan(
        model=trial.model_name,
        optimizer=optimizer,
        optimizer_state=optimizer_bytes(tuning.adapter_tensors, optimizer),
        finetune_peak=peak,
        finetune_share=peak / gpu.memory,
        paper_share=paper[0].peak_memory_share if paper else None,
        trials=trial.study.trials,
        steps=steps,
        train_seconds=train_seconds(paper, steps, gpu) if paper else None,
    )


def train_seconds(paper: Sequence[TrialResult], steps: int, gpu: Gpu) -> float:
    """Return the seconds of `steps` from the mean of the paper's trials of an arm (Tables 10 and 11)."""
    mean = statistics.mean(row.train_seconds for row in paper if row.train_seconds is not None)
    return mean * steps / PAPER_STEPS[paper[0].task] / gpu.speed


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return when the last job ends, if each job goes to the first free worker."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def disk_plan(workspace: Workspace, models: Sequence[ModelPlan], gpus: int) -> DiskPlan:
    """Return the disk space of a study while a number of GPUs work on it."""
    study, size = workspace.study, DTYPE_BYTES[workspace.study.precision.merged]
    merged = sorted(size * each.parameters for each in models for arm in each.arms for _ in range(arm.trials))
    by_base = {model.base: model for model in models}.values()
    return DiskPlan(
        bases=sum(_base_bytes(workspace, model) for model in by_base),
        quantized=sum(
            model.quantized_copy(study.precision.compute) for model in by_base if study.quantization.in_4_bits
        ),
        adapters=sum(model.adapter * len(model.arms) * study.trials for model in models),
        merged=sum(merged if study.keep_merged else merged[-gpus:]),
    )


def _base_bytes(workspace: Workspace, model: ModelPlan) -> int:
    hub = workspace.study.bases[model.base].hub
    pin = lock_file(workspace).pin(hub) if hub else None
    return sum(file.size for file in pin.files.values()) if pin else 2 * model.parameters
