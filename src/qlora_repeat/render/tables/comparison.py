"""Tables C1, C2, C3, C10 and C11: a study's numbers beside the paper's, or another study's, arm by arm."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from qlora_repeat.errors import UsageError
from qlora_repeat.render.tables.paper_tables import SECONDS, TASKS, diverged, is_share_of_gpu, share_percent
from qlora_repeat.render.tables.table import Column, Table, count_lacking
from qlora_repeat.results.arms import (
    Arm,
    base_perplexities,
    distinct,
    group_arms,
    source_of,
    stale,
    stale_bases,
)
from qlora_repeat.results.number_format import DASH, DEVIATION_NOTE, mean, median, number, statistic
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED

_AVERAGES = {"mean": mean, "median": median}


@dataclass(frozen=True)
class Pair:
    """An arm of this study, and the one that it is compared with."""

    ours: Arm
    theirs: Arm


@dataclass(frozen=True)
class Comparison:
    """The arms of a task that two results have in common, or of all tasks."""

    here: str
    """The name of this study."""
    there: str
    """The name of what it is compared with."""
    pairs: list[Pair]
    alone: list[Arm]
    """Arms of this study that have no match."""

    @property
    def ours(self) -> list[Arm]:
        return _once(pair.ours for pair in self.pairs)

    @property
    def theirs(self) -> list[Arm]:
        return _once(pair.theirs for pair in self.pairs)


@dataclass(frozen=True)
class Row:
    """What was measured on both sides."""

    name: str
    model: str
    """The title of the other side's model."""
    ours: list[float]
    theirs: list[float]


def comparison_tables(results: list[TrialResult], others: list[TrialResult]) -> list[Table]:
    """The tables that set `results` beside `others`, for arms of the same task and optimizer.

    Models match if they are the same, or else if they have the same counterpart in the paper; one without a
    counterpart is its own.

    Raises:
        UsageError: no arm has a match; names the models of both. Or two rows are of the same trial.
    """
    ours, theirs = group_arms(results), group_arms(others)
    here, there = _label(results), _label(others)
    pairs = [Pair(arm, match) for arm in ours for match in _matches(arm, theirs)]
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
    if is_share_of_gpu(whole.ours) and is_share_of_gpu(whole.theirs):
        tables.append(_memory(whole))
    return sorted(tables, key=lambda table: table.name)


def _matches(arm: Arm, others: list[Arm]) -> list[Arm]:
    alike = [other for other in others if (other.task, other.optimizer) == (arm.task, arm.optimizer)]
    same = [other for other in alike if other.model == arm.model]
    return same or [other for other in alike if _counterpart(other) == _counterpart(arm)]


def _counterpart(arm: Arm) -> str:
    return arm.trials[0].counterpart or arm.model


def _perplexity(table: str, task: str, compared: Comparison) -> Table:
    """Table C1 or C2: of the fine-tuned models, then of their bases."""
    rows = [
        _row(pair, pair.ours.optimizer, lambda arm: arm.values(lambda trial: trial.perplexity))
        for pair in compared.pairs
    ]
    models = {(pair.ours.model, pair.theirs.model): pair for pair in compared.pairs}
    base = [_row(pair, "base", lambda arm: base_perplexities([arm])) for pair in models.values()]
    notes = [
        "base: the model before fine-tuning; n counts the processes that measured it.",
        *(f"{compared.here}: {note}" for note in diverged(compared.ours)),
        *(f"{compared.there}: {note}" for note in diverged(compared.theirs)),
        *(f"{compared.here}: {note}" for note in stale_bases(compared.ours)),
        *(f"{compared.there}: {note}" for note in stale_bases(compared.theirs)),
    ]
    caption = f"Perplexity of the fine-tuned {task} models, and of their bases"
    return _table(table, caption, compared, rows, base, notes, ("mean", "SD", "median", "n"))


def _memory(compared: Comparison) -> Table:
    """Table C3."""
    rows = [_row(pair, pair.ours.optimizer, _shares) for pair in compared.pairs]
    notes = []
    if PUBLISHED in (compared.here, compared.there):
        notes.append(
            "The paper has one value for each model and optimizer, and does not say whether it is a peak."
        )
    return _table(
        "C3", "Peak GPU memory while fine-tuning, in percent of the GPU's", compared, rows, [], notes
    )


