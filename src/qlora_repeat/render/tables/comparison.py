"""Tables C1, C2, C3, C10 and C11: compare a study with the paper, or with another study, arm by arm."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from qlora_repeat.errors import UsageError
from qlora_repeat.render.footnotes import (
    NOTES,
    diverged,
    missing,
    source_of,
    stale,
    stale_bases,
    study_names,
)
from qlora_repeat.render.tables.paper_tables import SECONDS, TASKS, is_share_of_gpu, share_percent
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, base_perplexities, distinct
from qlora_repeat.results.number_format import DASH, DEVIATION_NOTE, cell, mean, median, statistic
from qlora_repeat.study.study import PUBLISHED

_AVERAGES = {"mean": mean, "median": median}


@dataclass(frozen=True)
class Comparison:
    """The arms of a task that two results have in common, or of all tasks."""

    here: str
    """The name of this study."""
    there: str
    """The name of what it is compared with."""
    pairs: list[tuple[Arm, Arm]]
    """Arms of this study, each with its match."""
    alone: list[Arm]
    """Arms of this study that have no match."""

    @property
    def sides(self) -> dict[str, list[Arm]]:
        """The arms of each side by its name; each arm once, since several may have the same match."""
        ours, theirs = zip(*self.pairs, strict=True)
        return {
            name: list({arm.key: arm for arm in arms}.values())
            for name, arms in ((self.here, ours), (self.there, theirs))
        }

    def notes(self, make: Callable[[list[Arm]], list[str]]) -> list[str]:
        """Return the notes on each side, with its name."""
        return [f"{name}: {note}" for name, arms in self.sides.items() for note in make(arms)]


ComparedRow = tuple[str, Arm, Arm, Callable[[Arm], list[float]]]
"""The name of a row, an arm and its match, and what is measured."""


def comparison_tables(ours: list[Arm], theirs: list[Arm]) -> list[Table]:
    """Make the tables that compare arms with others of the same task and optimizer.

    Models match if they are the same, or else if they have the same counterpart in the paper; a model
    without a counterpart is its own counterpart.

    Raises:
        UsageError: no arm has a match; names the models of both.
    """
    here, there = (study_names(arms) or "an empty file" for arms in (ours, theirs))

    def compare(arms: list[Arm]) -> Comparison:
        return Comparison(
            here=here,
            there=f"the other {there}" if there == here else there,
            pairs=[(arm, match) for arm in arms for match in _matches(arm, theirs)],
            alone=[arm for arm in arms if not _matches(arm, theirs)],
        )

    whole = compare(ours)
    if not whole.pairs:
        raise UsageError(f"no arm in common: {here} has {_arms(ours)}; {there} has {_arms(theirs)}")
    tables = []
    for task, (perplexity, seconds) in TASKS.items():
        own = compare([arm for arm in ours if arm.task == task])
        if own.pairs:
            tables += [_perplexity(f"C{perplexity}", task, own), _seconds(f"C{seconds}", task, own)]
    if all(map(is_share_of_gpu, whole.sides.values())):
        tables.append(_memory(whole))
    return sorted(tables, key=lambda table: table.name)


def _matches(arm: Arm, others: list[Arm]) -> list[Arm]:
    alike = [other for other in others if (other.task, other.optimizer) == (arm.task, arm.optimizer)]
    same = [other for other in alike if other.model == arm.model]
    return same or [other for other in alike if other.counterpart == arm.counterpart]


def _perplexity(number: str, task: str, compared: Comparison) -> Table:
    """Make Table C1 or C2: the fine-tuned models, then their bases."""
    models = {(ours.model, theirs.model): (ours, theirs) for ours, theirs in compared.pairs}
    notes = [
        NOTES["C"]["base"],
        *compared.notes(diverged),
        *compared.notes(stale_bases),
    ]
    caption = f"Perplexity of the fine-tuned {task} models, and of their bases"
    rows = _rows(compared.pairs, "{}", lambda arm: arm.perplexities)
    base = _rows(models.values(), "base", lambda arm: base_perplexities([arm]))
    return _table(number, caption, compared, rows, base, notes, ("mean", "SD", "median", "n"))


def _memory(compared: Comparison) -> Table:
    """Make Table C3."""
    caption = "Peak GPU memory while fine-tuning, in percent of the GPU's"
    rows = _rows(compared.pairs, "{}", _shares)
    return _table("C3", caption, compared, rows, [], _on_the_paper(compared, "memory"))


def _shares(arm: Arm) -> list[float]:
    shares = arm.values(share_percent)
    return shares[:1] if arm.trials[0].study == PUBLISHED else shares


def _seconds(number: str, task: str, compared: Comparison) -> Table:
    """Make Table C10 or C11: seconds to fine-tune, then to test."""
    train, test = (
        _rows(compared.pairs, f"{{}}, {name}", partial(Arm.values, measure=measure))
        for name, measure in SECONDS.items()
    )
    notes = _on_the_paper(compared, "seconds")
    caption = f"Seconds to fine-tune (train) and to test, {task} models"
    return _table(number, caption, compared, train, test, notes)


def _on_the_paper(compared: Comparison, topic: str) -> list[str]:
    return [NOTES["C"][topic]] if PUBLISHED in compared.sides else []


def _rows(
    pairs: Iterable[tuple[Arm, Arm]], what: str, measure: Callable[[Arm], list[float]]
) -> list[ComparedRow]:
    """Return a row for each pair; its name has the optimizer where `what` has braces."""
    return [(f"{ours.title}, {what.format(ours.heading)}", ours, theirs, measure) for ours, theirs in pairs]


def _table(
    number: str,
    caption: str,
    compared: Comparison,
    rows: list[ComparedRow],
    more: list[ComparedRow],
    notes: list[str],
    statistics: tuple[str, ...] = ("mean", "SD", "n"),
) -> Table:
    has_titles = any(ours.title != theirs.title for ours, theirs in compared.pairs)
    cells = []
    for _, ours, theirs, measure in rows + more:
        values = {compared.here: measure(ours), compared.there: measure(theirs)}
        own = {("compared with", "model"): theirs.title} if has_titles else {}
        own |= {(side, name): statistic(name, found) for side, found in values.items() for name in statistics}
        averages = [(name, _AVERAGES[name]) for name in statistics if name in _AVERAGES]
        own |= {("ratio", name): _ratio(average, *values.values()) for name, average in averages}
        cells.append(own)
    named = [[name, *own.values()] for (name, *_), own in zip(rows + more, cells, strict=True)]
    alone = [f"Without a match in {compared.there}: {_arms(compared.alone)}."] if compared.alone else []
    return Table(
        number=number,
        caption=f"{caption}: {compared.here} compared with {compared.there}.",
        source=" Compared with: ".join(map(source_of, compared.sides.values())),
        stub="Arm",
        columns=list(cells[0]),
        rows=named[: len(rows)],
        summary=named[len(rows) :],
        notes=[
            f"ratio: {compared.here} / {compared.there}. {DEVIATION_NOTE}",
            *notes,
            *compared.notes(stale),
            *_stand_ins(compared.pairs),
            *(
                note
                for name, arms in compared.sides.items()
                for note in missing(arms, begin=f"Not in {name}'s numbers:")
            ),
            *alone,
        ],
    )


def _ratio(average: Callable[[list[float]], float | None], ours: list[float], theirs: list[float]) -> str:
    above, below = average(ours), average(theirs)
    return DASH if above is None or not below else cell(above / below)


def _stand_ins(pairs: list[tuple[Arm, Arm]]) -> list[str]:
    """Note the models that are compared with a model that they stand in for."""
    unlike = distinct(
        f"{ours.title} with {theirs.title}"
        for ours, theirs in pairs
        if ours.model != theirs.model or any(trial.miniature for trial in ours.trials + theirs.trials)
    )
    return [NOTES["C"]["stand_ins"].format(models="; ".join(unlike))] if unlike else []


def _arms(arms: list[Arm]) -> str:
    """Return the models with their optimizers, and what they stand in for."""
    described: dict[str, list[str]] = {}
    for arm in arms:
        stands = "" if arm.counterpart == arm.model else f" for {arm.counterpart}"
        described.setdefault(f"{arm.model}{stands}", []).append(arm.heading)
    return ", ".join(f"{name} ({', '.join(optimizers)})" for name, optimizers in described.items()) or "none"
