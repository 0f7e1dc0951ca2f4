"""What a stage loaded is freed when it ends, so that the next one has its memory."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.assets import base_models, derived_cache
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.stages import finetune
from qlora_repeat.study.trial import Stage
from qlora_repeat.study.workspace import Workspace


class Loaded:
    """Weak references to models, with their modules and weights, and to trainers."""

    def __init__(self) -> None:
        self.references: list[tuple[str, weakref.ref[Any]]] = []

    def watch(self, thing: Any) -> Any:
        self.references.append((type(thing).__name__, weakref.ref(thing)))
        return thing

    def watch_model(self, model: Any) -> Any:
        for part in [*model.modules(), *model.parameters()]:
            self.watch(part)
        return model

    @property
    def alive(self) -> list[str]:
        return [name for name, reference in self.references if reference() is not None]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loaded]:
    """Watch every model and trainer; only the kit collects garbage."""
    found, make, load = Loaded(), finetune.make_trainer, base_models.load_model

    def watched_trainer(trial: Any, model: Any, *rest: Any) -> Any:
        return found.watch(make(trial, found.watch_model(model), *rest))

    monkeypatch.setattr(finetune, "make_trainer", watched_trainer)
    for module in (base_models, derived_cache):
        monkeypatch.setattr(
            module, "load_model", lambda *given, **more: found.watch_model(load(*given, **more))
        )
    gc.disable()
    yield found
    gc.enable()


@pytest.fixture(params=["false", "true"], ids=["", "gradient-checkpointing"])
def workspace(request: pytest.FixtureRequest, cache: Path, tmp_path: Path) -> Workspace:
    checkpointing = f"gradient_checkpointing = {request.param}"
    study = write_study(tmp_path, ("gradient_checkpointing = false", checkpointing))
    return at(study, tmp_path / "runs", cache)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "adamw-32bit"])
def test_model_and_trainer_are_freed_after_fine_tuning(
    optimizer: str, workspace: Workspace, loaded: Loaded
) -> None:
    during: list[int] = []

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        during.append(len(loaded.alive))

    run_trial(workspace.trial(f"tiny-neox/{optimizer}/1"), ["finetune"], progress)
    assert "TracingTrainer" in dict(loaded.references)
    assert during[-1] > 50
    assert loaded.alive == []


def test_a_trainer_does_not_wait_for_garbage_collection(
    workspace: Workspace, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)
    run_trial(workspace.trial("tiny-neox/adamw-32bit/1"), ["finetune"], quiet)
    assert "TracingTrainer" in dict(loaded.references)
    assert "TracingTrainer" not in loaded.alive


def test_a_model_is_freed_after_each_test(cache: Path, tmp_path: Path, loaded: Loaded) -> None:
    workspace = at(write_study(tmp_path), tmp_path / "runs", cache)
    stages: list[list[Stage]] = [["finetune"], ["merge", "evaluate"], ["time"]]
    for each in stages:
        run_trial(workspace.trial("tiny-neox/adamw-32bit/1"), each, quiet)
        assert loaded.references
        assert loaded.alive == []
        loaded.references.clear()
    run_base_test(workspace.base_tests("tiny-neox")[0], quiet)
    assert loaded.references
    assert loaded.alive == []
