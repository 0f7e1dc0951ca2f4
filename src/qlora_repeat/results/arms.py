"""Group collected results into arms: the trials of one model and optimizer."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_repeat.errors import UsageError
from qlora_repeat.results.number_format import computable, decimals_of
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.optimizers import Optimizer
from qlora_repeat.study.study import PUBLISHED

Measure = Callable[[TrialResult], float | None]
ArmKey = tuple[str, str]
"""Model and optimizer, as studies name them."""


@dataclass(frozen=True)
class Arm:
    """The trials of one model and optimizer."""

    model: str
    title: str
    """The model's display name."""
    optimizer: Optimizer
    trials: list[TrialResult]

    @property
    def key(self) -> ArmKey:
        return self.model, self.optimizer.name

    @property
    def heading(self) -> str:
        """Return the optimizer as in the paper's headings: ``8-bit``."""
        return self.optimizer.heading

    @property
    def name(self) -> str:
        """Return the arm's display name."""
        return f"{self.title} {self.heading}"

    @property
    def done(self) -> list[TrialResult]:
        """Return the trials whose values count, including stale ones that were collected on request."""
        return [trial for trial in self.trials if trial.measured]

    @property
    def task(self) -> str:
        return self.trials[0].task

    @property
    def counterpart(self) -> str:
        """Return the paper's model that this one is compared with, or else the model itself."""
        return self.trials[0].counterpart or self.model

    @property
    def perplexities(self) -> list[float]:
        return self.values(lambda trial: trial.perplexity)

    @property
    def is_published(self) -> bool:
        """Whether these are the paper's numbers, which are shown as the paper prints them."""
        return all(trial.study == PUBLISHED for trial in self.trials)

    def decimals(self, measure: Measure) -> int:
        """Return the decimals that all values of a measure are shown with, at least; 0 for the paper's."""
        return 0 if self.is_published else decimals_of(self.values(measure))

    def by_seed(self, measure: Measure) -> dict[str, float]:
        """Return the values of a measure by the seed of the initial adapter; none if seeds are not unique."""
        found = [(trial.adapter_init_seed, measure(trial)) for trial in self.done]
        seeds = [seed for seed, value in found if value is not None]
        if None in seeds or len(set(seeds)) < len(seeds):
            return {}
        return {str(seed): value for seed, value in found if value is not None}

    def values(self, measure: Measure) -> list[float]:
        """Return the values of a measure in the trials that count, without trials that lack it."""
        return [value for value in map(measure, self.done) if value is not None]


def trained(arms: Iterable[Arm]) -> list[Arm]:
    """Return the arms whose trials are trained, and not averages of others."""
    return [arm for arm in arms if arm.optimizer.average is None]


def reference_arm(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """Return the arm of the same model to compare an arm with: that of `Optimizer.reference`.

    If there is none, it is the model's first arm without one. None for this arm itself.
    """
    own = {each.optimizer: each for each in arms if each.model == arm.model}
    own_reference = arm.optimizer.reference
    if own_reference in own and own_reference != arm.optimizer:
        return own[own_reference]
    first = next(
        (each for name, each in own.items() if name.reference not in own or name.reference == name), arm
    )
    return None if first.optimizer == arm.optimizer else first


MOST_OF_ARM, MOST_ARMS = 1000, 1000
"""The most trials of an arm, and the most arms; no study has more."""


def group_arms(results: Sequence[TrialResult], where: str = "collected results") -> list[Arm]:
    """Group results by model and optimizer, in their order; models that share a title get distinct titles.

    Raises:
        UsageError: two rows have the same trial; the message begins with `where`.
    """
    trials: dict[ArmKey, list[TrialResult]] = defaultdict(list)
    for result in results:
        trials[result.model, result.optimizer].append(_computable(result))
    for own in trials.values():
        name, count = Counter(trial.name for trial in own).most_common(1)[0]
        if count > 1:
            raise UsageError(f"{where}: trial {name} has {count} rows, expected one")
        if len(own) > MOST_OF_ARM:
            raise UsageError(
                f"{where}: {name.rpartition('/')[0]} has {len(own)} trials; at most {MOST_OF_ARM}"
            )
    if len(trials) > MOST_ARMS:
        raise UsageError(f"{where}: {len(trials)} models and optimizers; at most {MOST_ARMS}")
    titles = {model: own[0].model_title for (model, _), own in trials.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    return [
        Arm(
            model,
            f"{titles[model]} ({model})" if titles[model] in shared else titles[model],
            Optimizer.parse(optimizer),
            own,
        )
        for (model, optimizer), own in trials.items()
    ]


def _computable(result: TrialResult) -> TrialResult:
    """Return the result with `computable` numbers."""
    changed = {
        name: _numbers(value) for name, value in vars(result).items() if isinstance(value, float | list)
    }
    return replace(result, **changed)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return computable(value) if isinstance(value, float) else value


def by_model(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """Group the arms by model."""
    models: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        models[arm.model].append(arm)
    return models


def base_perplexities(arms: Iterable[Arm]) -> list[float]:
    """Return the base model's perplexity in each test."""
    trials = [trial for arm in arms for trial in arm.trials]
    tests = [trial.base_perplexities for trial in trials if trial.base_perplexities]
    single = [trial.base_perplexity for trial in trials if trial.base_perplexity is not None]
    return tests[0] if tests else single[:1]


def distinct_adapters(arms: Iterable[Arm]) -> list[str]:
    """Return a line for each arm with the number of distinct adapters."""
    return [f"{'/'.join(arm.key)}: {adapters_text(arm)}" for arm in arms]


def adapters_text(arm: Arm) -> str:
    """Return the number of an arm's distinct adapters, by digest, in words."""
    counts = Counter(trial.adapter_digest for trial in arm.done if trial.adapter_digest)
    trials, most = counts.total(), max(counts.values(), default=0)
    if len(counts) < 2:
        return (
            f"one adapter in all {trials} trials" if trials > 1 else "one adapter" if trials else "no adapter"
        )
    same = f"; {most} are the same" if most > 1 else ""
    return f"{len(counts)} different adapters in {trials} trials{same}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Return each text once, in order."""
    return list(dict.fromkeys(texts))
