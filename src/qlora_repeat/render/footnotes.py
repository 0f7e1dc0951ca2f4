"""What is said below tables and figures: where rows come from, which values lack, are stale or diverged."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.number_format import DASH
from qlora_repeat.results.published import CITATION
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED


def source_of(arms: Sequence[Arm]) -> str:
    """Say where the rows come from: the paper, or study, randomness, devices, first to last day, software."""
    trials = [trial for arm in arms for trial in arm.trials]
    done = [trial for arm in arms for trial in arm.done]
    studies = distinct(trial.study for trial in trials)
    if studies == [PUBLISHED]:
        return f"Numbers printed in {CITATION}."
    facts = {
        "Study": studies,
        "Randomness": distinct(trial.randomness for trial in trials if trial.randomness is not None),
        "Device": distinct(trial.device for trial in done if trial.device),
        "Finished (UTC)": first_to_last_day(trial.finished for trial in done if trial.finished),
        "Software": distinct(trial.software for trial in done if trial.software),
    }
    return source_text({name: "; ".join(found) for name, found in facts.items()})


def study_names(arms: Iterable[Arm]) -> str:
    """Return the studies that the arms are of."""
    return ", ".join(distinct(trial.study for arm in arms for trial in arm.trials))


def source_text(facts: dict[str, str]) -> str:
    """Write facts, each with its name, as a line; without those that are not known."""
    return " ".join(f"{name}: {value}." for name, value in facts.items() if value)


def first_to_last_day(times: Iterable[str]) -> list[str]:
    """Return the first and the last day of ISO 8601 times, as a text; none of none."""
    days = sorted(time[:10] for time in times)
    return [" to ".join(distinct([days[0], days[-1]]))] if days else []


def stale(arms: Iterable[Arm], uses: Callable[[TrialResult], bool] = lambda trial: True) -> list[str]:
    """Note the trials that a table `uses` whose values are not of today's settings."""
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
    """Note the base models whose values are not of today's settings."""
    titles: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        if changes := arm.trials[0].stale_base_inputs:  # all trials of a model have the same
            titles[", ".join(changes)].append(f"{arm.title} before fine-tuning")
    return [_not_of_today(changes, distinct(found)) for changes, found in titles.items()]


def _not_of_today(changes: str, what: list[str]) -> str:
    return f"Not of today's settings (changed since: {changes}): {'; '.join(what)}."


def diverged(arms: Iterable[Arm]) -> list[str]:
    """Note the trials whose loss or perplexity is not finite."""
    found = []
    for arm in arms:
        for trial in arm.done:
            if trial.diverged_at is not None:
                found.append(f"{arm.name} run {trial.trial} (from step {trial.diverged_at})")
            elif trial.perplexity is not None and not math.isfinite(trial.perplexity):
                found.append(f"{arm.name} run {trial.trial}")
    return [f"Diverged, and kept in mean and SD: {'; '.join(found)}."] if found else []


def missing(
    arms: Sequence[Arm],
    has: Callable[[TrialResult], object] = lambda trial: True,
    begin: str = f"No value ({DASH}) from",
) -> list[str]:
    """Note how many trials of the arms lack a value, and why; `has` returns None where a done one does."""
    runs = sorted({trial.trial for arm in arms for trial in arm.trials})
    reasons: Counter[str] = Counter()
    for arm in arms:
        own = {trial.trial: trial for trial in arm.trials}
        for trial in map(own.get, runs):
            if trial is None or not trial.measured:
                reasons[trial.status if trial else "missing"] += 1
            elif has(trial) is None:
                reasons[f"{trial.status}, but without this value"] += 1
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return [f"{begin} {reasons.total()} of {len(arms) * len(runs)} trials: {counted}."] if reasons else []


def dash_note(rows: Iterable[Iterable[str]], meaning: str) -> list[str]:
    """Note what a dash means, where there is one."""
    return [f"{DASH}: {meaning}."] if any(DASH in row for row in rows) else []
