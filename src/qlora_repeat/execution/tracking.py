"""Show the steps of a trial in a tracker such as TensorBoard while it runs: ``--track``.

accelerate's trackers do the work. A tracker changes no bits: it gets values that the trace has, draws nothing
from a trial's random streams, and its time does not count as training. Its name is in the environment, where
all processes of a study find it; it is no input of a stage.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

from qlora_repeat.errors import UsageError
from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.records.trace import Step
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.environment import environment_kept
from qlora_repeat.system.printable import one_line, say

TRACKER = "QLORA_REPEAT_TRACK"
"""The variable with the name of the tracker."""
TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")
"""The trackers, each with the name of its package."""
SHOWN = ("loss", "learning_rate", "gradient_norm")
"""The values of a step that a tracker gets."""


def choose_tracker(name: str) -> None:
    """Track the fine-tunings of this process and of its child processes.

    Raises:
        UsageError: there is no such tracker, or its package is not installed; says how to install it.
    """
    if name not in TRACKERS:
        raise UsageError(f"--track {name}: expected {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        python = shlex.quote(sys.executable)
        raise UsageError(f"--track {name} needs the package {name}: run `{python} -m pip install {name}`")
    os.environ[TRACKER] = name


@contextlib.contextmanager
def tracked(trial: Trial) -> Iterator[Callable[[Step], None] | None]:
    """Yield a function that sends a step to the chosen tracker; None if none is chosen.

    If the tracker fails, the trial continues without it, after one warning.
    """
    name = os.environ.get(TRACKER)
    if not name:
        yield None
        return
    started: list[Any] = []
    failed = False

    def guarded(act: Callable[[], None]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            with environment_kept(but=f"{name.upper()}_.*"):
                act()
        except Exception as error:
            failed = True
            what = one_line(f"{type(error).__name__}: {error}")
            say(f"{trial.name}: {name} failed ({what}); the trial continues without it", error=True)

    def watch(step: Step) -> None:
        if not started:  # not before: accelerate must first have been set up for training
            started.append(_start(name, trial))
        values = {key: value for key in SHOWN if (value := getattr(step, key)) is not None}
        started[0].log(values, step=step.step)

    try:
        yield lambda step: guarded(lambda: watch(step))
    finally:
        if started:
            guarded(started[0].finish)


def _start(name: str, trial: Trial) -> Any:
    """Start a tracker for a trial: its name, and the settings of its fine-tuning."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project, folder = trial.study.label, str(trial.folder / "tracking")
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "", "logging_dir": folder},
        "trackio": {"run_name": project, "name": trial.name},
        "mlflow": {"experiment_name": project, "run_name": trial.name},
        "wandb": {"run_name": project, "name": trial.name, "dir": str(trial.folder)},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
    tracker.start()
    tracker.store_init_configuration({"trial": trial.name, **_flat(stage_settings(trial, "finetune"))})
    return tracker


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings with dots in their keys; lists become text."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            flat[above + key] = value if plain else json.dumps(value)
    return flat
