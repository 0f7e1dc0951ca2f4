"""Find contradictions between the files of a recorded trial whose digests are all correct.

A forger can recompute all digests; it is harder to make all numbers agree with each other.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.analysis.trial_diff import Side
from qlora_repeat.analysis.verify.recorded_settings import VERIFIED_STAGES
from qlora_repeat.records.record_schema import AnswersOutput
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS, stage_settings
from qlora_repeat.records.trace import known_losses, loss_curve
from qlora_repeat.stages.merge import adapter_config
from qlora_repeat.stages.perplexity import ExampleLoss, accuracy, mean_example_perplexity, perplexity
from qlora_repeat.stages.scores import scores
from qlora_repeat.study.randomness import SOURCES, draw_seed
from qlora_repeat.study.scores import SCORES
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.hashing import weights_digest
from qlora_repeat.system.safetensors_file import read_header


def contradictions(side: Side, again: Trial) -> list[str]:
    """Return a sentence for each contradiction between the files of a trial; `again` has its settings."""
    return [
        *_trace(side, again),
        *_outputs_of_trace(side),
        *_adapter(side, again),
        *_seeds(side, again),
        *_settings(side, again),
        *_fingerprints(side),
        *_chain(side),
        *_tests(side),
        *_answers(side, again),
        *_benchmarks(side),
    ]


def _trace(side: Side, again: Trial) -> Iterator[str]:
    """Yield what the trace lacks, and the numbers of steps that differ from it."""
    needed = ("examples", "tokens", "loss", "gradient_norm", "learning_rate")
    for step in side.steps[1:]:
        absent = [name for name in needed if getattr(step, name) is None]
        if lacking := [name for name in absent if not (name == "loss" and step.empty)]:
            yield f"Step {step.step} of the trace has no {lacking[0]}."
            break
    if side.steps[0].adapter is None or side.steps[-1].adapter is None:
        yield "The trace has no digest of the adapter before the first step, or after the last."
    training, recorded = again.model.training, side.records["finetune"].outputs.get("steps")
    expected = training.total_steps(0) if training.steps else None  # steps of epochs depend on the rows
    for source, steps in (("the record", recorded), ("its settings", expected)):
        if steps is not None and steps != side.last_step:
            yield f"The trace has {side.last_step} steps, where {source} say {steps}."


def _outputs_of_trace(side: Side) -> Iterator[str]:
    """Yield the recorded outputs that do not follow from the trace."""
    if side.last_step < 1:
        return
    steps, recorded = side.steps, side.records["finetune"].outputs
    losses = known_losses(steps) or [math.nan]
    traced = {
        "initial_loss": losses[0],
        "final_loss": losses[-1],
        "loss_curve": loss_curve(steps),
        "diverged_at": side.diverged_at,
        "skipped_steps": side.skipped_steps,
    }
    for name, value in traced.items():
        if name in recorded and _text(recorded[name]) != _text(value):
            yield f"The record's {name} does not follow from the trace."


def _adapter(side: Side, again: Trial) -> Iterator[str]:
    weights = weights_digest(side.folder / "adapter")
    claims = {
        "its record": side.records["finetune"].outputs["adapter_digest"],
        "the last step of its trace": side.steps[-1].adapter,
    }
    for where, claim in claims.items():
        if claim is not None and claim != weights:
            yield f"The adapter has digest {weights[:12]}, but {where} says {claim[:12]}."
    lora, folder = again.study.lora, side.folder / "adapter"
    config: dict[str, Any] = {**adapter_config(folder)}
    named = again.model.target_modules
    wanted: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    kinds = {"use_rslora": lora.rslora, "use_dora": lora.dora}
    wanted |= {key: True for key, is_set in kinds.items() if is_set}
    config["target_modules"] = sorted(config.get("target_modules", []))
    wanted["target_modules"] = _adapted(folder, config) if named == "all-linear" else sorted(named)
    wanted |= {"peft_type": "LORA", "init_lora_weights": True}  # PiSSA, say, also changes the base
    for name, value in wanted.items():
        if config.get(name) != value:
            yield f"The adapter's configuration has another {name} than the settings, which have {value}."
    for other in sorted(each.name for each in folder.glob("*.safetensors")):
        if other != "adapter_model.safetensors":
            yield f"The adapter has weights in {other}, which PEFT does not read."
    if changing := [name for name in _CHANGE_ADAPTER if config.get(name) and not kinds.get(name)]:
        yield f"The adapter's configuration sets {', '.join(changing)}, which the settings do not have."


def _adapted(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the configuration's names of layers if they are exactly those of an adapter, else its layers."""
    names = config["target_modules"]
    layers = {
        name.removeprefix("base_model.model.").partition(".lora_")[0]
        for name in read_header(folder / "adapter_model.safetensors")
    }
    used = {name for name in names for layer in layers if f".{layer}".endswith(f".{name}")}
    adapted = {layer for layer in layers for name in names if f".{layer}".endswith(f".{name}")}
    return list(names) if adapted == layers and used == {*names} else sorted(layers)


