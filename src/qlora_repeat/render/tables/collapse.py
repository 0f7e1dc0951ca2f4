"""Table S3: the same trials with an old quantization map of 8-bit state, today's map, and 32-bit state."""

from qlora_repeat.render.footnotes import dash_note, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, by_model
from qlora_repeat.results.number_format import DASH, cell, interval_text, rounded, share_text
from qlora_repeat.results.statistical_methods import FEWEST, Share, Summary, compare_spreads, holm
from qlora_repeat.results.study_statistics import ArmStatistics, arm_statistics, worse_than_base_share

COLLAPSED = "Collapsed: perplexity above that of the base before fine-tuning, or not finite."
_ROWS = (
    "runs",
    "perplexity: median",
    "perplexity: range",
    "perplexity: SD",
    "collapsed",
    "collapsed: 95 % interval",
    "final loss: median",
    "diverged",
    "spread compared with",
    "ratio of spreads",
    "ratio: 95 % interval",
    "equal spread: p",
)


def tested_models(arms: list[Arm]) -> dict[str, list[Arm]]:
    """Return the arms of the models that were also trained with an old quantization map, by model."""
    return {
        model: own for model, own in by_model(arms).items() if any(arm.optimizer.legacy_qmap for arm in own)
    }


def collapse_share(arm: Arm) -> Share | None:
    """Return how many runs of an arm collapsed, among those with a test of the run and of its base."""
    return worse_than_base_share(arm.done)


def collapse_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S3 if an arm has an old quantization map; otherwise nothing."""
    tested = [arm for own in tested_models(arms).values() for arm in own]
    if not tested:
        return []
    found = zip(arm_statistics(tested), _spread_cells(tested), strict=True)
    columns = [[*_outcomes(own), *cells] for own, cells in found]
    return [
        Table(
            number="S3",
            caption="Fine-tuning with an old quantization map of 8-bit optimizer state, with today's "
            "map, and with 32-bit state: perplexity afterwards, collapses and losses.",
            source=source_of(tested),
            stub="Measure",
            columns=[(arm.title, arm.heading) for arm in tested],
            rows=[[name, *(cells[place] for cells in columns)] for place, name in enumerate(_ROWS)],
            notes=[
                f"{COLLAPSED} Intervals are Wilson's. diverged: a loss or the perplexity is not finite.",
                "SD: sample standard deviation (n-1) of the finite values. final loss: the loss of the last "
                "step, on one example; all runs have the same last example where the data order is seeded.",
                "spread: mean distance of log perplexities from their median, without the smallest "
                "distance. p: two-sided permutation test of these distances, adjusted by Holm's method for "
                "all tests of this table. The interval contains the ratios that one such test does not "
                "reject at 5 %.",
                *stale(tested, lambda trial: trial.perplexity is not None),
                *stale_bases(tested),
                *missing(tested, lambda trial: trial.perplexity),
                *dash_note(
                    columns, f"not measured, or nothing to compare; a test needs {FEWEST} values in each arm"
                ),
            ],
        )
    ]


def _outcomes(own: ArmStatistics) -> list[str]:
    """Return the cells above the rows of the spread."""
    nothing = Summary(0, 0)
    found, losses = (own.measures.get(name, nothing) for name in ("perplexity", "final_loss"))
    worse = own.worse_than_base
    return [
        str(own.trials),
        cell(found.median),
        interval_text(cell(found.low), cell(found.high)),
        cell(found.sd),
        share_text(worse),
        interval_text(f"{100 * worse.low:.0f} %", f"{100 * worse.high:.0f} %") if worse else DASH,
        cell(losses.median),
        share_text(own.diverged),
    ]


def _spread_cells(tested: list[Arm]) -> list[list[str]]:
    """Return for each arm: the arm that its spread is compared with, their ratio, its interval, and p."""
    references = [_reference(arm, tested) for arm in tested]
    tests = [
        compare_spreads(arm.perplexities, other.perplexities) if other else None
        for arm, other in zip(tested, references, strict=True)
    ]
    adjusted = holm([test.p if test else None for test in tests])
    return [
        [
            other.heading,
            rounded(test.ratio),
            interval_text(rounded(test.low), rounded(test.high)),
            cell(p),
        ]
        if other and test
        else [DASH] * 4
        for other, test, p in zip(references, tests, adjusted, strict=True)
    ]


def _reference(arm: Arm, tested: list[Arm]) -> Arm | None:
    """Return the same model's arm with today's map, for an old map; otherwise its 32-bit arm, if any."""
    own = arm.optimizer
    wanted = own.with_todays_qmap if own.legacy_qmap else own.reference
    others = (each for each in tested if each is not arm)
    return next((each for each in others if (each.model, each.optimizer) == (arm.model, wanted)), None)
