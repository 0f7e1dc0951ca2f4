"""Table S6: the benchmarks of lm-evaluation-harness on each trial's merged model."""

from qlora_repeat.render.footnotes import NOTES, dash_note, missing, source_of, stale
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm
from qlora_repeat.results.benchmark_statistics import BenchmarkStatistics, benchmark_statistics
from qlora_repeat.results.number_format import DASH, percent, spread_text, value_text

_HEADINGS = (
    "runs",
    "examples",
    "mean",
    "SD between runs",
    "SE of the test set",
    "due to seeds",
    "examples agree",
)


def benchmark_tables(arms: list[Arm]) -> list[Table]:
    """Make Table S6 if a trial has benchmarks; otherwise nothing. A row for each arm, task and metric."""
    found = [(arm, each) for arm in arms for each in benchmark_statistics(arm)]
    if not found:
        return []
    used = [arm for arm in arms if any(trial.benchmarks for trial in arm.done)]
    rows = [[f"{arm.name}, {each.task}, {each.metric}", *_cells(each)] for arm, each in found]
    notes = NOTES["S6"]
    unlike = [f"{arm.name}, {each.task}" for arm, each in found if each.other_examples]
    return [
        Table(
            number="S6",
            caption="Benchmarks of EleutherAI's lm-evaluation-harness on the merged models.",
            source=source_of(used),
            stub="Arm, task, metric",
            columns=[(heading,) for heading in _HEADINGS],
            rows=rows,
            notes=[
                notes["columns"],
                *([notes["unlike"].format(named="; ".join(dict.fromkeys(unlike)))] if unlike else []),
                *stale(used, lambda trial: bool(trial.benchmarks)),
                *missing(used, lambda trial: trial.benchmarks or None, begin="Not in these numbers:"),
                *dash_note(rows, notes["dash"]),
            ],
        )
    ]


def _cells(found: BenchmarkStatistics) -> list[str]:
    return [
        str(found.trials),
        DASH if found.examples is None else str(found.examples),
        value_text(found.mean, found.sd),
        spread_text(found.sd),
        spread_text(found.standard_error),
        percent(found.seeds),
        percent(found.agreement),
    ]
