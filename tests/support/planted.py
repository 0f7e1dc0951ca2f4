"""Faults for the self-test to find, planted in the processes that it starts."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from qlora_repeat.analysis import step_rerun
from qlora_repeat.execution.jobs import BaseTestJob
from qlora_repeat.selftest.jobs import ChangedTrial
from qlora_repeat.selftest.processes import planned_peaks
from qlora_repeat.study.trial import Progress
from qlora_repeat.study.workspace import Workspace


@contextlib.contextmanager
def noisy_operator() -> Iterator[None]:
    """Let every linear layer of a model add its own noise to its output for a batch of texts."""
    import torch
    from torch.nn.modules.module import register_module_forward_hook

    def add_noise(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(module, torch.nn.Linear) and output.dim() > 2:
            return torch.add(output, 1e-6 * secrets.randbelow(1000))
        return output

    hook = register_module_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def scaler_not_restored() -> Iterator[None]:
    """Let a resumed fine-tuning begin with a new loss scaler."""
    from qlora_repeat.stages.trainer import TracingTrainer

    restore = TracingTrainer.restore

    def forget(trainer: Any, checkpoint: Any) -> None:
        restore(trainer, replace(checkpoint, scaler=None))

    with patch.object(TracingTrainer, "restore", forget):
        yield


@contextlib.contextmanager
def merged_twice() -> Iterator[None]:
    """Let merging add twice the adapter, and not notice it."""
    from qlora_repeat.stages import merge, merge_check

    read = merge.adapter_config

    def doubled(adapter: Any) -> Any:
        found = read(adapter)
        return {**found, "lora_alpha": 2 * found["lora_alpha"]}

    unnoticed: dict[str, Any] = {}
    with (
        patch.object(merge, "adapter_config", doubled),
        patch.object(merge_check, "check_merged", lambda *given: unnoticed),
    ):
        yield


def planned_with_another_activation(workspace: Workspace) -> dict[str, Any]:
    """Plan as if GPT-NeoX had an activation that keeps more tensors, or fewer."""
    from qlora_repeat.planning import memory_estimate

    planned = memory_estimate.model_config

    def other(architecture: Any, name: str) -> Any:
        activation = "gelu" if architecture.get("hidden_act") == "gelu_fast" else "gelu_fast"
        return planned({**architecture, "hidden_act": activation}, name)

    with patch.object(memory_estimate, "model_config", other):
        return planned_peaks(workspace)


FAULTS = {each.__name__: each for each in (noisy_operator, scaler_not_restored, merged_twice)}


@dataclass(frozen=True)
class FaultyTrial(ChangedTrial):
    fault: str = ""

    def run(self, progress: Progress) -> None:
        with FAULTS[self.fault]():
            super().run(progress)


class NoisyStep(step_rerun._StepJob):
    def run(self, progress: Progress) -> None:
        with noisy_operator():
            super().run(progress)


class NoisyBaseTest(BaseTestJob):
    def run(self, progress: Progress) -> None:
        with noisy_operator():
            super().run(progress)
