"""Tables C1, C2, C3, C10 and C11: compare a study with the paper, or with another study, arm by arm."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from qlora_repeat.errors import UsageError
from qlora_repeat.render.footnotes import diverged, missing, source_of, stale, stale_bases, study_names
from qlora_repeat.render.tables.paper_tables import SECONDS, TASKS, is_share_of_gpu, share_percent
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, base_perplexities, distinct
from qlora_repeat.results.number_format import DASH, DEVIATION_NOTE, cell, mean, median, statistic
from qlora_repeat.study.study import PUBLISHED

_AVERAGES = {"mean": mean, "median": median}


@dataclass(frozen=True)
class MatchedArms:
    """An arm of this study and the arm that it is compared with."""

    ours: Arm
    theirs: Arm


@dataclass(frozen=True)
class Comparison:
    """The arms of a task that two results have in common, or of all tasks."""

    here: str
    """The name of this study."""
    there: str
    """The name of what it is compared with."""
    pairs: list[MatchedArms]
    alone: list[Arm]
    """Arms of this study that have no match."""

    @property
    def sides(self) -> dict[str, list[Arm]]:
        """The arms of each side by its name; each arm once, since several may have the same match."""
        ours, theirs = (pair.ours for pair in self.pairs), (pair.theirs for pair in self.pairs)
        return {
            name: list({arm.key: arm for arm in arms}.values())
            for name, arms in ((self.here, ours), (self.there, theirs))
        }

    def notes(self, make: Callable[[list[Arm]], list[str]]) -> list[str]:
        """Return the notes on each side, with its name."""
        return [f"{name}: {note}" for name, arms in self.sides.items() for note in make(arms)]


@dataclass(frozen=True)
class ComparedRow:
    """Measured values of both sides."""

    name: str
    model: str
    """The title of the other side's model."""
    ours: list[float]
    theirs: list[float]


def comparison_tables(ours: list[Arm], theirs: list[Arm]) -> list[Table]:
    """Make the tables that compare arms with others of the same task and optimizer.

    Models match if they are the same, or else if they have the same counterpart in the paper; a model
    without a counterpart is its own counterpart.

    Raises:
        UsageError: no arm has a match; names the models of both.
    """
    here, there = (study_names(arms) or "an empty file" for arms in (ours, theirs))
    pairs = [MatchedArms(arm, match) for arm in ours for match in _matches(arm, theirs)]
    if not pairs:
        raise UsageError(f"no arm in common: {here} has {_arms(ours)}; {there} has {_arms(theirs)}")
    whole = Comparison(
        here=here,
        there=f"the other {there}" if there == here else there,
        pairs=pairs,
        alone=[arm for arm in ours if not _matches(arm, theirs)],
    )
    tables = []
    for task, (perplexity, seconds) in TASKS.items():
        own = replace(
            whole,
            pairs=[pair for pair in pairs if pair.ours.task == task],
            alone=[arm for arm in whole.alone if arm.task == task],
        )
        if own.pairs:
            tables += [_perplexity(f"C{perplexity}", task, own), _seconds(f"C{seconds}", task, own)]
    if all(map(is_share_of_gpu, whole.sides.values())):
        tables.append(_memory(whole))
    return sorted(tables, key=lambda table: table.name)


def _matches(arm: Arm, others: list[Arm]) -> list[Arm]:
    alike = [other for other in others if (other.task, other.optimizer) == (arm.task, arm.optimizer)]
    same = [other for other in alike if other.model == arm.model]
    return same or [other for other in alike if other.counterpart == arm.counterpart]


def _perplexity(table: str, task: str, compared: Comparison) -> Table:
    """Make Table C1 or C2: the fine-tuned models, then their bases."""
    rows = [_row(pair, pair.ours.heading, lambda arm: arm.perplexities) for pair in compared.pairs]
    models = {(pair.ours.model, pair.theirs.model): pair for pair in compared.pairs}
    base = [_row(pair, "base", lambda arm: base_perplexities([arm])) for pair in models.values()]
    notes = [
        "base: the model before fine-tuning; n counts the processes that measured it.",
        *compared.notes(diverged),
        *compared.notes(stale_bases),
    ]
    caption = f"Perplexity of the fine-tuned {task} models, and of their bases"
    return _table(table, caption, compared, rows, base, notes, ("mean", "SD", "median", "n"))


