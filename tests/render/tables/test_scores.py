"""Tables S7 and S8: scores by run, with the base; a collapse shows as in other tables."""

from dataclasses import replace

from qlora_repeat.render.tables.paper_tables import make_tables
from qlora_repeat.render.tables.scores import score_tables
from qlora_repeat.render.tables.statistics import statistics_tables
from qlora_repeat.results.arms import Arm, group_arms
from qlora_repeat.results.study_statistics import arm_statistics
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.scores import ScoreName

BASE: dict[ScoreName, float] = {"accuracy": 0.25, "macro_f1": 0.125, "without_label": 30.0}


def _arms() -> list[Arm]:
    found = {"adamw-8bit": [(9000.0, 0.0, 40.0), (20.0, 0.5, 2.0)], "adamw-32bit": [(21.0, 0.5, 0.0)] * 2}
    return group_arms(
        [
            TrialResult(
                "tasks", "classification", "m", "M", optimizer, number, "done",
                perplexity=perplexity,
                base_perplexity=30.0,
                scores={"accuracy": accuracy, "macro_f1": accuracy / 2, "without_label": without},
                base_scores=BASE,
                scored_answers=40,
            )
            for optimizer, rows in found.items()
            for number, (perplexity, accuracy, without) in enumerate(rows, 1)
        ]
    )  # fmt: skip


def test_runs_and_base_stand_below_each_other_for_each_arm() -> None:
    (table,) = score_tables(_arms())
    assert (table.number, table.name) == ("S7", "table-S7")
    assert table.columns[:4] == [
        ("M", "8-bit", each) for each in ("perplexity", "accuracy", "macro-F1", "no label")
    ]
    assert table.rows[0][:5] == ["1", "9,000", "0", "0", "40"]
    summary = {row[0]: row[1:] for row in table.summary}
    assert summary["mean"][1] == "0.25"
    assert summary["SD"][1] == "0.354"
    assert summary["base"][:4] == ["30", "0.25", "0.125", "30"]
    assert "Scored answers in each run: 40." in table.notes


def test_statistics_summarize_scores_and_a_collapse_counts() -> None:
    first, second = arm_statistics(_arms())
    assert first.measures["accuracy"].mean == 0.25
    assert second.measures["accuracy"].sd == 0
    assert first.worse_than_base is not None and first.worse_than_base.count == 1


def test_scores_that_a_task_does_not_have_are_not_noted_as_missing() -> None:
    writer = TrialResult("tasks", "summarization", "w", "W", "adamw-8bit", 1, "done", perplexity=2.0)
    arms = [*_arms(), *group_arms([replace(writer, scores={"rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.5})])]
    (table, *_) = statistics_tables(arms)
    assert ("ROUGE-2", "mean") in table.columns
    assert not any("Fewer values" in note for note in table.notes)


def test_other_tasks_have_no_such_table() -> None:
    arms = group_arms(
        [TrialResult("s", "text-generation", "m", "M", "adamw-8bit", 1, "done", perplexity=2.0)]
    )
    assert score_tables(arms) == []
    assert not any(table.number in ("S7", "S8") for table in make_tables(arms))
