"""Check the statistics for seven trials by simulation, and how many trials an effect needs (minutes, no GPU).

    python benchmarks/coverage.py                # all parts
    python benchmarks/coverage.py coverage       # intervals and the test of equal spread
    python benchmarks/coverage.py trials         # the power of that test
    python benchmarks/coverage.py attribution    # intervals of shares, and how often verdicts are wrong
    python benchmarks/coverage.py laboratories   # intervals of spreads within and between laboratories
    python benchmarks/coverage.py pairs          # intervals of `compare`, with and without shared seeds
    python benchmarks/coverage.py power          # what `power` says, against simulated studies
    python benchmarks/coverage.py examples       # the shares of seeds and test examples

The script draws values from families of distributions that the paper's tables suggest. Each table has its own
generator and seed. Each share has its 95 % Wilson interval over the simulated studies.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tabulate import tabulate

from qlora_repeat.analysis.attribution import paired_statistics as paired
from qlora_repeat.analysis.attribution.decompose import SMALL as SHARE
from qlora_repeat.analysis.attribution.decompose import additivity
from qlora_repeat.analysis.interlab import reproducibility
from qlora_repeat.analysis.verify.pair_test import make_pair_test
from qlora_repeat.results import power
from qlora_repeat.results.power import Effect, power_of
from qlora_repeat.results.seeds_and_examples import decomposed
from qlora_repeat.results.statistical_methods import (
    TRIALS_NEEDED,
    compare_spreads,
    deviation_interval,
    prediction_interval,
)
from qlora_repeat.results.two_arms import Estimate, compare_arms

Values = NDArray[np.float64]
N = 7
SEED = 20241012
VERIFIED = 56
"""Trials of the study whose pairs `verify` compares."""
LARGE, SMALL = 170_000.0, 13.0
"""The two modes of the paper's 8-bit Llama2-7B perplexities."""


def _lognormal(sigma: float) -> Callable[[np.random.Generator, tuple[int, int]], Values]:
    return lambda generator, shape: np.exp(sigma * generator.normal(size=shape))


def _collapse(often: float) -> Callable[[np.random.Generator, tuple[int, int]], Values]:
    """Return a sampler of perplexities of which this share collapses; their logs have SD 0.3, others 0.1."""

    def draw(generator: np.random.Generator, shape: tuple[int, int]) -> Values:
        collapsed = generator.random(shape) < often
        noise = generator.normal(size=shape)
        return np.where(collapsed, LARGE * np.exp(0.3 * noise), SMALL * np.exp(0.1 * noise))

    return draw


def _collapse_deviation(often: float) -> float:
    first = often * LARGE * math.exp(0.3**2 / 2) + (1 - often) * SMALL * math.exp(0.1**2 / 2)
    second = often * LARGE**2 * math.exp(2 * 0.3**2) + (1 - often) * SMALL**2 * math.exp(2 * 0.1**2)
    return math.sqrt(second - first**2)


FAMILIES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Values], float]] = {
    "normal": (lambda generator, shape: 100 + generator.normal(size=shape), 1.0),
    "lognormal, sigma 0.3": (_lognormal(0.3), math.sqrt(math.exp(0.09) * math.expm1(0.09))),
    "lognormal, sigma 1": (_lognormal(1.0), math.sqrt(math.exp(1.0) * math.expm1(1.0))),
    "t, 3 degrees of freedom": (
        lambda generator, shape: 100 + generator.standard_t(3, size=shape),
        math.sqrt(3),
    ),
    "collapse in 4 of 7": (_collapse(4 / 7), _collapse_deviation(4 / 7)),
    "collapse in 1 of 7": (_collapse(1 / 7), _collapse_deviation(1 / 7)),
}
"""For each family, the sampler of an arm's values and their true standard deviation."""


def percent(hits: Values) -> str:
    """Return the share of true values, with its interval."""
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return f"{100 * hits.mean():.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def within(bounds: Values, truth: float | Values) -> Values:
    """Return for each interval (low, high) whether it holds the true value."""
    return (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])


