"""Settings of later versions are inputs of a stage only where a study uses them, so older records count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.places import NO_RUNS, at

from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import Trial

TRAINING: list[dict[str, Any]] = [
    {"loss": "answer"},
    {"gradient_accumulation_steps": 2},
    {"warmup_ratio": 0.1, "schedule": "linear", "warmup_steps": 0},
]
LORA = [{"rslora": True}, {"dora": True}]


def changed(**settings: Any) -> Trial:
    study = load_study("pocket")
    name = next(name for name, model in study.models.items() if "answer" in model.template)
    model, lora = study.models[name], study.lora
    training = {key: value for key, value in settings.items() if hasattr(model.training, key)}
    lora = replace(lora, **{key: value for key, value in settings.items() if key not in training})
    model = replace(model, training=replace(model.training, **training))
    study = replace(study, lora=lora, models=study.models | {name: model})
    return at(study, NO_RUNS, Path("none")).trial(f"{name}/adamw-8bit/1")


@pytest.mark.parametrize("settings", [*TRAINING, *LORA])
def test_a_later_setting_is_an_input_only_if_it_is_used(settings: dict[str, Any]) -> None:
    key = next(iter(settings))
    without, used = (stage_settings(trial, "finetune") for trial in (changed(), changed(**settings)))
    inside = "lora" if key in ("rslora", "dora") else "training"
    assert key not in without[inside]
    assert used[inside][key] == settings[key]


def test_the_test_depends_on_the_loss_too() -> None:
    assert "loss" not in stage_settings(changed(), "evaluate")
    assert stage_settings(changed(loss="answer"), "evaluate")["loss"] == "answer"
