"""Tables S7 and S8: the scores of the answers of a classification, and of a summarization, by run."""

from qlora_repeat.render.footnotes import NOTES, diverged, stale_bases
from qlora_repeat.render.tables.table import Table, by_run, number_column
from qlora_repeat.results.arms import Arm, Measure
from qlora_repeat.results.number_format import DASH, DEVIATION_NOTE, span, summary_rows
from qlora_repeat.results.study_statistics import SCORE_TITLES, score
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.data_sources import Task
from qlora_repeat.study.scores import SCORES, ScoreName

_NUMBERS: dict[Task, str] = {"classification": "S7", "summarization": "S8"}


def score_tables(arms: list[Arm]) -> list[Table]:
    """Make a table for each task of these arms whose answers have scores."""
    own = {task: [arm for arm in arms if arm.task == task] for task in SCORES}
    return [_scores(task, found) for task, found in own.items() if found]


def _scores(task: Task, arms: list[Arm]) -> Table:
    """Make the table of a task: perplexity and scores side by side, so that a collapse shows in both."""
    measures: dict[str, tuple[Measure, Measure]] = {
        "perplexity": (lambda trial: trial.perplexity, lambda trial: trial.base_perplexity),
        **{SCORE_TITLES[name]: (score(name), _of_base(name)) for name in SCORES[task]},
    }
    columns, values, decimals, bases = [], [], [], ["base"]
    for arm in arms:
        for title, (measure, base) in measures.items():
            columns.append(number_column((arm.title, arm.heading, title), arm, measure))
            values.append(arm.values(measure))
            decimals.append(arm.decimals(measure))
            bases.append(span(arm.values(base), decimals[-1]) or DASH)
    notes = NOTES[_NUMBERS[task]]
    return by_run(
        _NUMBERS[task],
        f"Scores of the answers of the fine-tuned {task} models to test examples, by run and optimizer.",
        columns,
        summary=[*summary_rows(["mean", "SD", "range", "n"], values, decimals), bases],
        notes=[
            notes["scores"],
            NOTES["S7"]["answers"],
            *_counts(arms),
            DEVIATION_NOTE,
            *diverged(arms),
            *stale_bases(arms),
        ],
    )


def _of_base(name: ScoreName) -> Measure:
    def measure(trial: TrialResult) -> float | None:
        return trial.base_scores.get(name)

    return measure


def _counts(arms: list[Arm]) -> list[str]:
    """Note the number of scored answers."""
    counts = [value for arm in arms for value in arm.values(lambda trial: trial.scored_answers)]
    return [f"Scored answers in each run: {span(counts)}."] if counts else []