def _shares(arm: Arm) -> list[float]:
    shares = arm.values(share_percent)
    return shares[:1] if arm.trials[0].study == PUBLISHED else shares


def _seconds(table: str, task: str, compared: Comparison) -> Table:
    """Table C10 or C11: to fine-tune, then to test."""
    train, test = (
        [
            _row(pair, f"{pair.ours.optimizer}, {name}", partial(Arm.values, measure=measure))
            for pair in compared.pairs
        ]
        for name, measure in SECONDS.items()
    )
    notes = []
    if PUBLISHED in (compared.here, compared.there):
        notes.append("The paper does not say what its test time covers.")
    return _table(
        table, f"Seconds to fine-tune (train) and to test, {task} models", compared, train, test, notes
    )


def _row(pair: Pair, what: str, measured: Callable[[Arm], list[float]]) -> Row:
    return Row(f"{pair.ours.title}, {what}", pair.theirs.title, measured(pair.ours), measured(pair.theirs))


def _table(
    number: str,
    caption: str,
    compared: Comparison,
    rows: list[Row],
    more: list[Row],
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
    return Table(
        number=number,
        caption=f"{caption}: {compared.here} beside {compared.there}.",
        source=f"{source_of(compared.ours)} Beside it: {source_of(compared.theirs)}",
        stub="Arm",
        columns=[
            *([("compared with", "model")] if titled else []),
            *((side, name) for side in (compared.here, compared.there) for name in statistics),
            *(("ratio", name) for name in averages),
        ],
        rows=cells[: len(rows)],
        summary=cells[len(rows) :],
        notes=[
            f"ratio: {compared.here} / {compared.there}. {DEVIATION_NOTE}",
            *notes,
            *(f"{compared.here}: {note}" for note in stale(compared.ours)),
            *(f"{compared.there}: {note}" for note in stale(compared.theirs)),
            *_stand_ins(compared),
            *_lacking(compared.here, compared.ours),
            *_lacking(compared.there, compared.theirs),
            *_alone(compared),
        ],
    )


def _ratio(average: str, row: Row) -> str:
    ours, theirs = _AVERAGES[average](row.ours), _AVERAGES[average](row.theirs)
    return DASH if ours is None or not theirs else number(ours / theirs) or DASH


def _stand_ins(compared: Comparison) -> list[str]:
    """A note, where a model is compared with one that it stands in for."""
    unlike = distinct(
        f"{pair.ours.title} with {pair.theirs.title}"
        for pair in compared.pairs
        if pair.ours.model != pair.theirs.model
        or any(trial.miniature for trial in (*pair.ours.trials, *pair.theirs.trials))
    )
    if not unlike:
        return []
    return [
        f"Different models are compared, of which one stands in for the other: {'; '.join(unlike)}. Their "
        "ratios do not say whether results agree."
    ]


def _lacking(side: str, arms: list[Arm]) -> list[str]:
    """A note of the trials that are not done."""
    lacking = count_lacking([Column((), arm, lambda trial: trial.status) for arm in arms])
    return [f"Not in {side}'s numbers: {lacking}."] if lacking else []


def _once(arms: Iterable[Arm]) -> list[Arm]:
    """Each arm once: several may have the same match."""
    return list({(arm.model, arm.optimizer): arm for arm in arms}.values())


def _alone(compared: Comparison) -> list[str]:
    return [f"Without a match in {compared.there}: {_arms(compared.alone)}."] if compared.alone else []


def _arms(arms: list[Arm]) -> str:
    """The models with their optimizers, and what they stand in for."""
    described: dict[str, list[str]] = {}
    for arm in arms:
        counterpart = _counterpart(arm)
        stands = "" if counterpart == arm.model else f" for {counterpart}"
        described.setdefault(f"{arm.model}{stands}", []).append(arm.optimizer)
    return ", ".join(f"{name} ({', '.join(optimizers)})" for name, optimizers in described.items()) or "none"


def _label(results: Iterable[TrialResult]) -> str:
    return ", ".join(distinct(result.study for result in results)) or "an empty file"
