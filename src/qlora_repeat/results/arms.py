"""Arms of collected results: the trials of one model and optimizer, and where they come from."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qlora_repeat.errors import UsageError
from qlora_repeat.results.published import CITATION
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.stages.legacy_qmap import split_optimizer
from qlora_repeat.study.study import PUBLISHED

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
    def key(self) -> tuple[str, str]:
        """Model and optimizer, as studies name them."""
        return self.model, self.trials[0].optimizer

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.title} {self.optimizer}"

    @property
    def done(self) -> list[TrialResult]:
        """Those whose values count; also stale ones, where they were collected on request."""
        return [trial for trial in self.trials if trial.measured]

    @property
    def state_map(self) -> str | None:
        """The version whose map of 8-bit state its optimizer has, if not today's."""
        return split_optimizer(self.trials[0].optimizer)[1]

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
            _heading(optimizer),
            own,
        )
        for (model, optimizer), own in trials.items()
    ]


def _heading(optimizer: str) -> str:
    name, state_map = split_optimizer(optimizer)
    heading = re.sub(r"^adamw-(\d+)bit$", r"\1-bit", name)
    return f"{heading}, map of {state_map.replace('-', ' ')}" if state_map else heading


def by_model(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """The arms of each model."""
    models: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        models[arm.model].append(arm)
    return models


def source_of(arms: list[Arm]) -> str:
    """Where the rows come from: the paper, or study, randomness, devices, first to last day, software."""
    done = [trial for arm in arms for trial in arm.done]
    studies = distinct(trial.study for arm in arms for trial in arm.trials)
    if studies == [PUBLISHED]:
        return f"Numbers printed in {CITATION}."
    days = sorted(distinct(trial.finished[:10] for trial in done if trial.finished))
    facts = {
        "Study": studies,
        "Randomness": distinct(
            trial.randomness for arm in arms for trial in arm.trials if trial.randomness is not None
        ),
        "Device": distinct(trial.device for trial in done if trial.device),
        "Finished (UTC)": [" to ".join(distinct([days[0], days[-1]]))] if days else [],
        "Software": distinct(trial.software for trial in done if trial.software),
    }
    return " ".join(f"{name}: {'; '.join(found)}." for name, found in facts.items() if found)


def stale(arms: Iterable[Arm], uses: Callable[[TrialResult], bool] = lambda trial: True) -> list[str]:
    """Notes of the trials whose values are not of today's settings: those that a table `uses`."""
    runs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for trial in arm.done:
            if trial.stale_inputs and uses(trial):
                runs[", ".join(trial.stale_inputs)][arm.name].append(str(trial.trial))
    return [
        _not_of_today(changes, [f"{arm} run {', '.join(distinct(own))}" for arm, own in found.items()])
        for changes, found in runs.items()
    ]


def stale_bases(arms: Iterable[Arm]) -> list[str]:
    """Notes of the base models whose values are not of today's settings."""
    titles: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        for trial in arm.trials[:1]:  # all of a model have the same
            if trial.stale_base_inputs:
                titles[", ".join(trial.stale_base_inputs)].append(f"{arm.title} before fine-tuning")
    return [_not_of_today(changes, distinct(found)) for changes, found in titles.items()]


def _not_of_today(changes: str, what: list[str]) -> str:
    return f"Not of today's settings (changed since: {changes}): {'; '.join(what)}."


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