def _memory(compared: Comparison) -> Table:
    """Make Table C3."""
    rows = [_row(pair, pair.ours.heading, _shares) for pair in compared.pairs]
    note = "The paper has one value for each model and optimizer, and does not say whether it is a peak."
    caption = "Peak GPU memory while fine-tuning, in percent of the GPU's"
    return _table("C3", caption, compared, rows, [], _on_the_paper(compared, note))


def _shares(arm: Arm) -> list[float]:
    shares = arm.values(share_percent)
    return shares[:1] if arm.trials[0].study == PUBLISHED else shares


def _seconds(table: str, task: str, compared: Comparison) -> Table:
    """Make Table C10 or C11: seconds to fine-tune, then to test."""
    train, test = (
        [
            _row(pair, f"{pair.ours.heading}, {name}", partial(Arm.values, measure=measure))
            for pair in compared.pairs
        ]
        for name, measure in SECONDS.items()
    )
    notes = _on_the_paper(compared, "The paper does not say what its test time covers.")
    caption = f"Seconds to fine-tune (train) and to test, {task} models"
    return _table(table, caption, compared, train, test, notes)


def _on_the_paper(compared: Comparison, note: str) -> list[str]:
    return [note] if PUBLISHED in compared.sides else []


def _row(pair: MatchedArms, what: str, measured: Callable[[Arm], list[float]]) -> ComparedRow:
    return ComparedRow(
        f"{pair.ours.title}, {what}", pair.theirs.title, measured(pair.ours), measured(pair.theirs)
    )


def _table(
    number: str,
    caption: str,
    compared: Comparison,
    rows: list[ComparedRow],
    more: list[ComparedRow],
    notes: list[str],
    statistics: tuple[str, ...] = ("mean", "SD", "n"),
) -> Table:
    averages = [name for name in statistics if name in _AVERAGES]
    titled = any(pair.ours.title != pair.theirs.title for pair in compared.pairs)
    cells = [
        [
            row.name,
            *([row.model] if titled else []),
            *(statistic(name, values) for values in (row.ours, row.theirs) for name in statistics),
            *(_ratio(name, row) for name in averages),
        ]
        for row in rows + more
    ]
    ours, theirs = compared.sides.values()
    alone = [f"Without a match in {compared.there}: {_arms(compared.alone)}."] if compared.alone else []
    return Table(
        number=number,
        caption=f"{caption}: {compared.here} compared with {compared.there}.",
        source=f"{source_of(ours)} Compared with: {source_of(theirs)}",
        stub="Arm",
        columns=[
            *([("compared with", "model")] if titled else []),
            *((side, name) for side in compared.sides for name in statistics),
            *(("ratio", name) for name in averages),
        ],
        rows=cells[: len(rows)],
        summary=cells[len(rows) :],
        notes=[
            f"ratio: {compared.here} / {compared.there}. {DEVIATION_NOTE}",
            *notes,
            *compared.notes(stale),
            *_stand_ins(compared),
            *(
                note
                for name, arms in compared.sides.items()
                for note in missing(arms, begin=f"Not in {name}'s numbers:")
            ),
            *alone,
        ],
    )


def _ratio(average: str, row: ComparedRow) -> str:
    ours, theirs = _AVERAGES[average](row.ours), _AVERAGES[average](row.theirs)
    return DASH if ours is None or not theirs else cell(ours / theirs)


def _stand_ins(compared: Comparison) -> list[str]:
    """Note the models that are compared with a model that they stand in for."""
    unlike = distinct(
        f"{pair.ours.title} with {pair.theirs.title}"
        for pair in compared.pairs
        if pair.ours.model != pair.theirs.model
        or any(trial.miniature for trial in (*pair.ours.trials, *pair.theirs.trials))
    )
    if not unlike:
        return []
    return [
        f"Different models are compared, one as a stand-in for the other: {'; '.join(unlike)}. Their ratios "
        "do not show whether results agree."
    ]


def _arms(arms: list[Arm]) -> str:
    """Return the models with their optimizers, and what they stand in for."""
    described: dict[str, list[str]] = {}
    for arm in arms:
        stands = "" if arm.counterpart == arm.model else f" for {arm.counterpart}"
        described.setdefault(f"{arm.model}{stands}", []).append(arm.heading)
    return ", ".join(f"{name} ({', '.join(optimizers)})" for name, optimizers in described.items()) or "none"
