"""The content of a report: its sentences, grid of adapters, first differences, and responses."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkout import kit
from support.finished import finish_study
from support.made_report import traced, trial
from support.places import at

from qlora_repeat.assets.inspection import Inspection, Quantiles
from qlora_repeat.errors import UsageError
from qlora_repeat.records.trace import Step
from qlora_repeat.render.report.charts import MOST_POINTS, beside_the_paper, loss_charts, perplexity_charts
from qlora_repeat.render.report.content import arm_rows, differences, questions, verdict
from qlora_repeat.render.report.page import report_html
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.results.arms import group_arms
from qlora_repeat.results.collect import collect
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import ExampleLosses, Response, TrialResult
from qlora_repeat.study.study import Study

PUBLISHED = Path("paper/published")


def test_what_was_found_in_the_rows_is_shown() -> None:
    tokens = Quantiles(min=1, median=5, p90=7, p99=8, max=9)
    found = Inspection(8, 2, tokens, {"cut_rows": 1}, ["max_length 8 cuts row 3 <b>"], [])
    files = TrialFiles(rows={"neox": found})
    text = report_html(group_arms([trial(1)]), study_name="mine", files=files, published=[])
    assert "neox: 8 training and 2 test rows of 1 to 9 tokens (half have up to 5" in text
    assert "max_length 8 cuts row 3 &lt;b&gt;" in text


def said(*results: TrialResult) -> str:
    return " ".join(verdict(arm_rows(group_arms(results), TrialFiles(), "mine")))


class Elements(HTMLParser):
    """Collects the elements of a page, and the types of its scripts that are not data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.scripts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag == "script" and dict(attrs).get("type") != "application/json":
            self.scripts.append(dict(attrs).get("type"))