_CHANGE_ADAPTER = (
    "alpha_pattern", "alora_invocation_tokens", "arrow_config", "exclude_modules", "kasa_config",
    "layer_replication", "layers_pattern", "layers_to_transform", "lora_bias",
    "modules_to_save", "monteclora_config", "rank_pattern", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
)  # fmt: skip
"""Options of PEFT's LoraConfig, without a value in the kit's, with which the same tensors change a model in
another way."""


def _seeds(side: Side, again: Trial) -> Iterator[str]:
    """Yield the recorded seeds that the settings would not give."""
    seeds = side.records["finetune"].outputs["seeds"]
    for source in SOURCES:
        setting = getattr(again.study.randomness, source)
        if setting != "fresh" and seeds.get(source) != draw_seed(setting, source, again.number):
            yield f"The recorded seed of {source} is not the one that its setting gives."
    tested = side.records.get("evaluate")
    used = tested.outputs.get("generation_seed") if tested else None
    if used is not None and used != seeds.get("generation"):
        yield "The responses have another seed than the record of the fine-tuning says."


def _settings(side: Side, again: Trial) -> Iterator[str]:
    """Yield the settings of a stage that contradict those of another."""
    for stage in VERIFIED_STAGES:
        if (record := side.records.get(stage)) is None:
            continue
        recorded, expected = record.inputs["settings"], stage_settings(again, stage)
        for name in sorted(recorded.keys() & expected.keys() - FIRST_TRIAL_SETTINGS):
            if recorded[name] != expected[name]:
                yield f"The setting {name} of the {stage} stage contradicts the other stages."


def _fingerprints(side: Side) -> Iterator[str]:
    """Yield what a fingerprint claims although settings or inputs of the same record exclude it."""
    for stage in VERIFIED_STAGES:
        if (record := side.records.get(stage)) is None:
            continue
        settings, found = record.inputs["settings"], record.fingerprint
        kernels = found.get("kernels")
        on = isinstance(kernels, dict) and kernels.get("deterministic")
        set_to = settings.get("kernels") if "kernels" in found else None  # the oldest records have none
        claims = {
            "threads": (settings.get("threads"), found["threads"]),
            "kernels": (set_to, "deterministic" if on else "default"),
            "packages": (record.inputs.get("packages"), found["packages"]),
        }
        for name, (wanted, claimed) in claims.items():
            if wanted and wanted != claimed:
                yield f"The fingerprint of the {stage} stage has other {name} than its inputs."


_NEEDED: dict[Stage, tuple[Stage, str]] = {
    "merge": ("finetune", "adapter_digest"),
    "evaluate": ("merge", "merged_digest"),
    "time": ("merge", "merged_digest"),
    "benchmark": ("merge", "merged_digest"),
}
"""The stage before each stage, and the output that it takes from there."""


