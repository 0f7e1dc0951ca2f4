"""Find contradictions between the files of a recorded trial whose digests are all correct.

A forger can recompute all digests; it is harder to make all numbers agree with each other.
"""

import json
from collections.abc import Iterator
from typing import Any

from qlora_repeat.analysis.trial_diff import Side
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS, stage_settings
from qlora_repeat.records.trace import loss_curve
from qlora_repeat.study.randomness import SOURCES, draw_seed
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.files import read_json
from qlora_repeat.system.hashing import weights_digest


def contradictions(side: Side, again: Trial) -> list[str]:
    """Return a sentence for each contradiction between the files of a trial; `again` has its settings."""
    found = [
        *_trace(side, again),
        *_outputs_of_trace(side),
        *_adapter(side, again),
        *_seeds(side, again),
        *_settings(side, again),
    ]
    if "evaluate" in side.records and side.perplexity is None:
        found.append(
            "The record of the evaluation belongs to another adapter, or there is no record of the merge."
        )
    return found


def _trace(side: Side, again: Trial) -> Iterator[str]:
    """Yield what the trace lacks, and the numbers of steps that differ from it."""
    needed = ("examples", "tokens", "loss", "gradient_norm", "learning_rate")
    for step in side.steps[1:]:
        if lacking := [name for name in needed if getattr(step, name) is None]:
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
    traced = {
        "initial_loss": steps[1].loss,
        "final_loss": steps[-1].loss,
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
    path, lora = side.folder / "adapter" / "adapter_config.json", again.study.lora
    config = read_json(path, "PEFT writes it beside the adapter's weights")
    config["target_modules"] = sorted(config.get("target_modules") or [])
    modules = sorted(again.model.target_modules)
    wanted = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": modules}
    for name, value in wanted.items():
        if config.get(name) != value:
            yield f"The adapter's configuration has another {name} than the settings, which have {value}."


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
    stages: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
    for stage in stages:
        if (record := side.records.get(stage)) is None:
            continue
        recorded, expected = record.inputs["settings"], stage_settings(again, stage)
        for name in sorted(recorded.keys() & expected.keys() - FIRST_TRIAL_SETTINGS):
            if recorded[name] != expected[name]:
                yield f"The setting {name} of the {stage} stage contradicts the other stages."


def _text(value: Any) -> str:
    """Return a value as JSON, where NaN equals NaN."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