def markup(text: str) -> str:
    """Return the page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_the_verdict_compares_adapters_and_not_perplexities() -> None:
    identical = "all trials gave the same adapter, bit for bit"
    assert said(trial(1), trial(2)).startswith(f"In the only arm with trials to compare, {identical}.")
    apart = said(trial(1, "one", perplexity=9.0), trial(2, "two", perplexity=9.0))
    assert apart.startswith("In the only arm with trials to compare, no two trials gave the same adapter.")
    same = said(*(trial(n, optimizer=name) for name in ("adamw-8bit", "adamw-32bit") for n in (1, 2)))
    assert same.startswith(f"In each of the 2 arms with trials to compare, {identical}.")
    mixed = said(trial(1), trial(2), *(trial(n, f"{n}", optimizer="adamw-32bit") for n in (1, 2)))
    assert mixed.startswith(f"In 1 of 2 arms, {identical} (NeoX 8-bit); elsewhere, no two")
    some = said(trial(1, "one"), trial(2, "one"), trial(3, "two"))
    assert "3 trials gave 2 different adapters" in some


def test_the_verdict_says_what_is_missing() -> None:
    assert "Repeatability is not known yet" in said(trial(1), trial(2, None))
    assert "1 of 2 trials have no values yet" in said(trial(1), trial(2, None))
    assert "whether any gave the same adapter is not known" in said(
        *(trial(n, None, status="done", perplexity=9.0 + n) for n in (1, 2))
    )
    assert "1 of 2 trials ended worse than their base" in said(trial(1), trial(2, perplexity=math.nan))


def test_the_verdict_says_how_far_apart_runs_are_and_what_they_can_decide() -> None:
    values = [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0]  # SD 2.16, 2.1 % of the mean
    apart = said(*(trial(n, f"{n}", perplexity=value) for n, value in enumerate(values, 1)))
    assert "Two single runs of an arm differ by more than 5.9 % in about one of twenty cases" in apart
    assert "With 7 trials in each arm, a difference of 1.6 standard deviations" in apart
    wide = [trial(n, f"{n}", optimizer="adamw-32bit", perplexity=10.0**n) for n in range(1, 4)]
    both = said(*(trial(n, f"{n}", perplexity=value) for n, value in enumerate(values, 1)), *wide)
    assert "more than 5.9 % in about" in both
    assert "apart from 1 arm whose runs are further apart than a factor of ten" in both
    assert "Two single runs" not in said(*(trial(n, perplexity=9.0) for n in (1, 2))), "they are equal"


@pytest.mark.parametrize(
    ("seeds", "advice"),
    [
        (0.001, "more test examples would help more than more trials"),
        (1.0, "more trials would help more than more test examples"),
    ],
)
def test_the_verdict_says_what_makes_a_mean_uncertain(seeds: float, advice: str) -> None:
    losses = [ExampleLosses([0, 1, 2], [1, 1, 1], [3 + seeds * n, 3.3, 2.8 + seeds * n]) for n in (0, 1, 2)]
    text = said(*(trial(n, f"{n}", example_losses=each) for n, each in enumerate(losses, 1)))
    assert advice in text
    assert "comes from the seeds, and the rest from the test examples" in text


def test_the_most_frequent_adapter_is_named_a() -> None:
    (row,) = arm_rows(
        group_arms([trial(1, "x"), trial(2, "y"), trial(3, "y"), trial(4, None)]), TrialFiles(), "mine"
    )
    assert [cell.adapter for cell in row.cells] == ["B", "A", "A", None]
    assert row.cells[0].command == "qlora-repeat verify neox/adamw-8bit/1 --study mine"
    assert row.cells[3].command == "qlora-repeat trial neox/adamw-8bit/4 --study mine"


def test_more_adapters_than_letters_have_different_names() -> None:
    (row,) = arm_rows(group_arms([trial(n, f"{n}") for n in range(1, 61)]), TrialFiles(), "mine")
    assert len({cell.adapter for cell in row.cells}) == 60


def test_trials_first_differ_where_their_traces_differ() -> None:
    files = traced({1: [3.0, 2.0, 1.0], 2: [3.0, 2.0, 1.0], 3: [3.0, 2.5, 1.0]})
    (row,) = arm_rows(group_arms([trial(1), trial(2), trial(3, "other")]), files, "mine")
    assert [cell.first_difference for cell in row.cells] == [None, None, "step 2: loss"]
    (chart,) = loss_charts([row], files)
    assert "first differ at step 2 (run 3)" in chart.description
    assert chart.data["step"] == 2


def test_a_difference_before_training_has_no_line_at_the_edge() -> None:
    steps = [[Step(0, adapter=start), Step(1, loss=3.0), Step(2, loss=2.0)] for start in ("a", "b")]
    files = TrialFiles({f"neox/adamw-8bit/{place}": own for place, own in enumerate(steps, 1)})
    (chart,) = loss_charts(arm_rows(group_arms([trial(1), trial(2, "other")]), files, "mine"), files)
    assert chart.description.endswith("Runs differ before the first step (run 2).")
    assert chart.data["step"] is None


def test_a_long_curve_is_reduced_to_means() -> None:
    files = traced({1: [float(n % 2) for n in range(10 * MOST_POINTS)]})
    (chart,) = loss_charts(arm_rows(group_arms([trial(1)]), files, "mine"), files)
    rows = chart.data["rows"]
    assert len(rows) == MOST_POINTS
    assert {loss for _, _, loss in rows} == {0.5}
    assert chart.notes == ["Each point is the mean loss of 10 steps."]


def test_values_that_are_not_finite_are_left_out_of_charts_and_counted() -> None:
    rows = arm_rows(group_arms([trial(1), trial(2, perplexity=math.inf)]), TrialFiles(), "mine")
    (chart,) = perplexity_charts(rows)
    assert len(chart.data["rows"]) == 1
    assert chart.notes == ["1 not shown: not finite."]


def test_values_over_decades_are_on_a_log_scale() -> None:
    def is_log(*perplexities: float) -> bool:
        results = [trial(n, perplexity=value) for n, value in enumerate(perplexities, 1)]
        (chart,) = perplexity_charts(arm_rows(group_arms(results), TrialFiles(), "mine"))
        return bool(chart.data["log"])

    assert is_log(9.0, 900.0)
    assert not is_log(9.0, 10.0)


def test_a_distant_base_does_not_compress_the_points() -> None:
    def notes(base: float) -> tuple[bool, list[str]]:
        results = [trial(n, base_perplexity=base) for n in (1, 2, 3)]
        (chart,) = perplexity_charts(arm_rows(group_arms(results), TrialFiles(), "mine"))
        return chart.data["base"] == base, chart.notes

    assert notes(13.5) == (True, [])
    assert notes(1300.5) == (
        False,
        ["The model before fine-tuning is above the axis, which has no dashed line."],
    )


def test_lines_are_announced_only_where_a_chart_has_them() -> None:
    def page(base: float, *losses: list[float]) -> str:
        results = [trial(n, base_perplexity=base) for n in (1, 2)]
        files = traced(dict(enumerate(losses, 1)))
        return report_html(group_arms(results), study_name="mine", files=files, published=[])

    with_lines, without = page(11.5, [3.0, 2.0], [3.0, 1.0]), page(1300.5, [3.0, 2.0], [3.0, 2.0])
    assert "a dashed line the model" in with_lines and "The dotted line marks" in with_lines
    assert "a dashed line the model" not in without and "The dotted line marks" not in without


def test_a_report_that_is_cut_short_says_so_and_one_of_own_models_has_no_claims() -> None:
    def page(*results: TrialResult) -> str:
        text = report_html(group_arms(results), study_name="mine", files=TrialFiles(), published=[])
        return markup(text)

    assert "Cut short: 1 of 2 trials done. " in page(trial(1), trial(2, None))
    whole = page(trial(1, test_examples=48), trial(2, test_examples=48))
    assert "Cut short" not in whole and "on 48 test examples" in whole
    assert "claims" not in whole and "claims" in page(trial(1, counterpart="llama2-7b"))


def test_only_models_with_a_counterpart_are_compared_with_the_paper() -> None:
    published = group_arms(read_published(PUBLISHED))
    assert beside_the_paper(group_arms([trial(1)]), published) is None
    counterpart = published[0].model
    chart = beside_the_paper(group_arms([trial(1, counterpart=counterpart)]), published)
    assert chart is not None
    assert chart.notes == [f"Here NeoX stands in for {published[0].title}."]
    shown = chart.data["rows"]
    assert sum(arm.endswith("here") for _, arm, _, _ in shown) == 1
    assert sum(arm.endswith("paper") for _, arm, _, _ in shown) == 14


def test_responses_are_shown_side_by_side_with_their_differences() -> None:
    def answers(number: int, text: str) -> TrialResult:
        return trial(number, responses=[Response("Say", 0.1, 0.1, text)])

    rows = arm_rows(
        group_arms([answers(1, "to be or"), answers(2, "to be or"), answers(3, "to bee or")]),
        TrialFiles(),
        "mine",
    )
    (question,) = questions(rows)
    assert question.texts == 2
    differing = [[text for text, differs in spans if differs] for spans in question.answers.values()]
    assert differing == [[], [], ["bee"]]


@given(st.text(), st.text())
def test_spans_cover_a_text_and_mark_nothing_in_an_equal_text(first: str, other: str) -> None:
    assert "".join(text for text, _ in differences(first, other)) == other
    assert not any(differs for _, differs in differences(first, first))


@given(st.text(alphabet="ab \n", min_size=1), st.text(alphabet="ab \n"))
def test_spans_cover_long_texts_too(first: str, other: str) -> None:
    long = "word " * 1500
    spans = differences(long + first, long + other)
    assert "".join(text for text, _ in spans) == long + other
    assert not any(differs for _, differs in differences(long + first, long + first))


def test_a_report_of_a_finished_study(study: Study, study_file: Path, cache: Path, tmp_path: Path) -> None:
    """Write the report twice from records on disk, and compare the bytes."""
    runs = tmp_path / "runs"
    finish_study(study, runs, cache)
    for command in ("collect", "report"):
        options = ["--cache", cache] if command == "collect" else ["--out", tmp_path]
        done = kit(command, study_file, "--runs", runs, *options)
        assert done.returncode == 0, done.stderr
    first = (tmp_path / "report.html").read_bytes()
    assert kit("report", study_file, "--runs", runs, "--out", tmp_path).returncode == 0
    assert (tmp_path / "report.html").read_bytes() == first
    text = first.decode()
    assert "In each of the 4 arms with trials to compare, no two trials gave the same adapter." in text
    assert f"qlora-repeat verify tiny-neox/adamw-8bit/1 --study {study_file.name}" in text
    assert str(tmp_path) not in text, "a report may be published"
    assert set(re.findall(r"""\b(?:src|href)=["']?(.)""", markup(text))) == {"#"}, (
        "the page loads nothing from elsewhere"
    )
    rows = collect(at(study, runs, cache))
    assert len(rows) == text.count('<button type="button" class="copy"')


