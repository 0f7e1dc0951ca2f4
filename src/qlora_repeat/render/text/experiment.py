"""What an attribution experiment would run, and how long that takes, as text."""

import math
from collections.abc import Collection, Sequence

from tabulate import tabulate

from qlora_repeat.analysis.attribution.experiment import Condition, Experiment
from qlora_repeat.analysis.attribution.measurements import BASELINE, JOINT, NUDGE, OTHER, REPEAT
from qlora_repeat.render.text.layout import prose
from qlora_repeat.study.trial import Trial

_MEANINGS = {
    BASELINE: "every source has its first level; all other conditions are compared with it",
    REPEAT: "the baseline's first trial again, which must give the same bits",
    JOINT: "every source that is freed has its second level, all at once",
    NUDGE: "the baseline, but one weight of the initial adapter is moved by one unit in the last place, the "
    "least possible change: how far this goes shows how much training amplifies anything",
    OTHER: "the baseline with the other precision of optimizer state",
}
"""What a condition is, by its name; the others free the sources that they are named after."""


def experiment_text(
    experiment: Experiment,
    conditions: Sequence[Condition],
    open_trials: Collection[Trial],
    seconds: float | None,
    workers: int,
    *,
    rough: bool = False,
) -> str:
    """Return the conditions, what they mean, and the time for `open_trials` if one takes `seconds`.

    The seconds are `rough` if none wmeasured here.
    """
    rows = []
    for condition in conditions:
        freed = ", ".join(condition.freed) or "nothing"
        missing = sum(trial in open_trials for trial in condition.trials)
        rows.append((condition.name, freed, condition.trials[0].optimizer, len(condition.trials), missing))
    rows.append(("total", "", "", sum(row[3] for row in rows), sum(row[4] for row in rows)))
    table = tabulate(rows, headers=["condition", "freed", "optimizer", "trials", "to run"])
    arm = f"{experiment.study.label}: {experiment.model}/{experiment.optimizer}"
    levels = (
        "In each replicate, every source has two levels, such as two seeds. A freed source has its second "
        "level, and the others keep their first."
    )
    named = [condition.name for condition in conditions if condition.name in _MEANINGS]
    meanings = [prose(f"{name}: {_MEANINGS[name]}.") for name in named]
    parts = [f"{arm}, in {experiment.runs}", _time(experiment, len(open_trials), seconds, workers, rough)]
    return "\n\n".join([*parts[:1], prose(levels), "\n".join(meanings), *parts[1:], table])


def _time(experiment: Experiment, missing: int, seconds: float | None, workers: int, rough: bool) -> str:
    if not missing:
        return "Every trial is done."
    if seconds is None:
        name = f"{experiment.model}/{experiment.optimizer}/1"
        command = experiment.workspace.command("trial", trial=name)
        return (
            f"Time: not known before a trial of {experiment.model} has run here; run one with `{command}`, "
            f"and multiply its time by {math.ceil(missing / workers)} ({missing}, {workers} at a time)."
        )
    whole, one = (_duration(each) for each in (seconds * math.ceil(missing / workers), seconds))
    if rough:
        return (
            f"Time: more than {whole} ({missing} fine-tunings of {one} by the size of the model, {workers} "
            "at a time, and their tests); after one trial this is more exact."
        )
    return f"Time: about {whole} ({missing} trials of {one}, {workers} at a time), as measured here."


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
