"""A classification and a summarization: trials of a tiny study, what they record, and what contradicts it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.scored import scored_workspace
from support.trials import outputs, quiet

from qlora_repeat.analysis.verify.rerun import read_recorded
from qlora_repeat.assets.answer_rows import data_labels
from qlora_repeat.assets.base_models import base_folder, load_full, load_tokenizer
from qlora_repeat.assets.datasets import part_rows
from qlora_repeat.assets.inspection import inspected
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.records.stage_inputs import stage_settings
from qlora_repeat.results.collect import collect
from qlora_repeat.stages.answers import generate
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.trial import STAGES, Trial
from qlora_repeat.study.workspace import Workspace

CLASSIFIER, WRITER = "tiny-neox/adamw-8bit/1", "tiny-llama-chat/adamw-8bit/1"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return the study, in which the first trial of each task has run with fixed seeds."""
    found = scored_workspace(tmp_path_factory.mktemp("scored"))
    for name in (CLASSIFIER, WRITER):
        run_trial(found.trial(name), STAGES, quiet)
    return found


@pytest.mark.parametrize("name", [CLASSIFIER, WRITER])
def test_a_trial_of_each_task_repeats_bit_for_bit(name: str, workspace: Workspace, tmp_path: Path) -> None:
    again = dataclasses.replace(workspace, runs=tmp_path).trial(name)
    run_trial(again, STAGES[:3], quiet)
    assert outputs(again, "evaluate") == outputs(workspace.trial(name), "evaluate")


def test_the_record_has_each_answer_with_its_reference(workspace: Workspace) -> None:
    trial = workspace.trial(CLASSIFIER)
    answers = outputs(trial, "evaluate")["answers"]
    rows = part_rows(workspace, trial.model.data, "test", outputs(trial)["seeds"]["split"])[:5]
    assert [each["reference"] for each in answers["examples"]] == [row["answer"] for row in rows]
    assert answers["labels"] == ["dark green", "green", "red"]
    assert answers["left_out"] == 0


def test_scores_of_trial_and_base_are_collected(workspace: Workspace) -> None:
    for test in workspace.base_tests():
        run_base_test(test, quiet)
    rows = {row.name: row for row in collect(workspace)}
    for name, scores in (
        (CLASSIFIER, {"accuracy", "macro_f1", "without_label"}),
        (WRITER, {"rouge1", "rouge2", "rougeL"}),
    ):
        assert rows[name].status == "done"
        assert rows[name].scores.keys() == rows[name].base_scores.keys() == scores
        assert rows[name].scored_answers == (5 if name == CLASSIFIER else 4)


def test_padding_on_the_left_does_not_change_the_likeliest_tokens(workspace: Workspace) -> None:
    for name in ("tiny-neox", "tiny-llama"):
        folder = base_folder(workspace, name)
        model, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
        prompts = [tokenizer(text)["input_ids"] for text in ("The sky is", "A much longer beginning of it")]
        found = generate(model, tokenizer, prompts, length=12, new_tokens=5, stop=None)
        assert found == generate(model, tokenizer, prompts, length=12, new_tokens=5, stop=None)
        for ids, text in zip(prompts, found, strict=True):
            own = list(ids)
            for _ in range(5):
                own.append(int(model(torch.tensor([own])).logits[0, -1].argmax()))
            assert text == tokenizer.decode(own[len(ids) :], skip_special_tokens=True)


def test_an_answer_ends_before_the_stop_text(workspace: Workspace) -> None:
    folder = base_folder(workspace, "tiny-neox")
    model, tokenizer = load_full(folder, "float32"), load_tokenizer(folder)
    (whole,) = generate(model, tokenizer, [[1, 2, 3]], length=4, new_tokens=6, stop=None)
    stop = whole[3:6]
    assert generate(model, tokenizer, [[1, 2, 3]], length=4, new_tokens=6, stop=stop) == [
        whole.partition(stop)[0]
    ]


def _better(answers: dict[str, Any]) -> None:
    answers["scores"]["accuracy"] = 0.875


def _all_right(answers: dict[str, Any]) -> None:
    for each in answers["examples"]:
        each["text"] = each["reference"]


def _no_label(answers: dict[str, Any]) -> None:
    answers["examples"][0]["reference"] = "blue"


def _told(trial: Trial, lie: Callable[[dict[str, Any]], None], scratch: Path) -> list[str]:
    """Return the contradictions in a trial's files after a change to its answers, which is undone."""
    path = trial.record("evaluate")
    record, content = read_record(path), path.read_bytes()
    assert record is not None
    outputs = json.loads(json.dumps(record.outputs))
    lie(outputs["answers"])
    write_record(path, dataclasses.replace(record, outputs=outputs))
    try:
        return read_recorded(trial, trial.folder, scratch).contradictions
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (lambda answers: None, []),
        (_better, ["The record of the evaluation has another score accuracy than its answers give."]),
        (_no_label, ["The record of the evaluation has answers whose reference is no label."]),
    ],
)
def test_scores_that_do_not_follow_from_the_answers_are_found(
    lie: Callable[[dict[str, Any]], None], found: list[str], workspace: Workspace, tmp_path: Path
) -> None:
    assert _told(workspace.trial(CLASSIFIER), lie, tmp_path) == found


def test_answers_that_were_made_right_contradict_their_scores(workspace: Workspace, tmp_path: Path) -> None:
    for name, score in ((CLASSIFIER, "accuracy"), (WRITER, "rouge1")):
        assert any(f"score {score}" in each for each in _told(workspace.trial(name), _all_right, tmp_path))


def test_a_text_without_bounds_is_no_record(workspace: Workspace, tmp_path: Path) -> None:
    def lie(answers: dict[str, Any]) -> None:
        answers["examples"][0]["text"] = "x" * 10_000

    with pytest.raises(MissingError, match=r"outputs\.answers\.examples"):
        _told(workspace.trial(CLASSIFIER), lie, tmp_path)


def test_only_tasks_with_scores_depend_on_the_shape_of_batches(
    workspace: Workspace, study_file: Path
) -> None:
    assert "answers" in stage_settings(workspace.trial(CLASSIFIER), "evaluate")
    plain = dataclasses.replace(workspace, study=load_study(str(study_file)))
    assert "answers" not in stage_settings(plain.trial(CLASSIFIER), "evaluate")


def test_long_prompts_stop_if_no_row_is_left(workspace: Workspace) -> None:
    evaluation = workspace.study.evaluation
    answers = dataclasses.replace(evaluation.answers, prompt_length=2)
    evaluation = dataclasses.replace(evaluation, answers=answers)
    study = dataclasses.replace(workspace.study, evaluation=evaluation)
    (stop,) = inspected(dataclasses.replace(workspace, study=study), "tiny-neox", keep=False).stops
    assert "no answer can be scored" in stop
    assert "more than 2 tokens" in stop


@pytest.mark.parametrize(
    ("answers", "problem"),
    [(["one"] * 9, "found 1"), (["a", "A"] * 9, "differ only in case"), (["a", "b", " "] * 3, "has none")],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    answers: list[str], problem: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": "x", "answer": answer} for answer in answers]
    monkeypatch.setattr("qlora_repeat.assets.answer_rows.read_rows", lambda *given: rows)
    with pytest.raises(UsageError, match=problem):
        data_labels(workspace, "quotes")
