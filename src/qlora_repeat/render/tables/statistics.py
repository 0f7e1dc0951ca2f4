"""Tables S1 and S1b: what the trials of each arm say together, and whether 8-bit arms spread more."""

from collections import Counter

from qlora_repeat.render.footnotes import dash_note, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.number_format import (
    DASH,
    cell,
    interval_text,
    share_interval,
    share_text,
    spread_text,
    value_text,
)
from qlora_repeat.results.statistical_methods import FEWEST, TRIALS_NEEDED, Summary
from qlora_repeat.results.study_statistics import SpreadComparison, StudyStatistics, study_statistics

_TITLES = {
    "perplexity": "perplexity",
    "final_loss": "final loss",
    "train_seconds": "seconds to fine-tune",
    "test_seconds": "seconds to test",
}
_RUNS = ("n", "diverged", "share diverged", "worse than base", "share worse")
_SUMMARY = ("mean", "SD", "SD, 95 %", "CV", "median", "MAD", "range")
_COMPARED = ("spread", "of 32-bit", "ratio", "95 % interval", "p", "Holm")
"""The headings of a panel."""


def statistics_tables(arms: list[Arm]) -> list[Table]:
    """Table S1, where an arm has two values to summarize; and S1b, where an 8-bit arm can be compared."""
    found = study_statistics(arms)
    tables = []
    if any(each.n + each.not_finite > 1 for arm in found.arms for each in arm.measures.values()):
        tables.append(_arms_table(arms, found))
    if found.comparisons:
        tables.append(_comparison_table(arms, found))
    return tables


