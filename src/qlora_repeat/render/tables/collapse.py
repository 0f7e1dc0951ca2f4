"""Table S3: the same trials with an old quantization map of 8-bit state, today's map, and 32-bit state."""

from qlora_repeat.render.footnotes import NOTES, dash_note, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, by_model, reference_arm
from qlora_repeat.results.number_format import (
    DASH,
    cell,
    decimals_of,
    interval_text,
    share_text,
    span,
    spread_text,
)
from qlora_repeat.results.statistical_methods import FEWEST, Summary, holm
from qlora_repeat.results.study_statistics import ArmStatistics, arm_statistics
from qlora_repeat.results.two_arms import Estimate, compare_arms, in_pairs


def tested_models(arms: list[Arm]) -> dict[str, list[Arm]]:
    """Return the arms of the models that were also trained with an old quantization map, by model."""
    return {
        model: own for model, own in by_model(arms).items() if any(arm.optimizer.legacy_qmap for arm in own)
    }


def collapse_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S3 if an arm has an old quantization map; otherwise nothing."""
    tested = [arm for own in tested_models(arms).values() for arm in own]
    if not tested:
        return []
    columns = [
        _outcomes(own) | spread for own, spread in zip(arm_statistics(tested), _spreads(tested), strict=True)
    ]
    notes = NOTES["S3"]
    dash = f"not measured, or nothing to compare; a test needs {FEWEST} values in each arm"
    return [
        Table(
            number="S3",
            caption="Fine-tuning with an old quantization map of 8-bit optimizer state, with today's "
            "map, and with 32-bit state: perplexity afterwards, collapses and losses.",
            source=source_of(tested),
            stub="Measure",
            columns=[(arm.title, arm.heading) for arm in tested],
            rows=[[name, *(cells[name] for cells in columns)] for name in columns[0]],
            notes=[
                f"{notes['collapsed']} {notes['intervals']}",
                notes["losses"],
                notes["spread"],
                *stale(tested, lambda trial: trial.perplexity is not None),
                *stale_bases(tested),
                *missing(tested, lambda trial: trial.perplexity),
                *dash_note([cells.values() for cells in columns], dash),
            ],
        )
    ]


def _outcomes(own: ArmStatistics) -> dict[str, str]:
    """Return the cells of an arm above those of its spread, by row."""
    nothing = Summary(0, 0)
    found, losses = (own.measures.get(name, nothing) for name in ("perplexity", "final_loss"))
    worse = own.worse_than_base
    return {
        "runs": str(own.trials),
        "perplexity: median": cell(found.median),
        "perplexity: range": _range(found),
        "perplexity: SD": cell(found.sd),
        "collapsed": share_text(worse),
        "collapsed: 95 % interval": interval_text(f"{100 * worse.low:.0f} %", f"{100 * worse.high:.0f} %")
        if worse
        else DASH,
        "final loss: median": cell(losses.median),
        "diverged": share_text(own.diverged),
    }


def _range(found: Summary) -> str:
    values = [value for value in (found.low, found.high) if value is not None]
    return span(values, decimals_of(values)) or DASH


def _spreads(tested: list[Arm]) -> list[dict[str, str]]:
    """Return the cells of each arm's spread, compared with that of another arm, by row."""
    others = [reference_arm(arm, tested) for arm in tested]
    tests = [_compared(arm, other) if other else None for arm, other in zip(tested, others, strict=True)]
    adjusted = holm([test.p if test else None for test in tests])
    return [
        {
            "spread compared with": other.heading if other and test else DASH,
            "ratio of spreads": spread_text(test.value) if test else DASH,
            "ratio: 95 % interval": interval_text(spread_text(test.low), spread_text(test.high))
            if test
            else DASH,
            "equal spread: p": cell(p),
        }
        for other, test, p in zip(others, tests, adjusted, strict=True)
    ]


def _compared(arm: Arm, other: Arm) -> Estimate | None:
    """Return the ratio of an arm's spread to another's, in pairs if they share seeds."""
    pairs = in_pairs(*(own.by_seed(lambda trial: trial.perplexity) for own in (other, arm)))
    values = pairs or (other.perplexities, arm.perplexities)
    if not all(values):
        return None
    return compare_arms(*values, paired=pairs is not None).spread
