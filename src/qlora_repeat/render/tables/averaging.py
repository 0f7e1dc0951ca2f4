"""Table S9: trials beside averages of their adapters: how much spread is left, and at which perplexity."""

from collections.abc import Sequence

from qlora_repeat.render.footnotes import NOTES, dash_note, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.averages import Averages, Remaining, averages, remaining
from qlora_repeat.results.number_format import (
    DASH,
    cell,
    interval_text,
    rounded,
    share_text,
    spread_text,
    value_text,
)
from qlora_repeat.results.statistical_methods import FEWEST, summarize
from qlora_repeat.results.study_statistics import worse_than_base_share

_HEADINGS = [
    ("perplexity", "runs"),
    ("perplexity", "median"),
    ("perplexity", "SD"),
    ("perplexity", "worse than base"),
    ("spread / that of the trials", "ratio"),
    ("spread / that of the trials", "95 % interval"),
    ("spread / that of the trials", "Holm"),
    ("shift", "median"),
    ("shift", "95 % interval"),
]


def averaging_tables(arms: Sequence[Arm]) -> list[Table]:
    """Make Table S9 if an arm has averages with results; otherwise nothing."""
    found = averages(arms)
    if not found:
        return []
    rows = []
    for source in {each.source.key: each.source for each in found}.values():
        rows.append([source.name, *_outcome(source), *[DASH] * 5])
        rows += [
            [each.arm.name, *_outcome(each.arm), *_against(each)] for each in found if each.source is source
        ]
    used = [arm for arm in arms if arm.name in {row[0] for row in rows}]
    notes = NOTES["S9"]
    return [
        Table(
            number="S9",
            caption="Perplexity of trials, and of averages of their adapters.",
            source=source_of(used),
            stub="Arm",
            columns=list(_HEADINGS),
            rows=rows,
            notes=[
                notes["averages"],
                notes["columns"],
                *map(remaining_text, remaining(found)),
                *stale(used),
                *stale_bases(used),
                *not_done(used),
                *dash_note(rows, f"not an average, or too few values; spread and test need {FEWEST}"),
            ],
        )
    ]


def not_done(used: Sequence[Arm]) -> list[str]:
    """Note the trials and averages that lack values; arms of averages have fewer of them."""
    kinds = dict.fromkeys(arm.optimizer.average for arm in used)
    groups = [[arm for arm in used if arm.optimizer.average == kind] for kind in kinds]
    return distinct(note for own in groups for note in missing(own, lambda trial: trial.perplexity))


def remaining_text(found: Remaining) -> str:
    """Return a sentence on the spread that averages of one kind leave."""
    kind, count = (
        found.average.replace("-", " ").replace("last", "mean of the last"),
        found.average.removeprefix("mean-of-"),
    )
    expected = (
        f"; of {count} independent outcomes, a mean has 1 / √{count} = {int(count) ** -0.5:.2f}"
        if count.isdecimal()
        else ""
    )
    return (
        f"The {kind} leaves {found.ratio:.2f} of the spread (root mean square of the SDs of log perplexity "
        f"over the arms{expected}); averages spread less in {found.smaller} of {found.arms} arms."
    )


def _outcome(arm: Arm) -> list[str]:
    found = summarize(arm.perplexities)
    return [
        str(len(arm.done)),
        value_text(found.median, found.sd),
        spread_text(found.sd),
        share_text(worse_than_base_share(arm.done)),
    ]


def _against(found: Averages) -> list[str]:
    few = len(found.arm.perplexities) < FEWEST  # so few values say nothing of their spread
    test, shift = None if few else found.spread, found.shift
    return [
        spread_text(test.ratio) if test else DASH,
        interval_text(spread_text(test.low), spread_text(test.high)) if test else DASH,
        cell(found.p_holm),
        rounded(shift.value) if shift else DASH,
        DASH if shift is None or shift.low is None else f"{rounded(shift.low)} to {rounded(shift.high)}",
    ]
