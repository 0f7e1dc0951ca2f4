"""A trial as its records say that it was run, whatever the study file says today."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qlora_repeat.base_model import base_digest, base_folder
from qlora_repeat.data import data_digest, data_folder
from qlora_repeat.errors import MissingError
from qlora_repeat.randomness import Randomness
from qlora_repeat.record import Record
from qlora_repeat.study import Evaluation, Generation, Lora, Model, Quantisation, Study, Training
from qlora_repeat.trial import Stage, Trial

_PROFILE = "recorded"


def recorded_trial(trial: Trial, records: Mapping[Stage, Record], runs: Path) -> Trial:
    """The trial in another folder of results, with every setting that its records have.

    Only where models and data come from is the study file's: records name them by digest. Without a record of
    the evaluation, how it tests is the study file's too.

    Raises:
        MissingError: a record lacks a setting, or has one that is none.
    """
    study = trial.study
    tuned = records["finetune"].inputs["settings"]
    merged = records["merge"].inputs["settings"] if "merge" in records else {}
    tested = records["evaluate"].inputs["settings"] if "evaluate" in records else {}
    try:
        model = dataclasses.replace(
            study.models[trial.model_name],
            template=_text(tuned["template"]),
            special_tokens=bool(tuned["special_tokens"]),
            target_modules=[_text(name) for name in tuned["target_modules"]],
            training=_typed(Training, tuned["training"]),
            stop=tested.get("stop", trial.model.stop),
        )
        changed = dataclasses.replace(
            study,
            threads=_whole(tuned["threads"]),
            profile=_PROFILE,
            profiles={_PROFILE: _randomness(study.randomness, tuned, tested)},
            optimizers=_optimizers(tuned["optimizer"], trial),
            quantisation=_typed(Quantisation, tuned["quantisation"]),
            precision=dataclasses.replace(
                study.precision,
                compute=_text(tuned["compute"]),
                merged=_text(merged.get("merged", study.precision.merged)),
            ),
            lora=_typed(Lora, tuned["lora"]),
            generation=_typed(Generation, tested["generation"]) if tested else study.generation,
            evaluation=_evaluation(study.evaluation, tested),
            data=study.data | {model.data: _data(study, model, tuned, tested)},
            models={trial.model_name: model},
            ablation=None,  # what is repeated with fresh seeds differs by design
            keep_merged=False,
        )
    except (KeyError, ValueError, TypeError) as error:
        what = f"no setting {error}" if isinstance(error, KeyError) else _first_line(error)
        raise MissingError(
            f"{trial.record('finetune')}: not settings of a trial ({what}); it cannot be run again from them"
        ) from None
    return Trial(changed, trial.model_name, trial.optimizer, trial.number, runs)


def missing_inputs(trial: Trial, records: Mapping[Stage, Record], cache: Path) -> list[str]:
    """Which of the recorded base model and data are not in the cache as they were, in words."""
    study, model, inputs = trial.study, trial.model, records["finetune"].inputs
    facts = (
        ("base model", model.base, "base", base_folder(study, model.base, cache).name, base_digest),
        ("data", model.data, "data", data_folder(study, model.data, cache).name, data_digest),
    )
    found = []
    for what, name, key, source, digest in facts:
        recorded, today = inputs.get(key), digest(study, name, cache)
        if inputs.get(f"{key}_source") not in (None, source):
            found.append(f"the study file names another {what} {name} than the trial was run with")
        elif today is None:
            found.append(f"{what} {name} is not fetched")
        elif recorded != today:
            found.append(
                f"{what} {name} here has digest {today[:12]}, where {str(recorded)[:12]} is recorded"
            )
    return found


def _randomness(now: Randomness, tuned: dict[str, Any], tested: dict[str, Any]) -> Randomness:
    names = ("split", "adapter_init", "data_order", "dropout", "kernels")
    settings = {name: tuned[name] for name in names}
    generation = tested.get("generation_seed", _plain(now)["generation"])
    found: Randomness = _typed(
        Randomness, settings | {"generation": generation, "nudge": tuned.get("nudge", False)}
    )
    return found


def _optimizers(recorded: Any, trial: Trial) -> list[Any]:
    if recorded != trial.optimizer:
        raise ValueError(f"optimizer is {recorded!r:.60}, in a record of {trial.name}")
    return [recorded]


def _evaluation(now: Evaluation, tested: dict[str, Any]) -> Evaluation:
    if not tested:
        return now
    return dataclasses.replace(now, examples=tested["examples"], batch_size=_whole(tested["batch_size"]))


def _data(study: Study, model: Model, tuned: dict[str, Any], tested: dict[str, Any]) -> Any:
    data = study.data[model.data]
    return dataclasses.replace(
        data,
        prompts=[_text(prompt) for prompt in tuned["prompts"]],
        test_share=tuned["test_share"],
        max_rows=tuned["max_rows"],
        max_new_tokens=tested.get("max_new_tokens", data.max_new_tokens),
    )


def _typed(kind: type, content: Any) -> Any:
    return TypeAdapter(kind).validate_json(json.dumps(content))


def _plain(settings: Any) -> dict[str, Any]:
    plain: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return plain


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is not a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.60} is not a whole number")
    return value


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