def test_hostile_texts_are_escaped() -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    results = [
        trial(n, model_title=hostile, responses=[Response(hostile, 1, 1, hostile + str(n))]) for n in (1, 2)
    ]
    text = report_html(
        group_arms(results),
        study_name=hostile,
        files=TrialFiles(),
        published=group_arms(read_published(PUBLISHED)),
    )
    seen = Elements()
    seen.feed(text)
    assert seen.scripts == [None, None], "only the page's own scripts"
    assert "img" not in seen.names
    assert "{{ 7 * 7 }}" in markup(text)


def test_lone_surrogates_are_shown_as_their_codes() -> None:
    """Show halves of characters that a model may generate and UTF-8 cannot encode."""
    results = [
        trial(n, model_title="half \ud800", responses=[Response("\udfff", 1, 1, f"\ud83d {n}")])
        for n in (1, 2)
    ]
    page = report_html(group_arms(results), study_name="mine", files=TrialFiles(), published=[]).encode()
    for shown in (r"half \u{d800}", r"\u{dfff}", r"\u{d83d}"):
        assert shown.encode() in page
    for chart in re.findall(rb'<script type="application/json">(.*?)</script>', page):
        json.loads(chart)


def test_the_report_of_a_study_of_the_papers_size_is_small() -> None:
    """Write 56 trials with traces of 4,000 steps and long responses; a mail can carry the report."""
    text = "It is a truth that not one word of this is true. " * 20
    results = [
        trial(
            number,
            f"{model}-{optimizer}-{number}",
            model=model,
            optimizer=optimizer,
            responses=[
                Response(f"prompt {n}", temperature, 1, f"{number} {text}")
                for n in range(4)
                for temperature in (0.1, 1)
            ],
        )
        for model in "abcd"
        for optimizer in ("adamw-8bit", "adamw-32bit")
        for number in range(1, 8)
    ]
    steps = {
        row.name: [
            Step(0),
            *(Step(n, loss=3 + math.sin(n * row.trial)) for n in range(1, 4001)),
        ]
        for row in results
    }
    text = report_html(group_arms(results), study_name="big", files=TrialFiles(steps), published=[])
    assert len(text.encode()) < 3e6


def test_missing_results_give_one_line() -> None:
    with pytest.raises(UsageError, match="no collected results"):
        report_html([], study_name="mine", files=TrialFiles(), published=[])