def deviation_coverage(
    generator: np.random.Generator, studies: int = 10_000, bootstrapped: int = 1_000
) -> str:
    rows = []
    chi = np.sqrt((N - 1) / stats.chi2.ppf([0.975, 0.025], N - 1))
    for name, (draw, truth) in FAMILIES.items():
        drawn = draw(generator, (studies, N))
        ours = np.array([deviation_interval(values) for values in drawn.tolist()])
        exact = drawn.std(axis=1, ddof=1)[:, None] * chi
        boot = stats.bootstrap(
            (drawn[:bootstrapped],),
            _deviation,
            axis=1,
            n_resamples=1_999,
            method="BCa",
            rng=generator,
            batch=100,
        ).confidence_interval
        bca = np.column_stack([boot.low, boot.high])
        rows.append(
            [
                name,
                percent(within(ours, truth)),
                f"{100 * np.mean(truth < ours[:, 0]):.1f} / {100 * np.mean(truth > ours[:, 1]):.1f}",
                f"{np.median(ours[:, 1] / ours[:, 0]):.1f}",
                percent(within(exact, truth)),
                percent(within(bca, truth)),
            ]
        )
    heads = [
        "family",
        "Bonett (used)",
        "truth below / above",
        "high / low, median",
        "chi-square",
        "bootstrap, BCa",
    ]
    return _table("Interval for the SD, 95 %: coverage (%)", heads, rows)


def _deviation(values: Values, axis: int) -> Values:
    found: Values = values.std(axis=axis, ddof=1)
    return found


