"""Arms and trials of a study, and every path that belongs to one."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import Data
from qlora_repeat.study.study import Model, Study

Stage = Literal["finetune", "merge", "evaluate", "time"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Trial:
    """One independent fine-tuning of an arm (a model and an optimizer), with the paths of what it leaves."""

    study: Study
    model_name: str
    optimizer: str
    number: int
    """From 1."""
    runs: Path

    @property
    def name(self) -> str:
        return f"{self.model_name}/{self.optimizer}/{self.number}"

    @property
    def model(self) -> Model:
        return self.study.models[self.model_name]

    @property
    def data(self) -> Data:
        return self.study.data[self.model.data]

    @functools.cached_property
    def folder(self) -> Path:
        return study_folder(self.study, self.runs) / self.model_name / self.optimizer / f"trial-{self.number}"

    @property
    def repeats_responses(self) -> bool:
        """Whether its evaluation has section IX's repeated tests: the first trial of an arm has."""
        return self.number == 1 and self.study.ablation is not None

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"

    @property
    def unfinished(self) -> Path:
        """What a fine-tuning in progress keeps."""
        return self.folder / "unfinished"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def failure(self) -> Path:
        return self.folder / "failed.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock.json"

    def record(self, stage: Stage) -> Path:
        return self.folder / f"{stage}.json"


def study_folder(study: Study, runs: Path) -> Path:
    """The folder of all that a study leaves."""
    return runs / study.label


def base_record(study: Study, model_name: str, number: int, runs: Path) -> Path:
    """The record of a test of a model's base, before any fine-tuning; tests are numbered from 1."""
    return study_folder(study, runs) / model_name / "base" / f"test-{number}.json"


def base_lock(study: Study, model_name: str, number: int, runs: Path) -> Path:
    """What the process holds that does such a test."""
    return base_record(study, model_name, number, runs).with_name(f"lock-{number}.json")


def base_tests(study: Study) -> range:
    """The numbers of the tests of each base: one, or as many as section IX has."""
    return range(1, 1 + (study.ablation.base_tests if study.ablation else 1))


def results_path(study: Study, runs: Path) -> Path:
    """The file of a study's collected results."""
    return study_folder(study, runs) / "results.jsonl"


def statistics_path(study: Study, runs: Path) -> Path:
    """The file of the statistics of a study's collected results."""
    return study_folder(study, runs) / "statistics.json"


def all_trials(study: Study, runs: Path) -> list[Trial]:
    """Every trial that the study asks for, in its order: model, optimizer, number."""
    return [
        Trial(study, model, optimizer, number, runs)
        for model in study.models
        for optimizer in study.optimizers
        for number in range(1, study.trials + 1)
    ]


def find_trial(study: Study, name: str, runs: Path) -> Trial:
    """The trial of that name, ``model/optimizer/number``.

    Raises:
        UsageError: the study has no such trial; says which part is wrong and what there is.
    """
    parts = name.strip("/").split("/")
    if len(parts) != 3:
        raise UsageError(
            f"trial {name!r}: a trial is named model/optimizer/number, such as {_example(study)}"
        )
    model, optimizer, number = parts
    if model not in study.models:
        raise UsageError(f"trial {name!r}: study {study.name} has the models {', '.join(study.models)}")
    if optimizer not in study.optimizers:
        raise UsageError(
            f"trial {name!r}: study {study.name} has the optimizers {', '.join(study.optimizers)}"
        )
    if not number.isdecimal() or len(number) > 9 or not 1 <= int(number) <= study.trials:
        raise UsageError(f"trial {name!r}: study {study.name} numbers its trials 1 to {study.trials}")
    return Trial(study, model, optimizer, int(number), runs)


def _example(study: Study) -> str:
    return f"{next(iter(study.models))}/{study.optimizers[0]}/1"


def cache_folder() -> Path:
    """Where models and data are kept: $QLORA_REPEAT_CACHE, or qlora-repeat in the user's cache folder."""
    if given := os.environ.get("QLORA_REPEAT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora-repeat"