def _arms_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Table S1: a row for each arm; a panel for the runs, and one for each measure."""
    measures = list(found.arms[0].measures)
    rows = [
        [
            arm.name,
            str(own.trials),
            *(text(own.diverged) for text in (share_text, share_interval)),
            *(text(own.worse_than_base) for text in (share_text, share_interval)),
            *(cell for name in measures for cell in _summary_cells(own.measures[name])),
        ]
        for arm, own in zip(arms, found.arms, strict=True)
    ]
    notes = [
        "n: runs whose values count. diverged: loss or perplexity not finite. worse than base: perplexity "
        "above the model's before fine-tuning. Shares are 95 % intervals, Wilson's.",
        "SD: sample standard deviation (n-1); SD, 95 %: its interval, Bonett's (2006). Simulated with seven "
        "values, it has the true SD in 97 % of cases for normal values, in 92 % with heavy tails (t, 3 "
        "degrees of freedom), in 99 % where four of seven runs collapse; but in 77 % for strongly skewed "
        "values, and in 65 % where one of seven collapses.",
        "CV: SD / mean. MAD: median distance from the median, not scaled.",
        *_exceptions(arms, found),
        *_shared_notes(arms),
        *stale_bases(arms),
        *dash_note(rows, f"not measured, or too few values: an SD needs 2, its interval {FEWEST}"),
    ]
    return Table(
        number="S1",
        caption="Statistics over the runs of each arm.",
        source=source_of(arms),
        stub="Arm",
        columns=[
            *(("runs", heading) for heading in _RUNS),
            *((_TITLES[name], heading) for name in measures for heading in _SUMMARY),
        ],
        rows=rows,
        notes=notes,
    )


def _summary_cells(summary: Summary) -> list[str]:
    """The cells under `_SUMMARY`."""
    sd = summary.sd
    return [
        value_text(summary.mean, sd),
        spread_text(sd),
        interval_text(spread_text(summary.sd_low), spread_text(summary.sd_high)),
        spread_text(summary.cv),
        value_text(summary.median, sd),
        spread_text(summary.mad),
        interval_text(value_text(summary.low, sd, of_sd=1), value_text(summary.high, sd, of_sd=1)),
    ]


def _exceptions(arms: list[Arm], found: StudyStatistics) -> list[str]:
    """Notes of the measures that have fewer finite values than there are runs."""
    fewer, some_not_finite = [], False
    for arm, own in zip(arms, found.arms, strict=True):
        for name, summary in own.measures.items():
            if summary.n < own.trials:
                others = f", and {summary.not_finite} not finite" if summary.not_finite else ""
                fewer.append(f"{arm.name} {_TITLES[name]}: {summary.n}{others}")
                some_not_finite |= summary.not_finite > 0
    notes = [f"Fewer values than runs: {'; '.join(fewer)}."] if fewer else []
    if some_not_finite:
        notes.append(
            "What is not finite is left out of mean, SD and CV, and is above all other values in median, MAD "
            "and range."
        )
    return notes


def _comparison_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Table S1b: a row for each 8-bit arm, a panel for each measure."""
    comparisons = {(each.model, each.optimizer, each.measure): each for each in found.comparisons}
    measures = distinct(each.measure for each in found.comparisons)
    compared = {(each.model, each.optimizer) for each in found.comparisons}
    references = {(each.model, each.reference) for each in found.comparisons}
    used = [arm for arm in arms if arm.key in compared | references]
    rows = [
        [
            arm.name,
            *(cell for name in measures for cell in _comparison_cells(comparisons.get((*arm.key, name)))),
        ]
        for arm in arms
        if arm.key in compared
    ]
    tested = Counter(each.measure for each in found.comparisons if each.p_holm is not None)
    notes = [
        "spread: mean distance of the values' natural logarithms from their median, without the smallest, "
        "which is 0 or a copy by construction. ratio: of this spread to that of the model's 32-bit arm; its "
        "interval has the ratios that the test does not reject at 5 %. p: two-sided, by permutation of the "
        f"distances. Holm: adjusted for the {max(tested.values(), default=0)} arms compared in a measure.",
        "Simulated with seven runs in each arm: of equal spread, p is at most 0.05 in 4 to 5 % of cases for "
        "normal, lognormal and heavy-tailed (t, 3 degrees of freedom) values, in 8 % where one run of seven "
        "collapses. A ratio of 3 is found in 47 % of cases, of 5 in 76 %, of 10 in 94 % (lognormal values). "
        "The least p that seven runs against seven can have is 0.0022.",
        f"Runs in each arm that find a ratio in four of five cases: {_needed()}.",
        *_left_out(used, found),
        *_shared_notes(used),
        *dash_note(rows, f"not measured, or no spread at all; a test needs {FEWEST} values in each arm"),
    ]
    return Table(
        number="S1b",
        caption="Spread of the runs with 8-bit states beside those with 32-bit states, on the log scale.",
        source=source_of(used),
        stub="Arm",
        columns=[(_TITLES[name], heading) for name in measures for heading in _COMPARED],
        rows=rows,
        notes=notes,
    )


def _comparison_cells(comparison: SpreadComparison | None) -> list[str]:
    """The cells under `_COMPARED`."""
    if comparison is None:
        return [DASH] * len(_COMPARED)
    test = comparison.test
    return [
        spread_text(test.spread),
        spread_text(test.other_spread),
        spread_text(test.ratio),
        interval_text(spread_text(test.low), spread_text(test.high)),
        cell(test.p),
        cell(comparison.p_holm),
    ]


def _left_out(arms: list[Arm], found: StudyStatistics) -> list[str]:
    """A note of the values that have no logarithm to compare."""
    summaries = {(own.model, own.optimizer): own.measures for own in found.arms}
    counts = [
        f"{arm.name} {_TITLES[name]} ({summary.not_finite})"
        for arm in arms
        for name, summary in summaries[arm.key].items()
        if summary.not_finite
    ]
    return [f"Left out, for they are not finite: {'; '.join(counts)}."] if counts else []


def _needed() -> str:
    """How many runs find which ratio, of one model and of four."""
    largest_first = sorted(TRIALS_NEEDED.items(), reverse=True)
    alone = [f"{own} for {ratio:g}" for ratio, (own, _) in largest_first]
    of_four = [str(more) for _, (_, more) in largest_first]
    return f"{', '.join(alone)}; as the least p of four, by Holm: {', '.join(of_four)}"


def _shared_notes(arms: list[Arm]) -> list[str]:
    return [*missing(arms, begin="Not in these numbers:"), *stale(arms)]