def _chain(side: Side) -> Iterator[str]:
    """Yield the stages that did not use what the stage before them left."""
    for stage, (before, name) in _NEEDED.items():
        if stage not in side.records:
            continue
        if before not in side.records:
            yield f"There is a record of {stage}, but none of {before}."
        elif side.records[stage].inputs.get(name) != side.records[before].outputs.get(name):
            yield f"The record of {stage} belongs to another {name} than {before} left."


@with_config(ConfigDict(strict=True))
class _Loss(TypedDict):
    row: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=1)]
    loss: float
    answered: bool | None


_LOSSES: TypeAdapter[list[_Loss]] = TypeAdapter(Annotated[list[_Loss], Field(min_length=1)])


def _tests(side: Side) -> Iterator[str]:
    """Yield the outputs of the evaluation that do not follow from the losses of its examples."""
    if (record := side.records.get("evaluate")) is None:
        return
    try:
        losses = [ExampleLoss(**each) for each in _LOSSES.validate_python(record.outputs.get("examples"))]
    except ValidationError:
        yield "The record of the evaluation has no valid losses of examples."
        return
    following = {
        "perplexity": perplexity(losses),
        "perplexity_example_mean": mean_example_perplexity(losses),
        "accuracy": accuracy(losses),
        "test_examples": len(losses),
        "test_tokens": sum(loss.tokens for loss in losses),
    }
    for name, value in following.items():
        if not _agree(record.outputs.get(name), value):
            yield f"The record of the evaluation has another {name} than its examples give."


_ANSWERS: TypeAdapter[AnswersOutput] = TypeAdapter(AnswersOutput)


def _answers(side: Side, again: Trial) -> Iterator[str]:
    """Yield the scores that do not follow from the recorded answers, and references that are no label."""
    task, record = again.data.task, side.records.get("evaluate")
    if record is None or task not in SCORES:
        return
    try:
        answers = _ANSWERS.validate_python(record.outputs.get("answers"))
    except ValidationError:
        yield "The record of the evaluation has no valid answers to test rows."
        return
    examples, labels = answers["examples"], answers["labels"]
    references, texts = ([each[key] for each in examples] for key in ("reference", "text"))
    if task == "classification" and not ({*references} <= {*labels} and all(labels)):
        yield "The record of the evaluation has answers whose reference is no label."
        return
    following, recorded = scores(task, references, texts, labels), answers["scores"]
    for name in following.keys() | recorded.keys():
        one, other = (each.get(name) for each in (recorded, following))
        if one is None or other is None or not math.isclose(one, other, rel_tol=1e-9):
            yield f"The record of the evaluation has another score {name} than its answers give."


def _benchmarks(side: Side) -> Iterator[str]:
    """Yield the scores of benchmarks that are not the mean of their outcomes."""
    if (record := side.records.get("benchmark")) is None:
        return
    for name, task in record.outputs.get("tasks", {}).items():
        for metric, outcomes in task.get("outcomes", {}).items():
            score, count = task.get("scores", {}).get(metric), task.get("example_count")
            if len(outcomes) != count:
                yield f"The benchmark {name!r:.80} has {len(outcomes)} outcomes, but its record says {count}."
            elif not outcomes or not _agree(score, float(fmean(outcomes))):
                yield f"The benchmark {name!r:.80} has another {metric!r:.80} than its outcomes give."


def _agree(recorded: Any, value: float | None) -> bool:
    """Return whether two numbers agree, except for rounding: versions of Python differ in how they add."""
    if isinstance(recorded, float) and isinstance(value, float):
        both_nan = math.isnan(recorded) and math.isnan(value)
        return both_nan or math.isclose(recorded, value, rel_tol=1e-9)
    return type(recorded) is type(value) and recorded == value


def _text(value: Any) -> str:
    """Return a value as JSON, where NaN equals NaN."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
