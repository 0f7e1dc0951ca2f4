"""Rebuild a trial from the settings in its records, whatever the study file says today."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from qlora_repeat.assets.base_models import base_digest, base_folder
from qlora_repeat.assets.datasets import data_digest, data_folder
from qlora_repeat.errors import MissingError
from qlora_repeat.records.record import Record
from qlora_repeat.study.data_sources import Positive
from qlora_repeat.study.randomness import Randomness
from qlora_repeat.study.study import Generation, Lora, Quantization, Training
from qlora_repeat.study.trial import Stage, Trial

_PROFILE = "recorded"
_STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate")
MOST_THREADS = 1024
"""No study asks for more threads than this."""


def recorded_trial(trial: Trial, records: Mapping[Stage, Record], where: Path, runs: Path) -> Trial:
    """Return the trial with all settings of its records, which are in `where`, and with results in `runs`.

    The sources of models and data come from the study file, because records name them by digest. So do the
    settings of the evaluation if it has no record.

    Raises:
        MissingError: a record lacks a setting, or has an invalid one.
    """
    study, model, data = trial.study, trial.model, trial.data
    tuned, merged, tested = (
        records[stage].inputs["settings"] if stage in records else {} for stage in _STAGES
    )
    today = TypeAdapter(Randomness).dump_python(study.randomness, mode="json")
    try:
        if tuned["optimizer"] != trial.optimizer:
            raise ValueError(f"optimizer is {tuned['optimizer']!r:.60}, in a record of {trial.name}")
        randomness = {
            **{name: tuned[name] for name in ("split", "adapter_init", "data_order", "dropout", "kernels")},
            "generation": tested.get("generation_seed", today["generation"]),
            "nudge": tuned.get("nudge", False),
        }
        evaluation = study.evaluation
        if tested:
            size = _typed(Positive, tested["batch_size"])
            evaluation = dataclasses.replace(evaluation, examples=tested["examples"], batch_size=size)
        changed = dataclasses.replace(
            study,
            threads=_typed(Annotated[int, Field(ge=1, le=MOST_THREADS)], tuned["threads"]),
            profile=_PROFILE,
            profiles={_PROFILE: _typed(Randomness, randomness)},
            optimizers=[trial.optimizer],
            quantization=_typed(Quantization, tuned["quantization"]),
            weights=_typed(str, tuned["weights"]),
            precision=dataclasses.replace(
                study.precision,
                compute=_typed(str, tuned["compute"]),
                merged=_typed(str, merged.get("merged", study.precision.merged)),
            ),
            lora=_typed(Lora, tuned["lora"]),
            generation=_typed(Generation, tested["generation"]) if tested else study.generation,
            evaluation=evaluation,
            data=study.data
            | {
                model.data: dataclasses.replace(
                    data,
                    prompts=_typed(list[str], tuned["prompts"]),
                    test_share=tuned["test_share"],
                    max_rows=tuned["max_rows"],
                    max_new_tokens=tested.get("max_new_tokens", data.max_new_tokens),
                )
            },
            models={
                trial.model_name: dataclasses.replace(
                    model,
                    template=_typed(str, tuned["template"]),
                    special_tokens=_typed(bool, tuned["special_tokens"]),
                    target_modules=_typed(list[str], tuned["target_modules"]),
                    training=_typed(Training, tuned["training"]),
                    stop=tested.get("stop", model.stop),
                )
            },
            ablation=None,  # fresh seeds give other responses by design
            keep_merged=False,
        )
    except (KeyError, ValueError, TypeError) as error:
        what = f"no setting {error}" if isinstance(error, KeyError) else _first_line(error)
        raise MissingError(
            f"{where / 'finetune.json'}: not the settings of a trial ({what}), so it cannot be run again"
        ) from None
    workspace = dataclasses.replace(trial.workspace, study=changed, runs=runs)
    return dataclasses.replace(trial, workspace=workspace)


def other_sources(trial: Trial, records: Mapping[Stage, Record]) -> list[str]:
    """Return a sentence if base model or data have another source in the study file than in the record."""
    inputs = records["finetune"].inputs
    return [
        f"the study file has another source of {what} {name} than the record"
        for what, key, name, source, _ in _sources(trial)
        if inputs.get(f"{key}_source") != source
    ]


def missing_inputs(trial: Trial, records: Mapping[Stage, Record]) -> list[str]:
    """Return a sentence if base model or data are not in the cache, or have another digest than recorded."""
    found = []
    for what, key, name, _, today in _sources(trial):
        recorded = records["finetune"].inputs.get(key)
        if today is None:
            found.append(f"{what} {name} is not fetched")
        elif recorded != today:
            found.append(f"{what} {name} here has digest {today[:12]}, but {str(recorded)[:12]} is recorded")
    return found


def _sources(trial: Trial) -> list[tuple[str, str, str, str, str | None]]:
    """Return, of base model and data: the noun, the key of inputs, the name, the source, the digest here."""
    where, base, data = trial.workspace, trial.model.base, trial.model.data
    return [
        ("base model", "base", base, base_folder(where, base).name, base_digest(where, base)),
        ("data", "data", data, data_folder(where, data).name, data_digest(where, data)),
    ]


def _typed(kind: Any, content: Any) -> Any:
    """Return the content as a value of this type, validated strictly: no text passes for a number."""
    return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return str(error).splitlines()[0]
