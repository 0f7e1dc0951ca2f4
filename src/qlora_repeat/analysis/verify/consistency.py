"""Where what a recorded trial left disagrees with itself, though each file is as its record says.

Whoever changes a number can make all digests fit again; it is harder to make all numbers fit each other.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.analysis.trial_diff import Side
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS, stage_settings
from qlora_repeat.records.trace import loss_curve
from qlora_repeat.study.randomness import SOURCES, draw_seed
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.files import read_json
from qlora_repeat.system.hashing import weights_digest


def contradictions(side: Side, again: Trial) -> list[str]:
    """Sentences, each on something in which the files of a trial disagree; `again` has its settings."""
    return [
        *_trace(side, again),
        *_outputs_of_trace(side),
        *_adapter(side, again),
        *_seeds(side, again),
        *_settings(side, again),
        *_chain(side),
    ]


def _trace(side: Side, again: Trial) -> Iterator[str]:
    """A trace that lacks what every fine-tuning writes."""
    needed = ("examples", "tokens", "loss", "gradient_norm", "learning_rate")
    for step in side.steps[1:]:
        if lacking := [name for name in needed if getattr(step, name) is None]:
            yield f"Step {step.step} of the trace has no {lacking[0]}."
            break
    if side.steps[0].adapter is None or side.steps[-1].adapter is None:
        yield "The trace has no digest of the adapter before the first step, or after the last."
    training, told = again.model.training, side.records["finetune"].outputs.get("steps")
    expected = training.total_steps(0) if training.steps else None  # of epochs, the rows would tell
    for source, steps in (("the record", told), ("its settings", expected)):
        if steps is not None and steps != side.last_step:
            yield f"The trace has {side.last_step} steps, where {source} say {steps}."


def _outputs_of_trace(side: Side) -> Iterator[str]:
    """Outputs that follow from the trace."""
    if side.last_step < 1:
        return
    steps, told = side.steps, side.records["finetune"].outputs
    followed: dict[str, Callable[[], Any]] = {
        "initial_loss": lambda: steps[1].loss,
        "final_loss": lambda: steps[-1].loss,
        "loss_curve": lambda: loss_curve(steps),
        "diverged_at": lambda: side.diverged_at,
        "skipped_steps": lambda: side.skipped_steps,
    }
    for name, follows in followed.items():
        if name in told and _text(told[name]) != _text(follows()):
            yield f"The record's {name} is not that of the trace."


def _adapter(side: Side, again: Trial) -> Iterator[str]:
    weights = weights_digest(side.folder / "adapter")
    claims = {
        "its record": side.records["finetune"].outputs["adapter_digest"],
        "the last step of its trace": side.steps[-1].adapter,
    }
    for where, claim in claims.items():
        if claim is not None and claim != weights:
            yield f"The adapter has digest {weights[:12]}, {where} says {claim[:12]}."
    path, lora = side.folder / "adapter" / "adapter_config.json", again.study.lora
    config = read_json(path, "it is PEFT's, beside the adapter's weights")
    wanted = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    for name, value in wanted.items():
        if config.get(name) != value:
            yield f"The adapter's configuration has another {name} than its settings, {value}."
    if sorted(config.get("target_modules") or []) != sorted(again.model.target_modules):
        yield "The adapter's configuration has other target_modules than its settings."


def _seeds(side: Side, again: Trial) -> Iterator[str]:
    """Seeds that the settings give, and are not those that were used."""
    seeds = side.records["finetune"].outputs["seeds"]
    for source in SOURCES:
        setting = getattr(again.study.randomness, source)
        if setting == "fresh":
            continue
        if seeds.get(source) != draw_seed(setting, source, again.number):
            yield f"The seed of {source} is not the one that its setting gives."
    tested = side.records.get("evaluate")
    told = tested.outputs.get("generation_seed") if tested else None
    if told is not None and told != seeds.get("generation"):
        yield "The responses have another seed than the fine-tuning's record says."


def _settings(side: Side, again: Trial) -> Iterator[str]:
    """Settings of one stage that do not fit those of another."""
    stages: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
    for stage in stages:
        if (record := side.records.get(stage)) is None:
            continue
        told, fit = record.inputs["settings"], stage_settings(again, stage)
        for name in sorted(told.keys() & fit.keys() - FIRST_TRIAL_SETTINGS):
            if told[name] != fit[name]:
                yield f"The {stage} stage's setting {name} does not fit those of the other stages."


def _chain(side: Side) -> Iterator[str]:
    """Records of stages that are not of the same adapter and merged model."""
    if "evaluate" in side.records and side.perplexity is None:
        yield "The record of the evaluation is of another adapter, or its merge has no record."


def _text(value: Any) -> str:
    """As JSON, where nan is equal to nan."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def plain_files(folder: Path) -> str | None:
    """The first thing in a folder that is no plain file, or None; links could lead anywhere."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_symlink() or not path.is_file():
            return path.name
    return None
