"""Rebuild a trial from the settings in its records, whatever the study file says today."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import Record
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS, shared_inputs, stage_settings
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.system.typed_json import first_problem

_PROFILE = "recorded"
VERIFIED_STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
"""The stages whose records `verify` compares; seconds differ each time."""


def recorded_trial(trial: Trial, records: Mapping[Stage, Record], where: Path, runs: Path) -> Trial:
    """Return the trial with all settings of its records, which are in `where`, and with results in `runs`.

    The sources of models and data come from the study file, because records name them by digest. So do the
    settings of the evaluation if it has no record.

    Raises:
        MissingError: a record lacks a setting, or has an invalid one.
    """
    tuned, merged, tested = (
        records[stage].inputs["settings"] if stage in records else {} for stage in VERIFIED_STAGES
    )
    adapter = TypeAdapter(Study)
    study = adapter.dump_python(trial.study, mode="json")
    randomness, model = study["profiles"][study["profile"]], study["models"][trial.model_name]
    data = study["data"][model["data"]]
    try:
        if tuned["optimizer"] != trial.optimizer:
            raise ValueError(f"optimizer is {tuned['optimizer']!r:.60}, in a record of {trial.name}")
        for name in ("split", "adapter_init", "data_order", "dropout", "kernels"):
            randomness[name] = tuned[name]
        randomness["generation"] = tested.get("generation_seed", randomness["generation"])
        randomness["nudge"] = tuned.get("nudge", False)
        for name in ("template", "special_tokens", "target_modules", "training"):
            model[name] = tuned[name]
        model["stop"] = tested.get("stop", model["stop"])
        for name in ("prompts", "test_share", "max_rows"):
            data[name] = tuned[name]
        data["max_new_tokens"] = tested.get("max_new_tokens", data["max_new_tokens"])
        for name in ("threads", "quantization", "weights", "lora"):
            study[name] = tuned[name]
        precision = study["precision"]
        precision |= {"compute": tuned["compute"], "merged": merged.get("merged", precision["merged"])}
        if tested:
            study["generation"] = tested["generation"]
            study["evaluation"] |= {name: tested[name] for name in ("examples", "batch_size")}
            if "answers" in tested:
                study["evaluation"]["answers"] = tested["answers"]
        study |= {
            "profile": _PROFILE,
            "profiles": {_PROFILE: randomness},
            "optimizers": [trial.optimizer],
            "models": {trial.model_name: model},
            "averaging": {"last_steps": tuned.get("last_steps")},
            "ablation": None,  # fresh seeds give other responses by design
            "keep_merged": False,
        }
        # As strict JSON, in which no text passes for a number.
        changed = adapter.validate_json(json.dumps(study), strict=True)
    except (KeyError, ValueError, TypeError) as error:
        what = f"no setting {error}" if isinstance(error, KeyError) else _first_line(error)
        raise MissingError(
            f"{where / 'finetune.json'}: not the settings of a trial ({what}), so it cannot be run again"
        ) from None
    workspace = dataclasses.replace(trial.workspace, study=changed, runs=runs)
    return dataclasses.replace(trial, workspace=workspace)


def other_settings(trial: Trial, records: Mapping[Stage, Record]) -> list[str]:
    """Return the names of the recorded settings to which the study file gives other values."""
    found = set()
    for stage in VERIFIED_STAGES:
        if stage in records:
            recorded, here = records[stage].inputs["settings"], stage_settings(trial, stage)
            shared = recorded.keys() & here.keys() - FIRST_TRIAL_SETTINGS
            found |= {name for name in shared if recorded[name] != here[name]}
    return sorted(found)


def other_sources(trial: Trial, records: Mapping[Stage, Record]) -> list[str]:
    """Return a sentence if base model or data have another source in the study file than in the record."""
    recorded, here = records["finetune"].inputs, shared_inputs(trial.workspace, trial.model_name)
    return [
        f"the study file has another source of {what} than the record"
        for key, what in _named(trial).items()
        if recorded.get(f"{key}_source") != here[f"{key}_source"]
    ]


def missing_inputs(trial: Trial, records: Mapping[Stage, Record]) -> list[str]:
    """Return a sentence if base model or data are not in the cache, or have another digest than recorded."""
    recorded, here = records["finetune"].inputs, shared_inputs(trial.workspace, trial.model_name)
    found = []
    for key, what in _named(trial).items():
        digest, claim = here[key], recorded.get(key)
        if digest is None:
            found.append(f"{what} is not fetched")
        elif digest != claim:
            found.append(f"{what} here has digest {digest[:12]}, but {str(claim)[:12]} is recorded")
    return found


def _named(trial: Trial) -> dict[str, str]:
    """Return base model and data in words, by their key in the inputs of a record."""
    return {"base": f"base model {trial.model.base}", "data": f"data {trial.model.data}"}


def _first_line(error: Exception) -> str:
    return first_problem(error) if isinstance(error, ValidationError) else str(error).partition("\n")[0]
