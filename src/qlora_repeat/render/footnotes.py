"""Notes below tables and figures: sources, and missing, stale or diverged values."""

import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any

from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.number_format import DASH
from qlora_repeat.results.published import CITATION
from qlora_repeat.results.scope import cut_short, examples_tested
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED

NOTES: dict[str, dict[str, Any]] = tomllib.loads(
    (resources.files("qlora_repeat.render") / "notes.toml").read_text(encoding="utf-8")
)
"""Texts that do not depend on the results, by table."""


def source_of(arms: Sequence[Arm]) -> str:
    """Return where the rows come from: the paper, or study, randomness, devices, days and more."""
    trials = [trial for arm in arms for trial in arm.trials]
    done = [trial for arm in arms for trial in arm.done]
    studies = distinct(trial.study for trial in trials)
    if studies == [PUBLISHED]:
        return f"Numbers printed in {CITATION}."
    facts = {
        "Study": studies,
        "Cut short": list(filter(None, [cut_short(arms)])),
        "Test examples": list(filter(None, [examples_tested(arms)])),
        "Randomness": distinct(trial.randomness for trial in trials if trial.randomness is not None),
        "Device": distinct(trial.device for trial in done if trial.device),
        "Finished (UTC)": first_to_last_day(trial.finished for trial in done if trial.finished),
        "Software": distinct(trial.software for trial in done if trial.software),
    }
    return source_text({name: "; ".join(found) for name, found in facts.items()})


def study_names(arms: Iterable[Arm]) -> str:
    """Return the names of the arms' studies."""
    return ", ".join(distinct(trial.study for arm in arms for trial in arm.trials))


def source_text(facts: dict[str, str]) -> str:
    """Return named facts as a line, without empty ones."""
    return " ".join(f"{name}: {value}." for name, value in facts.items() if value)


def first_to_last_day(times: Iterable[str]) -> list[str]:
    """Return the first and last day of ISO 8601 times as one string; an empty list without times."""
    days = sorted(time[:10] for time in times)
    return [" to ".join(distinct([days[0], days[-1]]))] if days else []


def stale(arms: Iterable[Arm], uses: Callable[[TrialResult], bool] = lambda trial: True) -> list[str]:
    """Note the trials that a table `uses` and whose values come from other than the current settings."""
    runs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for trial in arm.done:
            if trial.stale_inputs and uses(trial):
                runs[", ".join(trial.stale_inputs)][arm.name].append(str(trial.trial))
    return [
        _stale_note(changes, [f"{arm} run {', '.join(distinct(own))}" for arm, own in found.items()])
        for changes, found in runs.items()
    ]


def stale_bases(arms: Iterable[Arm]) -> list[str]:
    """Note the base models whose values come from other than the current settings."""
    titles: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        if changes := arm.trials[0].stale_base_inputs:  # all trials of a model have the same
            titles[", ".join(changes)].append(f"{arm.title} before fine-tuning")
    return [_stale_note(changes, distinct(found)) for changes, found in titles.items()]


def _stale_note(changes: str, what: list[str]) -> str:
    return f"Stale (changed since: {changes}): {'; '.join(what)}."


def diverged(arms: Iterable[Arm]) -> list[str]:
    """Note the trials whose loss or perplexity is not finite."""
    found = [
        f"{arm.name} run {trial.trial}"
        + ("" if trial.diverged_at is None else f" (from step {trial.diverged_at})")
        for arm in arms
        for trial in arm.done
        if trial.diverged_at is not None or not math.isfinite(trial.perplexity or 0)
    ]
    return [f"Diverged, but included in mean and SD: {'; '.join(found)}."] if found else []


def missing(
    arms: Sequence[Arm],
    has: Callable[[TrialResult], object] = lambda trial: True,
    begin: str = f"No value ({DASH}) from",
) -> list[str]:
    """Note how many trials lack a value, and why; `has` returns None if a finished trial lacks it."""
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
    """Note the meaning of a dash, if there is one."""
    return [f"{DASH}: {meaning}."] if any(DASH in row for row in rows) else []