def prediction_coverage(generator: np.random.Generator, studies: int = 20_000) -> str:
    rows = []
    for name, (draw, _) in FAMILIES.items():
        drawn = draw(generator, (studies, N + 1))
        seen, further = drawn[:, :N], drawn[:, N]
        logs = np.log(seen)
        center, sd = logs.mean(axis=1), logs.std(axis=1, ddof=1)
        cells = []
        for level in (0.95, 0.99):
            half = stats.t.ppf((1 + level) / 2, N - 1) * sd * math.sqrt(1 + 1 / N)
            plain = np.exp(np.column_stack([center - half, center + half]))
            ours = np.array([prediction_interval(values, level) for values in seen.tolist()])
            cells += [percent(within(ours, further)), percent(within(plain, further))]
        different = []
        for *others, recorded, rerun in (100 * drawn[: studies // 4]).tolist():  # a perplexity is at least 1
            test = make_pair_test(recorded, others, VERIFIED)
            different.append(test is not None and not test.contains(rerun))
        extent = np.column_stack([seen.min(axis=1), seen.max(axis=1)])
        rows.append([name, *cells, percent(within(extent, further)), percent(np.array(different))])
    heads = [
        "family",
        "95 % (used)",
        "95 %, Student's",
        "99 % (used)",
        "99 %, Student's",
        "range of the seven",
        "verify: a pair is different after six",
    ]
    return _table("Prediction interval for one further trial: coverage (%)", heads, rows)


def tested(ours: Values, theirs: Values, ratio: float = 1.0) -> tuple[Values, Values]:
    """Return each study's p-value for its two arms, and whether its interval holds the true ratio."""
    found = [compare_spreads(a, b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    bounds = np.array([(each.low, each.high) for each in found if each])
    return np.array([each.p for each in found if each]), within(bounds, ratio)


def brown_forsythe(ours: Values, theirs: Values) -> Values:
    """Return the p-values of scipy's Brown-Forsythe test, on the log scale."""
    found: Values = stats.levene(np.log(ours).T, np.log(theirs).T, center="median").pvalue
    return found


def false_findings(generator: np.random.Generator, studies: int = 5_000) -> str:
    rows = []
    for name, (draw, _) in FAMILIES.items():
        ours, theirs = draw(generator, (studies, N)), draw(generator, (studies, N))
        ratio = np.log(ours).var(axis=1, ddof=1) / np.log(theirs).var(axis=1, ddof=1)
        f = 2 * np.minimum(stats.f.cdf(ratio, N - 1, N - 1), stats.f.sf(ratio, N - 1, N - 1))
        p, _ = tested(ours, theirs)
        rows.append([name, *(percent(each <= 0.05) for each in (p, brown_forsythe(ours, theirs), f))])
    heads = ["family of both arms", "permuted distances (used)", "Brown-Forsythe", "F test"]
    return _table("Test of equal spread on the log scale, 5 %: rejections of equal arms (%)", heads, rows)


def findings(generator: np.random.Generator, studies: int = 2_000) -> str:
    rows = []
    for ratio in (1.5, 2.0, 3.0, 5.0, 10.0, 30.0):
        for family, logs in {
            "lognormal": generator.normal,
            "log-t, 3 degrees of freedom": lambda size: generator.standard_t(3, size=size),
        }.items():
            ours = np.exp(0.02 * ratio * logs(size=(studies, N)))
            theirs = np.exp(0.02 * logs(size=(studies, N)))
            p, held = tested(ours, theirs, ratio)
            rows.append(
                [f"{family}, ratio {ratio:g}", *_found(p, brown_forsythe(ours, theirs)), percent(held)]
            )
    for often in (1 / 7, 2 / 7, 4 / 7):
        ours = _collapse(often)(generator, (studies, N))
        theirs = np.exp(0.02 * generator.normal(size=(studies, N)))
        p, _ = tested(ours, theirs)
        found = _found(p, brown_forsythe(ours, theirs))
        rows.append([f"collapse in {7 * often:.0f} of 7 beside lognormal, sigma 0.02", *found, ""])
    heads = [
        "arms",
        "p ≤ 0.05",
        "p ≤ 0.0125 (first of four, Holm)",
        "Brown-Forsythe, p ≤ 0.05",
        "interval covers",
    ]
    return _table("Arms of seven that spread differently: how often the test finds it (%)", heads, rows)


def _found(p: Values, other: Values) -> list[str]:
    return [percent(p <= 0.05), percent(p <= 0.05 / 4), percent(other <= 0.05)]


def trials_needed(generator: np.random.Generator) -> str:
    """Tabulate the smallest number of trials in each arm that finds a ratio in four of five cases."""
    rows = []
    for ratio, starts, studies in (
        (10.0, 6, 4_000),
        (5.0, 8, 4_000),
        (3.0, 11, 2_000),
        (2.0, 21, 2_000),
        (1.5, 54, 1_000),
    ):
        cells = []
        for level in (0.05, 0.05 / 4):
            n = starts
            while True:
                ours = np.exp(0.02 * ratio * generator.normal(size=(studies, n)))
                p, _ = tested(ours, np.exp(0.02 * generator.normal(size=(studies, n))))
                if (p <= level).mean() >= 0.8:
                    break
                n += max(1, int(n * (0.8 - (p <= level).mean()) / 5))  # small steps find the smallest n
            cells += [str(n), percent(p <= level)]
        rows.append([f"{ratio:g}", *cells, "{} and {}".format(*TRIALS_NEEDED[ratio])])
    heads = ["ratio", "trials at 5 %", "found (%)", "trials at 1.25 %", "found (%)", "TRIALS_NEEDED"]
    return _table(
        "Trials in each arm for a ratio of spreads to be found in 80 % of cases (lognormal)", heads, rows
    )


LEVELS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Values]] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "t, 3 degrees of freedom": lambda generator, shape: generator.standard_t(3, size=shape) / math.sqrt(3),
    "one level in seven far off": lambda generator, shape: (
        (np.where(generator.random(shape) < 1 / 7, 1.0, 0.0) - 1 / 7) / math.sqrt(6 / 49)
        + 0.1 * generator.normal(size=shape)
    ),
}
"""For each family, the sampler of a source's levels; LEVEL_DEVIATIONS has their standard deviation."""
LEVEL_DEVIATIONS = {
    "normal": 1.0,
    "t, 3 degrees of freedom": 1.0,
    "one level in seven far off": math.hypot(1, 0.1),
}
NOISE = 1e-3
"""The standard deviation of the change that a small disturbance, such as a nudge, makes in one trial."""


def shares_of_sources(generator: np.random.Generator, studies: int = 4_000) -> str:
    """Tabulate experiments like those of `qlora-repeat attribute`, with two sources that matter."""
    rows = []
    for n in (N, 20):
        for name, draw in LEVELS.items():
            for mixed in (0.0, 0.5):
                found = np.array([_attributed(generator, draw, mixed, n) for _ in range(studies)])
                label = f"{n} replicates, {name}" + (", interacting" if mixed else "")
                rows.append([label, *(percent(found[:, place]) for place in range(4))])
    heads = [
        "experiment",
        "share of the larger covered",
        "of the smaller",
        "total effect of the larger covered",
        "of the smaller",
    ]
    title = "Shares of sources: additive ones with 80 and 20 %, or 25 % each and 50 % only together (%)"
    return _table(title, heads, rows)


def _attributed(generator: np.random.Generator, draw: Callable[..., Values], mixed: float, n: int) -> Values:
    """Return whether the intervals of an experiment cover."""
    alone = np.array([0.25, 0.25] if mixed else [0.8, 0.2])
    single, joint, _ = _experiment(generator, [draw] * 2, alone, mixed, n)
    hits = []
    for estimate, truth in ((paired.share, alone + mixed / 2), (paired.size, alone + mixed)):
        for part, true in zip(single, truth, strict=True):
            found = estimate(part, joint)
            known = found.low is not None and found.high is not None
            hits.append(known and found.low <= true <= found.high)
    return np.array(hits)


def _experiment(
    generator: np.random.Generator,
    draws: Sequence[Callable[..., Values]],
    alone: Values,
    mixed: float,
    n: int,
) -> tuple[list[Values], Values, Values]:
    """Return the changes by each source, by all together, and by a nudge; the first two sources interact."""
    first, second = (np.array([draw(generator, (n,)) for draw in draws]) for _ in range(2))

    def outcome(levels: Values) -> Values:
        noise = NOISE * generator.normal(size=n)
        found: Values = np.sqrt(alone) @ levels + math.sqrt(mixed) * levels[0] * levels[1] + noise
        return found

    baseline, places = outcome(first), np.arange(len(alone))
    changed = [np.where((places == place)[:, None], second, first) for place in places]
    single = [outcome(levels) - baseline for levels in changed]
    return single, outcome(second) - baseline, outcome(first) - baseline


_INTERACTIONS = (0.0, 0.05, SHARE, 0.4)


def rules_of_attribution(generator: np.random.Generator, studies: int = 2_000) -> str:
    """Tabulate how often a source is named as the largest, and what is said of interactions."""
    rows = []
    for n in (N, 20):
        for name, draw in LEVELS.items():
            cells = []
            for alone, draws in (
                ([0.5, 0.5], [draw] * 2),
                ([0.5, 0.5], [LEVELS["normal"], draw]),
                ([0.25] * 4, [draw] * 4),
                ([0.8, 0.2], [draw] * 2),
                ([0.95, 0.05], [draw] * 2),
            ):
                made = (_experiment(generator, draws, np.array(alone), 0.0, n) for _ in range(studies))
                named = [paired.largest_share(dict(enumerate(each)), joint) for each, joint, _ in made]
                cells.append(percent(np.array([each is not None for each in named])))
            for mixed in _INTERACTIONS:
                verdicts = [_said(generator, draw, mixed, n) for _ in range(studies)]
                for verdict in ("additive", "not additive"):
                    cells.append(percent(np.array([each == verdict for each in verdicts])))
            rows.append([f"{n} replicates, {name}", *cells])
    heads = ["experiment", "2 equal: named", "one normal", "4 equal", "80 and 20 %", "95 and 5 %"]
    heads += [
        f"interactions {100 * mixed:.0f} %: {verdict}"
        for mixed in _INTERACTIONS
        for verdict in ("additive", "not")
    ]
    return _table("Rules of attribution: the largest source, and additivity (%)", heads, rows)


def _said(generator: np.random.Generator, draw: Callable[..., Values], mixed: float, n: int) -> str:
    """Return the verdict on the additivity of two equal sources that interact."""
    single, joint, nudged = _experiment(generator, [draw] * 2, np.full(2, (1 - mixed) / 2), mixed, n)
    rest = joint - single[0] - single[1]
    return additivity(rest, joint, paired.excess(rest, nudged, 2.0))


def spreads_of_laboratories(generator: np.random.Generator, studies: int = 4_000) -> str:
    """Tabulate laboratories of seven trials with SD 1 within, whose means have SD 0.5 or 2."""
    rows = []
    for count in (3, 5, 8):
        for name, draw in LEVELS.items():
            for between in (0.5, 2.0):
                within, overall = LEVEL_DEVIATIONS[name], math.hypot(LEVEL_DEVIATIONS[name], between)
                hits = []
                for _ in range(studies):
                    own = draw(generator, (count, N)) + between * generator.normal(size=(count, 1))
                    found = reproducibility(own.tolist())
                    assert found is not None
                    low, high = _exact(own)
                    hits.append(
                        [
                            (found.repeatability_low or 0) <= within <= (found.repeatability_high or 0),
                            low <= within <= high,
                            (found.reproducibility_low or 0) <= overall <= (found.reproducibility_high or 0),
                            (found.reproducibility_high or 0) / (found.reproducibility_low or math.nan),
                        ]
                    )
                measured = np.array(hits)
                label = f"{count} laboratories, {name}, between {between:g}"
                cells = [percent(measured[:, place]) for place in range(3)]
                rows.append([label, *cells, f"{np.nanmedian(measured[:, 3]):.1f}"])
    heads = ["study", "s_r (used)", "s_r, chi-square", "s_R (used)", "s_R: high / low, median"]
    return _table("Intervals of spreads within and between laboratories, 95 %: coverage (%)", heads, rows)


def _exact(values: Values) -> tuple[float, float]:
    """Return the exact interval of the SD within laboratories for normal values."""
    freedom = values.size - len(values)
    squares = freedom * values.var(axis=1, ddof=1).mean()
    low, high = np.sqrt(squares / stats.chi2.ppf([0.975, 0.025], freedom))
    return float(low), float(high)


def comparisons_of_arms(generator: np.random.Generator, studies: int = 2_000) -> str:
    """Tabulate what `compare` says of arms with a shift of 1, and of spreads in the ratio 1.5 or 1."""
    rows = []
    for n in (N, 20):
        for name, draw in LEVELS.items():
            for common in (0.0, 0.9, 0.999):
                hits = np.array([_compared(generator, draw, n, common) for _ in range(studies)])
                seeds = f", seeds shared (correlation {common:g})" if common else ""
                rows.append([f"{n} and {n}, {name}{seeds}", *(percent(hits[:, place]) for place in range(5))])
    heads = [
        "arms",
        "shift covered",
        "superiority covered",
        "ratio 1.5 covered",
        "ratio 1.5 found",
        "equal spreads called different",
    ]
    return _table("Two arms, 95 % intervals of `compare` (%)", heads, rows)


def _compared(generator: np.random.Generator, draw: Callable[..., Values], n: int, common: float) -> Values:
    """Return whether the intervals of a comparison cover, and what a test of the ratio of spreads finds."""
    shared = math.sqrt(common) * draw(generator, (n,))
    first, second, third = (shared + math.sqrt(1 - common) * draw(generator, (n,)) for _ in range(3))
    paired = common > 0
    shifted = compare_arms(first.tolist(), (second + 1).tolist(), paired=paired)
    wider = compare_arms(first.tolist(), (1.5 * second).tolist(), paired=paired).spread
    equal = compare_arms(first.tolist(), third.tolist(), paired=paired).spread
    chance = _superiority(draw, common)
    return np.array(
        [
            _covers(shifted.shift, 1.0),
            _covers(shifted.superiority, chance),
            wider is not None and _covers(wider, 1.5),
            wider is not None and not _covers(wider, 1.0),
            equal is not None and not _covers(equal, 1.0),
        ]
    )


def _covers(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


@functools.cache
def _superiority(draw: Callable[..., Values], common: float) -> float:
    """Return the probability that a shifted value is above another one, of the same seed if they share it."""
    generator, many = np.random.default_rng(1), 1_000_000
    own = math.sqrt(1 - common)
    shared = 0.0 if common == 0 else math.sqrt(common) * draw(generator, (many,))
    first, second = (shared + own * draw(generator, (many,)) for _ in range(2))
    return float((second + 1 > first).mean())


def powers(generator: np.random.Generator, studies: int = 10_000) -> str:
    """Tabulate the power that `power` states beside that of simulated studies of that many trials."""
    rows = []
    for effect in (
        Effect("mean", 1.0),
        Effect("mean", 2.0),
        Effect("median", 1.0),
        Effect("median", 2.0),
        Effect("spread", 3.0),
        Effect("spread", 5.0),
        Effect("collapse", 0.5),
        Effect("collapse", 0.9, 0.1),
    ):
        needed = power.trials_needed(effect)
        assert needed is not None
        for n in dict.fromkeys((N, needed)):
            hits = np.array([_is_found(generator, effect, n) for _ in range(studies // 5)])
            stated = f"{100 * power_of(effect, n):.1f}"
            name = (
                f"{effect.of}, {effect.rate:g} and {effect.size:g}"
                if effect.rate
                else (f"{effect.of}, {effect.size:g}")
            )
            rows.append([name, str(n), stated, percent(hits)])
    return _table("Power of n trials in each arm, 5 %", ["effect", "n", "`power`", "simulated (%)"], rows)


def _is_found(generator: np.random.Generator, effect: Effect, n: int) -> bool:
    """Return whether one simulated study finds an effect, by the tests of scipy where it has them."""
    if effect.of == "collapse":
        counts = generator.binomial(n, [effect.rate, effect.size]).tolist()
        return float(stats.fisher_exact([[each, n - each] for each in counts]).pvalue) <= 0.05
    first, second = generator.normal(size=(2, n))
    if effect.of == "spread":
        test = compare_spreads(np.exp(0.02 * effect.size * first).tolist(), np.exp(0.02 * second).tolist())
        return test is not None and test.p is not None and test.p <= 0.05
    test_of = stats.ttest_ind if effect.of == "mean" else stats.mannwhitneyu
    return float(test_of(first, second + effect.size).pvalue) <= 0.05


def seeds_and_examples(generator: np.random.Generator, studies: int = 2000) -> str:
    """Tabulate the estimated share of seeds, and the errors of an arm's mean, beside the true ones."""
    rows = []
    for trials, examples, seeds in itertools.product((N,), (48, 500), (0.0, 0.02, 0.1)):
        found, means, right = [], [], 0
        truth = seeds**2 / trials
        total = truth + (1.0 + 0.3**2 / trials) / examples
        for _ in range(studies):
            of_examples = generator.standard_t(5, examples) / math.sqrt(5 / 3)
            noise = 0.3 * generator.normal(size=(trials, examples))
            outcomes = seeds * generator.normal(size=(trials, 1)) + of_examples + noise
            each = decomposed(outcomes.tolist())
            assert each is not None
            found.append(each.parts)
            means.append(each.mean)
            right += (each.more_of == "trials") is (truth > 1.0 / examples)
        stated = np.mean(found, axis=0)
        rows.append(
            [
                f"{trials} trials, {examples} examples",
                f"{100 * truth / total:.1f}",
                f"{100 * stated[0] / stated.sum():.1f}",
                f"{math.sqrt(stated.sum()):.4f}",
                f"{np.std(means):.4f}",
                f"{100 * right / studies:.1f}",
            ]
        )
    heads = [
        "test",
        "due to seeds (%)",
        "estimated (%)",
        "standard error stated",
        "simulated",
        "advice right (%)",
    ]
    return _table("Uncertainty of the mean of an arm's outcomes", heads, rows)


def _table(title: str, heads: list[str], rows: list[list[str]]) -> str:
    return f"{title}\n\n{tabulate(rows, heads, tablefmt='pipe', disable_numparse=True)}\n"


PARTS: dict[str, tuple[Callable[[np.random.Generator], str], ...]] = {
    "coverage": (deviation_coverage, prediction_coverage, false_findings),
    "trials": (findings, trials_needed),
    "attribution": (shares_of_sources, rules_of_attribution),
    "laboratories": (spreads_of_laboratories,),
    "pairs": (comparisons_of_arms,),
    "power": (powers,),
    "examples": (seeds_and_examples,),
}


def main(parts: list[str]) -> None:
    """Print the tables of these parts."""
    for part in parts or list(PARTS):
        generator = np.random.default_rng(SEED)
        for table in PARTS[part]:
            print(table(generator), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
