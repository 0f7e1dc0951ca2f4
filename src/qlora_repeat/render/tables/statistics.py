"""Tables S1 and S1b: statistics of each arm, and whether 8-bit arms spread more."""

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
    """Make Table S1 if an arm has two values to summarize, and S1b if an 8-bit arm can be compared."""
    found = study_statistics(arms)
    tables = []
    if any(each.n + each.not_finite > 1 for arm in found.arms for each in arm.measures.values()):
        tables.append(_arms_table(arms, found))
    if found.comparisons:
        tables.append(_comparison_table(arms, found))
    return tables


def _arms_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Make Table S1: a row for each arm; a panel for the runs, and one for each measure."""
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
        "n: runs whose values count. diverged: loss or perplexity is not finite. worse than base: "
        "perplexity above that of the model before fine-tuning. Shares are Wilson's 95 % intervals.",
        "SD: sample standard deviation (n-1). SD, 95 %: Bonett's interval of the SD (2006). In simulations "
        "with seven values it contains the true SD in 97 % of cases for normal values, in 92 % with heavy "
        "tails (t, 3 degrees of freedom), in 99 % if four of seven runs collapse, but in 77 % for strongly "
        "skewed values and in 65 % if one of seven runs collapses.",
        "CV: SD / mean. MAD: median absolute distance from the median, not scaled.",
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
    """Return the cells under `_SUMMARY`."""
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
    """Note the measures that have fewer finite values than there are runs."""
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
            "Values that are not finite are left out of mean, SD and CV; in median, MAD and range they are "
            "larger than all others."
        )
    return notes


def _comparison_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Make Table S1b: a row for each 8-bit arm, a panel for each measure."""
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
        "spread: mean distance of the values' natural logarithms from their median, without the smallest "
        "distance, which is always 0 or a copy of another. ratio: the spread divided by the spread of the "
        "model's 32-bit arm; its interval contains the ratios that the test does not reject at 5 %. p: "
        "two-sided permutation test of the distances. Holm: p adjusted for the "
        f"{max(tested.values(), default=0)} arms compared in a measure.",
        "In simulations with seven runs in each arm and equal spread, p is at most 0.05 in 4 to 5 % of cases "
        "for normal, lognormal and heavy-tailed (t, 3 degrees of freedom) values, and in 8 % if one run of "
        "seven collapses. The test finds a ratio of 3 in 47 % of cases, of 5 in 76 %, of 10 in 94 % "
        "(lognormal values). The smallest possible p with seven runs in each arm is 0.0022.",
        f"Runs needed in each arm to find a ratio in four of five cases: {_needed()}.",
        *_left_out(used, found),
        *_shared_notes(used),
        *dash_note(rows, f"not measured, or no spread at all; a test needs {FEWEST} values in each arm"),
    ]
    return Table(
        number="S1b",
        caption="Spread of runs with 8-bit state compared with runs with 32-bit state, on the log scale.",
        source=source_of(used),
        stub="Arm",
        columns=[(_TITLES[name], heading) for name in measures for heading in _COMPARED],
        rows=rows,
        notes=notes,
    )


def _comparison_cells(comparison: SpreadComparison | None) -> list[str]:
    """Return the cells under `_COMPARED`."""
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
    """Note the values that have no finite logarithm to compare."""
    summaries = {(own.model, own.optimizer): own.measures for own in found.arms}
    counts = [
        f"{arm.name} {_TITLES[name]} ({summary.not_finite})"
        for arm in arms
        for name, summary in summaries[arm.key].items()
        if summary.not_finite
    ]
    return [f"Left out because they are not finite: {'; '.join(counts)}."] if counts else []


def _needed() -> str:
    """Return how many runs find which ratio, for one model and for four."""
    largest_first = sorted(TRIALS_NEEDED.items(), reverse=True)
    alone = [f"{own} for {ratio:g}" for ratio, (own, _) in largest_first]
    of_four = [str(more) for _, (_, more) in largest_first]
    return f"{', '.join(alone)}; as the smallest of four p values, by Holm: {', '.join(of_four)}"


def _shared_notes(arms: list[Arm]) -> list[str]:
    return [*missing(arms, begin="Not in these numbers:"), *stale(arms)]
