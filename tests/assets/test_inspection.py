"""What is found in the rows of a study before training."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.checkout import kit
from support.own_rows import write_own_study

from qlora_repeat.assets.datasets import data_digest, data_folder
from qlora_repeat.assets.fetch import fetch
from qlora_repeat.assets.inspection import Inspection, inspected, kept_inspection, require_sound
from qlora_repeat.assets.row_checks import positions
from qlora_repeat.errors import UsageError
from qlora_repeat.execution.run_study import fetch_missing
from qlora_repeat.study.workspace import Workspace

QUOTES = [{"quote": f"Is this quote {number}?"} for number in range(10)]
QUESTIONS = [{"instruction": f"Is {number}{number}?", "answer": f"no{number}"} for number in range(10)]


def changed(rows: list[dict[str, str]], number: int, **texts: str) -> list[dict[str, str]]:
    """Return rows with other texts in the row of this number, from 1."""
    return [row | texts if place == number else row for place, row in enumerate(rows, 1)]


def written(
    folder: Path, rows: list[dict[str, str]], replacements: Sequence[tuple[str, str]] = (), **options: Any
) -> Workspace:
    return write_own_study(folder, rows, *replacements, **options)


def test_rows_without_a_flaw_have_lengths_only(tmp_path: Path) -> None:
    found = inspected(write_own_study(tmp_path, QUOTES), "own")
    assert (found.train_rows, found.test_rows, found.counts) == (8, 2, {})
    assert (found.warnings, found.stops) == ([], [])
    assert found.tokens == dict.fromkeys(("min", "median", "p90", "p99", "max"), len("Is this quote 0?"))


SHORTER = ("max_length = 128", "max_length = 8")
FLAWS: dict[str, tuple[list[dict[str, str]], dict[str, Any], dict[str, int], str]] = {
    "an empty text": (
        changed(QUOTES, 3, quote=" "),
        {},
        {"empty_quote": 1, "without_targets": 1},
        "row 3 has no text in quote",
    ),
    "an empty answer": (
        changed(QUESTIONS, 3, answer=""),
        {},
        {"empty_answer": 1},
        "row 3 has no text in answer",
    ),
    "one token": (
        changed(changed(QUOTES, 3, quote="a"), 4, quote="b"),
        {},
        {"without_targets": 2},
        "2 rows (3, 4) have no token to predict; training learns nothing from them",
    ),
    "one letter after a begin token": (changed(QUOTES, 3, quote="a"), {"begin": True}, {}, ""),
    "long rows": (
        QUOTES,
        {"replacements": [SHORTER]},
        {"cut_rows": 10},
        "max_length 8 cuts 10 rows (1, 2, 3, 4, 5, …); the longest row has 16 tokens",
    ),
    "a cut answer": (
        changed(QUESTIONS, 2, answer="yes, it is"),
        {"replacements": [("max_length = 128", "max_length = 10")]},
        {"cut_rows": 1, "cut_answers": 1},
        "max_length 10 cuts the end of the answer of row 2; the longest row has 17 tokens",
    ),
    "lost answers": (
        QUESTIONS,
        {"replacements": [("max_length = 128", "max_length = 5")]},
        {"cut_rows": 10, "lost_answers": 10},
        "max_length 5 cuts off the whole answer of 10 rows",
    ),
    "an answer without its end token": (
        QUESTIONS,
        {"end": True, "replacements": [("max_length = 128", "max_length = 10")]},
        {"cut_rows": 10, "cut_answers": 10, "ended_prompts": 1},
        "cuts the end of the answer of 10 rows",
    ),
    "two begin tokens": (
        QUESTIONS,
        {"begin": True, "template": "<s>{instruction} {answer}"},
        {"doubled_begin": 10},
        "begin with <s> twice (<s><s>); remove it from the template or the text, or set special_t",
    ),
    "two begin tokens in a row": (
        changed(QUOTES, 3, quote="<s>a"),
        {"begin": True},
        {"doubled_begin": 1, "control_tokens": 1},
        "row 3 begins with <s> twice",
    ),
    "two end tokens": (
        QUESTIONS,
        {"end": True, "template": "{instruction} {answer}</s>"},
        {"doubled_end": 10, "ended_prompts": 1},
        "end with </s> twice",
    ),
    "prompts that the tokenizer ends": (
        QUESTIONS,
        {"end": True},
        {"ended_prompts": 1},
        "prompts would end with </s>, which the tokenizer adds to texts; it is left out there",
    ),
    "prompts that the template ends": (
        QUESTIONS,
        {"template": "{instruction}</s>{answer}"},
        {"ended_prompts": 1},
        "1 of 1 prompts end with </s>, after which a model starts a new text",
    ),
    "a prompt that begins itself": (
        QUOTES,
        {"begin": True, "replacements": [('prompts = ["Is"]', 'prompts = ["<s>Is"]')]},
        {"doubled_begin_of_prompts": 1},
        "1 of 1 prompts begin with <s> twice",
    ),
    "control characters": (
        changed(changed(QUOTES, 3, quote="Is\tthis\x00?"), 4, quote="Is caf\ufffd?"),
        {},
        {"control_characters": 2},
        "the text of 2 rows (3, 4) has control characters, such as U+0000",
    ),
    "control tokens": (
        changed(QUOTES, 3, quote="Is </s> this?"),
        {},
        {"control_tokens": 1},
        "the text of row 3 has '</s>', which the tokenizer reads as a control token",
    ),
    "the same rows twice": (
        [QUOTES[0], {"quote": "Is  this quote\n0?"}] * 5,
        {},
        {"in_training_and_test": 2},
        "of the test also occur in training",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_counted_and_told_in_one_line(flaw: str, tmp_path: Path) -> None:
    rows, options, counts, words = FLAWS[flaw]
    found = inspected(written(tmp_path, rows, **options), "own")
    assert found.counts == counts
    assert words in "\n".join(found.warnings)
    assert found.stops == []


def test_a_lost_accuracy_is_told(tmp_path: Path) -> None:
    found = inspected(write_own_study(tmp_path, QUESTIONS, ("max_length = 128", "max_length = 6")), "own")
    assert "no test row keeps its whole answer, so that accuracy is not measured" in found.warnings


STOPS: dict[str, tuple[list[dict[str, str]], dict[str, Any], str]] = {
    "nothing to predict": (
        [{"quote": letter} for letter in "abcdefghij"],
        {},
        "no training row has a token to predict",
    ),
    "a token without an embedding": (
        changed(QUOTES, 3, quote="Is [PAD]?"),
        {"pad": True},
        "row 3 has token 400 ([PAD]), but the base has embeddings of tokens 0 to 399 only",
    ),
    "a template with such a token": (
        QUESTIONS,
        {"pad": True, "template": "{instruction}[PAD]{answer}"},
        "(10 rows in all)",
    ),
    "rows beyond the positions": (
        changed(QUOTES, 3, quote="a" * 100),
        {"architecture": "gpt2"},
        "row 3 has more tokens than the base has positions (64); set max_length to at most 64, it is 128",
    ),
    "responses beyond the positions": (
        QUOTES,
        {"architecture": "gpt2", "replacements": [("max_new_tokens = 4", "max_new_tokens = 64")]},
        "a prompt of 2 tokens and max_new_tokens 64 are more than the base's 64 positions",
    ),
}


@pytest.mark.parametrize("flaw", STOPS)
def test_what_makes_numbers_wrong_stops_a_study(flaw: str, tmp_path: Path) -> None:
    rows, options, words = STOPS[flaw]
    workspace = written(tmp_path, rows, **options)
    with pytest.raises(UsageError) as caught:
        require_sound(workspace, "own")
    assert str(caught.value).startswith("models.own: ")
    assert words in str(caught.value)


def test_a_maximum_length_beyond_the_positions_is_told_if_no_row_is_so_long(tmp_path: Path) -> None:
    exactly = ("max_new_tokens = 4", "max_new_tokens = 63")
    found = inspected(write_own_study(tmp_path, QUOTES, exactly, architecture="gpt2"), "own")
    assert found.warnings == ["max_length 128 is more than the base's 64 positions; no row is"]
    assert found.stops == []


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, None),
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 64, "alibi": True}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 64, "rope_parameters": {"full": {"factor": 2.0}, "local": {}}}, 128),
        (
            {
                "max_position_embeddings": 128,
                "rope_parameters": {"factor": 8.0, "original_max_position_embeddings": 16},
            },
            128,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": {"factor": "many"}}, 64),
    ],
)
def test_positions_are_those_of_the_configuration(settings: dict[str, Any], most: int | None) -> None:
    assert positions(type("Config", (), settings)) == most


def test_a_result_is_kept_beside_the_rows_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = write_own_study(tmp_path, QUOTES)
    before = data_digest(workspace, "rows")
    assert kept_inspection(workspace, "own") is None
    assert inspected(workspace, "own", keep=False) is not None
    assert kept_inspection(workspace, "own") is None
    found = inspected(workspace, "own")
    assert kept_inspection(workspace, "own") == found
    assert data_digest(workspace, "rows") == before
    (path,) = data_folder(workspace, "rows").glob("*/inspection.json")
    path.write_text(path.read_text().replace('"test_rows": 2', '"test_rows": 3'))
    assert kept_inspection(workspace, "own") is None
    assert inspected(workspace, "own") == found


def test_all_rows_count_if_trials_have_splits_of_their_own(tmp_path: Path) -> None:
    few = ("max_new_tokens = 4", "max_new_tokens = 4\nmax_rows = 1")
    fresh = ("split = 42", 'split = "fresh"')
    counts = [
        (found.train_rows, found.test_rows)
        for name, replacements in (("one", [few]), ("own", [few, fresh]))
        for found in [inspected(written(tmp_path / name, QUOTES, replacements), "own")]
    ]
    assert counts == [(1, 1), (8, 2)]


@pytest.mark.parametrize("change", ["template", "max_length", "examples"])
def test_other_settings_are_inspected_again(change: str, tmp_path: Path) -> None:
    workspace = write_own_study(tmp_path, QUOTES)
    inspected(workspace, "own")
    assert kept_inspection(other(workspace, change), "own") is None


def other(workspace: Workspace, change: str) -> Workspace:
    study, model = workspace.study, workspace.study.models["own"]
    if change == "examples":
        evaluation = dataclasses.replace(study.evaluation, examples=1)
        return dataclasses.replace(workspace, study=dataclasses.replace(study, evaluation=evaluation))
    model = (
        dataclasses.replace(model, template="{quote}!")
        if change == "template"
        else dataclasses.replace(model, training=dataclasses.replace(model.training, max_length=8))
    )
    return dataclasses.replace(workspace, study=dataclasses.replace(study, models={"own": model}))


def test_fetch_and_doctor_tell_what_was_found(tmp_path: Path) -> None:
    workspace = write_own_study(tmp_path, QUESTIONS, begin=True, template="<s>{instruction} {answer}")
    folders = ["--cache", tmp_path / "cache"]
    fetched = kit("fetch", workspace.file, *folders)
    assert fetched.returncode == 0, fetched.stderr
    assert "model own: 8 training and 2 test rows of 12 to 12 tokens" in fetched.stdout
    assert "model own: 10 rows (1, 2, 3, 4, 5, …) begin with <s> twice" in fetched.stdout
    seen = kit("doctor", workspace.file, *folders, "--runs", tmp_path / "runs").stdout
    assert "rows             model own: 8 training and 2 test rows" in seen
    assert "begin with <s> twice (<s><s>); remove it from the template or the text" in seen


def test_a_run_inspects_rows_that_an_earlier_version_fetched(tmp_path: Path) -> None:
    workspace, told = write_own_study(tmp_path, changed(QUOTES, 3, quote="")), list[str]()
    for _ in range(2):
        fetch_missing(workspace, told.append)
    assert [line.partition(";")[0] for line in told] == [
        "model own: row 3 has no text in quote",
        "model own: row 3 has no token to predict",
    ]


def test_runs_and_doctor_stop_for_wrong_numbers(tmp_path: Path) -> None:
    workspace = write_own_study(tmp_path, changed(QUOTES, 3, quote="a" * 100), architecture="gpt2")
    told = "models.own: row 3 has more tokens than the base has positions"
    with pytest.raises(UsageError, match=f"^{told}"):
        fetch(workspace, lambda line: None)
    folders = ["--cache", tmp_path / "cache", "--runs", tmp_path / "runs"]
    ended = kit("trial", "own/adamw-8bit/1", "--study", workspace.file, *folders)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"Error: {told}")
    seen = kit("doctor", workspace.file, *folders)
    assert seen.returncode == 3
    assert "stops    rows             model own: row 3 has more tokens" in seen.stdout


def test_a_kept_result_is_json_of_the_type(tmp_path: Path) -> None:
    workspace = write_own_study(tmp_path, QUOTES)
    found = inspected(workspace, "own")
    (path,) = data_folder(workspace, "rows").glob("*/inspection.json")
    assert Inspection(**json.loads(path.read_text())) == found
