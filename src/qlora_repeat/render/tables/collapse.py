"""Table S3: the same trials with an old map of 8-bit state, with today's, and with 32-bit state."""

from collections.abc import Callable

from qlora_repeat.render.tables.table import Column, Table, missing
from qlora_repeat.results.arm_statistics import ArmStatistics, arm_statistics, reference_of, worse_than_base
from qlora_repeat.results.arms import Arm, by_model, source_of, stale, stale_bases
from qlora_repeat.results.number_format import DASH, number
from qlora_repeat.results.statistics import FEWEST, Share, Summary, compare_spreads, holm
from qlora_repeat.stages.legacy_qmap import split_optimizer

COLLAPSED = "Collapsed: with a perplexity above the base's own before fine-tuning, or not finite."
_ROWS = (
    "runs",
    "perplexity: median",
    "perplexity: range",
    "perplexity: SD",
    "collapsed",
    "collapsed: 95 % interval",
    "final loss: median",
    "diverged",
    "spread, beside that of",
    "ratio of spreads",
    "ratio: 95 % interval",
    "equal spread: p",
)


def tested_models(arms: list[Arm]) -> dict[str, list[Arm]]:
    """The arms of those models that were also trained with another state map than today's."""
    return {model: own for model, own in by_model(arms).items() if any(arm.state_map for arm in own)}


def collapse_share(arm: Arm) -> Share | None:
    """How many runs of an arm collapsed, of those that were tested and whose base was, too."""
    return worse_than_base(arm.done)


def collapse_tables(arms: list[Arm]) -> list[Table]:
    """Table S3, where an arm has another state map than today's; otherwise nothing."""
    tested = [arm for own in tested_models(arms).values() for arm in own]
    if not tested:
        return []
    found = arm_statistics([trial for arm in tested for trial in arm.trials])
    columns = [[*_outcomes(own), *cells] for own, cells in zip(found, _spread_cells(tested), strict=True)]
    notes = [
        f"{COLLAPSED} Its interval is Wilson's. diverged: with a loss or perplexity that is not finite.",
        "SD: sample standard deviation (n-1), of what is finite. final loss: of the last step, on one "
        "example, which is the same in all runs where the order is seeded.",
        "spread: the mean distance of the logarithms of perplexity from their median, without the smallest. "
        "p: two-sided, by permutation of these distances, adjusted by Holm's method for all tests of this "
        "table; the interval has the ratios that one such test does not reject at 5 %.",
        *stale(tested, lambda trial: trial.perplexity is not None),
        *stale_bases(tested),
        *missing([Column((), arm, lambda trial: number(trial.perplexity)) for arm in tested]),
    ]
    if any(DASH in cells for cells in columns):
        notes.append(
            f"{DASH}: not measured, or nothing to compare; a test needs {FEWEST} values in each arm."
        )
    return [
        Table(
            number="S3",
            caption="Fine-tuning with an old map of 8-bit optimizer state, with today's, and with 32-bit "
            "state: perplexity afterwards, collapses and losses.",
            source=source_of(tested),
            stub="Measure",
            columns=[(arm.title, arm.optimizer) for arm in tested],
            rows=[[name, *(cells[place] for cells in columns)] for place, name in enumerate(_ROWS)],
            notes=notes,
        )
    ]


def _outcomes(own: ArmStatistics) -> list[str]:
    """The cells above those of the spread."""
    nothing = Summary(0, 0)
    found, losses = (own.measures.get(name, nothing) for name in ("perplexity", "final_loss"))
    worse, diverged = own.worse_than_base, own.diverged
    return [
        str(own.trials),
        _cell(found.median),
        _span(found.low, found.high, number),
        _cell(found.sd),
        f"{worse.count} of {worse.of}" if worse else DASH,
        _span(worse.low, worse.high, lambda value: f"{100 * value:.0f} %") if worse else DASH,
        _cell(losses.median),
        f"{diverged.count} of {diverged.of}" if diverged else DASH,
    ]


def _spread_cells(tested: list[Arm]) -> list[list[str]]:
    """For each arm: beside which its spread is shown, their ratio, its interval, and p."""
    references = [_reference(arm, tested) for arm in tested]
    tests = [
        compare_spreads(_perplexities(arm), _perplexities(other)) if other else None
        for arm, other in zip(tested, references, strict=True)
    ]
    adjusted = iter(holm([test.p for test in tests if test and test.p is not None]))
    cells = []
    for other, test in zip(references, tests, strict=True):
        if other is None or test is None:
            cells.append([DASH] * 4)
        else:
            p = None if test.p is None else next(adjusted)
            cells.append(
                [other.optimizer, _short(test.ratio) or DASH, _span(test.low, test.high, _short), _cell(p)]
            )
    return cells


def _reference(arm: Arm, tested: list[Arm]) -> Arm | None:
    """Of the same model: for an old map, the arm with today's; for 8-bit state with that, the 32-bit arm."""
    optimizer = arm.trials[0].optimizer
    wanted = split_optimizer(optimizer)[0] if arm.state_map else reference_of(optimizer)
    alike = [each for each in tested if (each.model, each.trials[0].optimizer) == (arm.model, wanted)]
    return alike[0] if alike and alike[0] is not arm else None


def _perplexities(arm: Arm) -> list[float]:
    return arm.values(lambda trial: trial.perplexity)


def _cell(value: float | None) -> str:
    return number(value) or DASH


def _short(value: float | None) -> str | None:
    """To three significant digits."""
    return None if value is None else number(float(f"{value:.3g}"))


def _span(low: float | None, high: float | None, show: Callable[[float], str | None]) -> str:
    if low is None or high is None:
        return DASH
    return "–".join(dict.fromkeys(show(value) or "" for value in (low, high)))
