"""The inputs of a stage: the settings, digests and code that its outputs depend on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_folder, base_source
from qlora_repeat.assets.benchmarks import PACKAGE, own_task_digests
from qlora_repeat.assets.datasets import data_folder, data_source
from qlora_repeat.records.code_digest import code_digest
from qlora_repeat.study.data_sources import is_own_task
from qlora_repeat.study.scores import SCORES
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import BaseTest, Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import installed_version, lock_digest, packages
from qlora_repeat.system.hashing import manifest_digest

MODULES: dict[Stage, tuple[str, ...]] = {
    "finetune": ("stages.finetune", "system.determinism"),
    "average": ("stages.average",),
    "merge": ("stages.merge", "system.determinism"),
    "evaluate": ("stages.evaluate", "system.determinism"),
    "time": ("stages.timing", "system.determinism"),
    "benchmark": ("stages.benchmark", "system.determinism"),
}
"""The modules of each stage, whose code digest is one of its inputs."""
_LATER = {
    "gradient_accumulation_steps": 1,
    "loss": "all-tokens",
    "warmup_ratio": None,
    "rslora": False,
    "dora": False,
    "last_steps": None,
}
"""The defaults of settings that earlier versions did not have."""
FIRST_TRIAL_SETTINGS = {"repeated_responses"}
"""Settings that only the first trial of an arm has."""


def stage_inputs(
    trial: Trial,
    stage: Stage,
    upstream: dict[str, Any],
    shared: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the current inputs of a trial's stage; None for an input that cannot be read here.

    `upstream` has the outputs of the stages before, whose digest is an input too. `shared` is the result of
    `shared_inputs`, if the caller has it.
    """
    left = {"finetune": None, "average": "sources", "merge": "adapter_digest"}.get(stage, "merged_digest")
    return (shared or shared_inputs(trial.workspace, trial.model_name)) | {
        "code": code_digest(*MODULES[stage]),
        "settings": stage_settings(trial, stage),
        **({left: upstream.get(left)} if left else {}),
        **(_benchmark_inputs(trial) if stage == "benchmark" else {}),
    }


def base_inputs(test: BaseTest) -> dict[str, Any]:
    """Return the current inputs of a test of a base."""
    return shared_inputs(test.workspace, test.model_name) | {
        "code": code_digest(*MODULES["evaluate"]),
        "settings": _test_settings(test.workspace.study, test.model_name),
    }


def shared_inputs(workspace: Workspace, model_name: str) -> dict[str, Any]:
    """Return the inputs of all stages: base model, data and software, by name and by digest."""
    model = workspace.study.models[model_name]
    base, data = base_folder(workspace, model.base), data_folder(workspace, model.data)
    return {
        "base_source": base_source(workspace, model.base),
        "data_source": data_source(workspace, model.data),
        "packages": packages() if "torch" in packages() else None,
        "base": manifest_digest(base),
        "data": manifest_digest(data),
        "lock": lock_digest(),
    }


def stage_settings(trial: Trial, stage: Stage) -> dict[str, Any]:
    """Return the settings of the study that a stage's outputs depend on."""
    study, model = trial.study, trial.model
    if stage == "finetune":
        return {
            "optimizer": trial.optimizer,
            "threads": study.threads,
            **{name: asdict(study.randomness)[name] for name in ("adapter_init", "data_order", "dropout")},
            **_split_settings(study, model.data),
            "kernels": study.randomness.kernels,
            "nudge": study.randomness.nudge,
            "quantization": asdict(study.quantization),
            "weights": study.weights,
            "compute": study.precision.compute,
            "lora": _without_later(asdict(study.lora)),
            "training": _without_later(asdict(model.training)),
            "template": model.template,
            "special_tokens": model.special_tokens,
            "max_rows": trial.data.max_rows,
            "target_modules": model.target_modules,
            **_without_later({"last_steps": study.averaging.last_steps}),
        }
    if stage == "average":
        return {"average": trial.optimizer.partition("~")[2]}
    if stage == "merge":
        return {
            "threads": study.threads,
            "kernels": study.randomness.kernels,
            "merged": study.precision.merged,
        }
    if stage == "benchmark":
        settings = study.evaluation
        return {
            "threads": study.threads,
            "kernels": study.randomness.kernels,
            "compute": study.precision.compute,
            "batch_size": settings.batch_size,
            "lm_eval": [Path(task).name if is_own_task(task) else task for task in settings.lm_eval],
            "lm_eval_fewshot": settings.lm_eval_fewshot,
            "lm_eval_examples": settings.lm_eval_examples,
        }
    shared: dict[str, Any] = {
        "generation": asdict(study.generation),
        "generation_seed": asdict(study.randomness)["generation"],
        "kernels": study.randomness.kernels,
        **_split_settings(study, model.data),
        "max_new_tokens": trial.data.max_new_tokens,
        "special_tokens": model.special_tokens,
        "stop": model.stop,
    }
    if stage == "evaluate":
        if trial.repeats_responses and study.ablation:
            shared["repeated_responses"] = study.ablation.responses
        return _test_settings(study, trial.model_name) | shared
    return shared | {
        "threads": study.threads,
        "compute": study.precision.compute,
        "template": model.template,
        "timing_repeats": study.evaluation.timing_repeats,
    }


def _benchmark_inputs(trial: Trial) -> dict[str, Any]:
    """Return what a benchmark depends on besides: the harness, and task files by digest, not by path."""
    return {PACKAGE: installed_version(PACKAGE), "task_files": own_task_digests(trial.workspace)}


def _test_settings(study: Study, model_name: str) -> dict[str, Any]:
    model = study.models[model_name]
    answers = {
        "answers": asdict(study.evaluation.answers),
        "max_new_tokens": study.data[model.data].max_new_tokens,
        "stop": model.stop,
    }
    return {
        **(answers if study.data[model.data].task in SCORES else {}),
        "threads": study.threads,
        "kernels": study.randomness.kernels,
        **_split_settings(study, model.data),
        "compute": study.precision.compute,
        "template": model.template,
        "special_tokens": model.special_tokens,
        "max_rows": study.data[model.data].max_rows,
        "max_length": model.training.max_length,
        "examples": study.evaluation.examples,
        "batch_size": study.evaluation.batch_size,
        **_without_later({"loss": model.training.loss}),
    }


def _without_later(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those of later versions that are not used, so that older records count."""
    return {key: value for key, value in settings.items() if key not in _LATER or value != _LATER[key]}


def _split_settings(study: Study, name: str) -> dict[str, Any]:
    """Return what the split depends on; rows that match a prompt go to the test part."""
    data = study.data[name]
    split = asdict(study.randomness)["split"]
    return {"split": split, "test_share": data.test_share, "prompts": data.prompts}


def changed_inputs(recorded: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """Return the names of inputs and settings that differ from the recorded ones; skip unknown inputs."""
    names = []
    for name, value in today.items():
        if value is None or recorded.get(name) == value:
            continue
        if name == "settings":
            old = recorded.get(name, {})
            names += [key for key in sorted({*old, *value}) if old.get(key) != value.get(key)]
        else:
            names.append(name)
    return names
