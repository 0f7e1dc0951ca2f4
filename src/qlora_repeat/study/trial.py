"""Trials of a study and tests of its bases, with the paths of their files."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from qlora_repeat.study.averaging import MEAN
from qlora_repeat.study.data_sources import Data
from qlora_repeat.study.study import Model, Study

if TYPE_CHECKING:
    from qlora_repeat.study.workspace import Workspace

Stage = Literal["finetune", "average", "merge", "evaluate", "time", "benchmark"]
ALL_STAGES: tuple[Stage, ...] = get_args(Stage)
STAGES: tuple[Stage, ...] = ("finetune", "merge", "evaluate", "time")
"""The stages of every trial that is trained; only studies that name benchmarks have another one."""

Progress = Callable[[str, int, int, float | None], None]
"""A callback for progress: stage, done, total, and the loss if there is one."""


@dataclass(frozen=True, repr=False)
class Trial:
    """One independent fine-tuning of an arm (a model and an optimizer), or an average of such."""

    workspace: "Workspace"
    model_name: str
    optimizer: str
    number: int
    """From 1."""

    def __repr__(self) -> str:
        return f"<Trial {self.name} of {self.study.label}>"

    @property
    def name(self) -> str:
        return f"{self.model_name}/{self.optimizer}/{self.number}"

    @property
    def study(self) -> Study:
        return self.workspace.study

    @property
    def model(self) -> Model:
        return self.study.models[self.model_name]

    @property
    def data(self) -> Data:
        return self.study.data[self.model.data]

    @functools.cached_property
    def folder(self) -> Path:
        return self.workspace.folder / self.model_name / self.optimizer / f"trial-{self.number}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that the study asks for: the first makes the adapter, the next one merges it."""
        benchmark: tuple[Stage, ...] = ("benchmark",) if self.study.evaluation.lm_eval else ()
        return (*self.measured_stages, *benchmark)

    @property
    def measured_stages(self) -> tuple[Stage, ...]:
        """The stages of every trial of its kind: all but benchmarks."""
        return ("average", *STAGES[1:]) if self.sources else STAGES

    @functools.cached_property
    def sources(self) -> list["Trial"]:
        """The trained trials that this one averages; none if it is trained itself."""
        trained, tilde, average = self.optimizer.partition("~")
        if not tilde:
            return []
        count = self.study.averaging.trials if average.startswith(MEAN) else None
        numbers = (
            [self.number] if count is None else range((self.number - 1) * count + 1, self.number * count + 1)
        )
        return [Trial(self.workspace, self.model_name, trained, number) for number in numbers]

    @property
    def averages_steps(self) -> bool:
        """Whether it averages the last steps of a trial, and not several trials."""
        return bool(self.sources) and not self.optimizer.partition("~")[2].startswith(MEAN)

    @property
    def repeats_responses(self) -> bool:
        """Whether its evaluation repeats responses (section IX), as for the first trial of each arm."""
        return self.number == 1 and self.study.ablation is not None and not self.sources

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def last_steps(self) -> Path:
        """The mean of the adapters after the last steps, if the study asks for it."""
        return self.folder / "last-steps"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl"

    @property
    def unfinished(self) -> Path:
        """The folder of an unfinished fine-tuning."""
        return self.folder / "unfinished"

    @property
    def first_steps(self) -> Path:
        """The record of a fine-tuning that ran only its first steps."""
        return self.folder / "first-steps.json"

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


@dataclass(frozen=True)
class BaseTest:
    """One test of a model's base, before any fine-tuning."""

    workspace: "Workspace"
    model_name: str
    number: int
    """From 1."""

    @property
    def name(self) -> str:
        return f"{self.model_name}/base/{self.number}"

    @property
    def record(self) -> Path:
        return self._folder / f"test-{self.number}.json"

    @property
    def lock(self) -> Path:
        return self._folder / f"lock-{self.number}.json"

    @property
    def log(self) -> Path:
        return self._folder / f"log-{self.number}.txt"

    @property
    def _folder(self) -> Path:
        return self.workspace.folder / self.model_name / "base"
