"""Some of a study's trials: those of some arms, or the first few of each arm."""

from collections.abc import Collection
from dataclasses import dataclass

from qlora_repeat.errors import UsageError
from qlora_repeat.study.trial import BaseTest, Trial
from qlora_repeat.study.workspace import Workspace


@dataclass(frozen=True)
class Selection:
    """The trials of a study to run; no result depends on it."""

    trials: list[Trial]
    base_tests: list[BaseTest]
    """Tests of the models of these trials, at most as many as trials of an arm."""
    left_out: int
    """The number of the study's other trials."""

    @property
    def models(self) -> list[str]:
        """Return the models of the trials, in the study's order."""
        return list(dict.fromkeys(trial.model_name for trial in self.trials))


def select(workspace: Workspace, only: Collection[str] = (), trials: int | None = None) -> Selection:
    """Return the trials of some arms (default: all), up to a number of each (default: all).

    Args:
        only: arms as ``model/optimizer``, or models.
        trials: the highest number of a trial, and of a test of a base.

    Raises:
        UsageError: the study has no such arm, or fewer trials.
    """
    study = workspace.study
    if trials is not None and not 1 <= trials <= study.trials:
        raise UsageError(f"--trials {trials}: study {study.name} has {study.trials} trials of each arm")
    arms = {arm for given in only for arm in _arms(workspace, given)}
    every = workspace.trials()
    chosen = [each for each in every if not arms or (each.model_name, each.optimizer) in arms]
    tests = workspace.base_tests(*dict.fromkeys(each.model_name for each in chosen))
    if trials is not None:
        chosen = [each for each in chosen if all(one.number <= trials for one in each.sources or [each])]
        tests = [each for each in tests if each.number <= trials]
    return Selection(chosen, tests, len(every) - len(chosen))


def _arms(workspace: Workspace, given: str) -> list[tuple[str, str]]:
    """Return the models and optimizers that a name stands for."""
    study = workspace.study
    model, slash, optimizer = given.strip("/").partition("/")
    optimizers = [optimizer] if slash else list(study.arms)
    if model not in study.models or not set(optimizers) <= study.arms.keys():
        raise UsageError(
            f"--only {given}: expected MODEL or MODEL/OPTIMIZER; study {study.name} has the models "
            f"{', '.join(study.models)} and the optimizers {', '.join(study.arms)}"
        )
    return [(model, each) for each in optimizers]
