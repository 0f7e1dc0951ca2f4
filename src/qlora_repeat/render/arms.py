"""Arms of collected results: the trials of one model and optimizer, and where they come from."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qlora_repeat.errors import UsageError
from qlora_repeat.published import CITATION
from qlora_repeat.results import TrialResult
from qlora_repeat.study import PUBLISHED

Measure = Callable[[TrialResult], float | None]


@dataclass(frozen=True)
class Arm:
    """The trials of one model and optimizer."""

    model: str
    title: str
    optimizer: str
    """As in the paper's headings: ``8-bit``."""
    trials: list[TrialResult]

    @property
    def done(self) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.status == "done"]

    @property
    def task(self) -> str:
        return self.trials[0].task

    def values(self, measure: Measure) -> list[float]:
        """What was measured in the trials that are done."""
        return values(self.done, measure)


def group_arms(results: Sequence[TrialResult]) -> list[Arm]:
    """The results by model and optimizer, in their order; models of the same title are told apart.

    Raises:
        UsageError: two rows are of the same trial.
    """
    trials: dict[tuple[str, str], list[TrialResult]] = defaultdict(list)
    for result in results:
        trials[result.model, result.optimizer].append(result)
    for (model, optimizer), own in trials.items():
        number, count = Counter(trial.trial for trial in own).most_common(1)[0]
        if count > 1:
            raise UsageError(f"collected results: {count} rows are of trial {model}/{optimizer}/{number}")
    titles = {model: own[0].model_title for (model, _), own in trials.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return [
        Arm(
            model,
            f"{titles[model]} ({model})" if titles[model] in shared else titles[model],
            re.sub(r"^adamw-(\d+)bit$", r"\1-bit", optimizer),
            own,
        )
        for (model, optimizer), own in trials.items()
    ]


def by_model(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """The arms of each model."""
    models: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        models[arm.model].append(arm)
    return models


def source_of(arms: list[Arm]) -> str:
    """Where the rows come from: the paper, or study, devices, first to last day, software."""
    done = [trial for arm in arms for trial in arm.done]
    studies = distinct(trial.study for arm in arms for trial in arm.trials)
    if studies == [PUBLISHED]:
        return f"Numbers printed in {CITATION}."
    days = sorted(distinct(trial.finished[:10] for trial in done if trial.finished))
    facts = {
        "Study": studies,
        "Device": distinct(trial.device for trial in done if trial.device),
        "Finished (UTC)": [" to ".join(distinct([days[0], days[-1]]))] if days else [],
        "Software": distinct(trial.software for trial in done if trial.software),
    }
    return " ".join(f"{name}: {'; '.join(found)}." for name, found in facts.items() if found)


def base_perplexities(arms: Iterable[Arm]) -> list[float]:
    """The perplexity of a model before fine-tuning, from each process that measured it."""
    trials = [trial for arm in arms for trial in arm.trials]
    tests = [trial.base_perplexities for trial in trials if trial.base_perplexities]
    return tests[0] if tests else values(trials, lambda trial: trial.base_perplexity)[:1]


def values(trials: Iterable[TrialResult], measure: Measure) -> list[float]:
    """What was measured, without the trials that lack it."""
    return [value for value in map(measure, trials) if value is not None]


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in order."""
    return list(dict.fromkeys(texts))
