"""Estimate how long an attribution experiment takes, from records of trials that have run here."""

import statistics
from collections.abc import Iterable

from qlora_repeat.analysis.attribution.experiment import STAGES, Experiment, conditions
from qlora_repeat.errors import MissingError
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.study.trial import Trial


def trial_seconds(experiment: Experiment) -> float | None:
    """Return the mean seconds of a trial's stages; None if no trial of the model has a record of each.

    Those of the experiment count or, before there are any, those of the study, whose evaluation is longer.
    """
    own = (trial for condition in conditions(experiment) for trial in condition.trials)
    others = (trial for trial in experiment.workspace.trials() if trial.model_name == experiment.model)
    return _mean(own) or _mean(others)


def _mean(trials: Iterable[Trial]) -> float | None:
    known = [seconds for trial in trials if (seconds := _seconds(trial)) is not None]
    return statistics.fmean(known) if known else None


def _seconds(trial: Trial) -> float | None:
    try:
        records = [valid_record(trial.record(stage)) for stage in STAGES]
    except MissingError:  # `status` names it
        return None
    seconds = [record.seconds for record in records if record is not None]
    return sum(seconds) if len(seconds) == len(STAGES) else None
