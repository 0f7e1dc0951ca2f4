"""Tables S1 and S1b: statistics of each arm, and whether it spreads more than another of its model."""

from collections import Counter

from qlora_repeat.render.footnotes import NOTES, dash_note, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.number_format import (
    DASH,
    cell,
    interval_text,
    share_interval,
    share_text,
    spread_text,
    value_range,
    value_text,
)
from qlora_repeat.results.statistical_methods import FEWEST, TRIALS_NEEDED, Summary
from qlora_repeat.results.study_statistics import (
    SCORE_TITLES,
    ArmStatistics,
    StudyStatistics,
    scores_of_others,
    study_statistics,
)

_TITLES: dict[str, str] = {
    "perplexity": "perplexity",
    "final_loss": "final loss",
    "train_seconds": "seconds to fine-tune",
    "test_seconds": "seconds to test",
    **{str(name): title for name, title in SCORE_TITLES.items()},
}


def statistics_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S1 if an arm has two values to summarize, and S1b if two arms can be compared."""
    found = study_statistics(arms)
    tables = []
    if any(each.n + each.not_finite > 1 for arm in found.arms for each in arm.measures.values()):
        tables.append(_arms_table(arms, found))
    if found.comparisons:
        tables.append(_comparison_table(arms, found))
    return tables


def _arms_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Make Table S1: a row for each arm; a panel for the runs, and one for each measure."""
    cells = [_arm_cells(own, arm.is_published) for arm, own in zip(arms, found.arms, strict=True)]
    rows = [[arm.name, *own.values()] for arm, own in zip(arms, cells, strict=True)]
    notes = NOTES["S1"]
    return Table(
        number="S1",
        caption="Statistics over the runs of each arm.",
        source=source_of(arms),
        stub="Arm",
        columns=list(cells[0]),
        rows=rows,
        notes=[
            notes["runs"],
            notes["spread"],
            notes["others"],
            *_fewer_values(arms, found),
            *_shared_notes(arms),
            *stale_bases(arms),
            *dash_note(rows, f"not measured, or too few values: an SD needs 2, its interval {FEWEST}"),
        ],
    )


def _arm_cells(own: ArmStatistics, as_printed: bool) -> dict[tuple[str, ...], str]:
    """Return the cells of an arm by their headings."""
    cells: dict[tuple[str, ...], str] = {
        ("runs", "n"): str(own.trials),
        ("runs", "diverged"): share_text(own.diverged),
        ("runs", "share diverged"): share_interval(own.diverged),
        ("runs", "worse than base"): share_text(own.worse_than_base),
        ("runs", "share worse"): share_interval(own.worse_than_base),
    }
    for name, summary in own.measures.items():
        found = _summary_cells(summary, as_printed)
        cells |= {(_TITLES[name], heading): cell for heading, cell in found.items()}
    return cells


def _summary_cells(summary: Summary, as_printed: bool) -> dict[str, str]:
    sd = summary.sd
    return {
        "mean": value_text(summary.mean, sd, as_printed=as_printed),
        "SD": spread_text(sd),
        "SD, 95 %": interval_text(spread_text(summary.sd_low), spread_text(summary.sd_high)),
        "CV": spread_text(summary.cv),
        "median": value_text(summary.median, sd, as_printed=as_printed),
        "MAD": spread_text(summary.mad),
        "range": value_range(summary.low, summary.high, sd, as_printed=as_printed),
    }


def _fewer_values(arms: list[Arm], found: StudyStatistics) -> list[str]:
    """Note the measures that have fewer finite values than there are runs."""
    fewer = [
        (f"{arm.name} {_TITLES[name]}: {summary.n}", summary.not_finite)
        for arm, own in zip(arms, found.arms, strict=True)
        for name, summary in own.measures.items()
        if summary.n < own.trials and name not in scores_of_others(arm.task)
    ]
    if not fewer:
        return []
    named = (f"{what}, and {count} not finite" if count else what for what, count in fewer)
    return [
        f"Fewer values than runs: {'; '.join(named)}.",
        *([NOTES["S1"]["not_finite"]] if any(count for _, count in fewer) else []),
    ]


def _comparison_table(arms: list[Arm], found: StudyStatistics) -> Table:
    """Make Table S1b: a row for each arm that has a reference, a panel for each measure."""
    headings_of = {arm.key: arm.heading for arm in arms}
    titles = {
        (each.model, each.optimizer): f"{arm.name} / {headings_of[each.model, each.reference]}"
        for arm in arms
        for each in found.comparisons
        if arm.key == (each.model, each.optimizer)
    }
    measures = distinct(each.measure for each in found.comparisons)
    headings = ("spread", "of the other", "ratio", "95 % interval", "p", "Holm")
    cells: dict[str, dict[str, list[str]]] = {}
    for each in found.comparisons:
        test = each.test
        cells.setdefault(titles[each.model, each.optimizer], {})[each.measure] = [
            spread_text(test.spread),
            spread_text(test.other_spread),
            spread_text(test.ratio),
            interval_text(spread_text(test.low), spread_text(test.high)),
            cell(test.p),
            cell(each.p_holm),
        ]
    blank = [DASH] * len(headings)
    rows = [
        [name, *(text for measure in measures for text in cells[name].get(measure, blank))]
        for name in titles.values()
        if name in cells
    ]
    keys = {(each.model, name) for each in found.comparisons for name in (each.optimizer, each.reference)}
    used = [arm for arm in arms if arm.key in keys]
    tests = Counter(each.measure for each in found.comparisons if each.p_holm is not None)
    notes = NOTES["S1b"]
    return Table(
        number="S1b",
        caption="Spread of the runs of an arm compared with another arm of its model, on the log scale.",
        source=source_of(used),
        stub="Arm / other arm",
        columns=[(_TITLES[measure], heading) for measure in measures for heading in headings],
        rows=rows,
        notes=[
            notes["spread"].format(tests=max(tests.values(), default=0)),
            *([notes["pairs"]] if any(each.is_paired for each in found.comparisons) else []),
            notes["simulations"],
            notes["needed"].format(needed=_needed()),
            *_furthest(used, found),
            *_shared_notes(used),
            *dash_note(rows, f"not measured, or no spread at all; a test needs {FEWEST} values in each arm"),
        ],
    )


def _furthest(arms: list[Arm], found: StudyStatistics) -> list[str]:
    """Note the values that have no finite logarithm, which are compared as the furthest."""
    summaries = {(own.model, own.optimizer): own.measures for own in found.arms}
    counts = [
        f"{arm.name} {_TITLES[name]} ({summary.not_finite})"
        for arm in arms
        for name, summary in summaries[arm.key].items()
        if summary.not_finite
    ]
    return [f"Not finite, and so further away than all others: {'; '.join(counts)}."] if counts else []


def _needed() -> str:
    """Return how many runs find which ratio, for one model and for four."""
    largest_first = sorted(TRIALS_NEEDED.items(), reverse=True)
    alone = [f"{own} for {ratio:g}" for ratio, (own, _) in largest_first]
    of_four = [str(more) for _, (_, more) in largest_first]
    return f"{', '.join(alone)}; as the smallest of four p values, by Holm: {', '.join(of_four)}"


def _shared_notes(arms: list[Arm]) -> list[str]:
    return [*missing(arms, begin="Not in these numbers:"), *stale(arms)]
