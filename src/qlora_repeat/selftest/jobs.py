"""Jobs of the self-test: trials that are changed or measured, and functions in a new process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qlora_repeat.execution.device import prepare
from qlora_repeat.execution.jobs import TrialJob
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Progress
from qlora_repeat.system.determinism import WORKSPACE
from qlora_repeat.system.files import read_json, write_json
from qlora_repeat.system.gpus import check_device


@dataclass(frozen=True)
class ChangedTrial(TrialJob):
    """Stages of a trial in a process that is changed or measured."""

    until_step: int | None = None
    skips: bool = False
    """Whether a loss scaler begins so high that it skips steps, also on a CPU."""
    fills: bool = False
    """Whether torch fills each new tensor, as it does with deterministic kernels unless told otherwise."""
    measures: str = ""
    """What to measure: ``memory``, ``steps`` or, with a profile, ``time``."""

    @property
    def measured(self) -> Path:
        """The file with what was measured."""
        return self.trial.folder / "measured.json"

    def run(self, progress: Progress) -> None:
        """Run in this process; raises as `run_trial`."""
        prepare_for(self.trial.study)
        from qlora_repeat.selftest.measures import memory_of, steps_of, time_of

        measures = {"memory": memory_of, "steps": steps_of, "time": time_of}
        with contextlib.ExitStack() as stack:
            if self.skips:
                stack.enter_context(_skipping_scaler())
            watched, found = progress, None
            if self.measures:
                watched, found = stack.enter_context(measures[self.measures](progress))
            run_trial(
                self.trial, self.stages, self._filling(watched), force=self.force, until_step=self.until_step
            )
        if found is not None:
            write_json(self.measured, found)

    def _filling(self, progress: Progress) -> Progress:
        def told(*values: Any) -> None:
            if self.fills:  # each stage sets its kernels before it first reports
                import torch

                torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
            progress(*values)

        return told


@contextlib.contextmanager
def _skipping_scaler() -> Iterator[None]:
    """Give fine-tunings of this process a loss scaler whose first scales overflow float16."""
    import torch

    from qlora_repeat.assets.base_models import device
    from qlora_repeat.stages import finetune

    make = finetune.make_trainer

    def with_scaler(*arguments: Any) -> Any:
        trainer = make(*arguments)
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler(
            device().partition(":")[0], init_scale=2.0**30, backoff_factor=2.0**-9, growth_interval=2
        )
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return trainer

    with patch.object(finetune, "make_trainer", with_scaler):
        yield


@dataclass(frozen=True)
class Call:
    """A function that returns what can be written as JSON, in a new process."""

    name: str
    folder: Path
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()

    @property
    def kind(self) -> tuple[str, bool]:
        return self.name, False

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name.replace(' ', '-')}.log"

    def run(self, progress: Progress) -> None:
        """Call the function, and write what it returns.

        Raises:
            NoGpuError: the pool gave a GPU, and this process cannot use it.
        """
        check_device("auto")
        progress(self.name, 0, 1, None)
        write_json(self.log.with_suffix(".json"), self.function(*self.arguments))

    def failed(self, error: str) -> None:
        pass

    def result(self) -> dict[str, Any]:
        """Return what the function returned."""
        found: dict[str, Any] = read_json(self.log.with_suffix(".json"), "run the self-test again")
        return found


def prepare_for(study: Study) -> None:
    """Prepare this process for a study; with default kernels, also remove what deterministic ones need.

    Call it before a library is imported that uses a device.
    """
    if study.randomness.kernels == "default":
        os.environ.pop(WORKSPACE, None)
    prepare(study)
