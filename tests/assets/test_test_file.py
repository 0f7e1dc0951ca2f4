"""Test rows in a file of their own: no split is drawn, and the file is locked like the other one."""

import json
from pathlib import Path

import pytest
from support.own_rows import write_own_study
from support.places import at

from qlora_repeat.assets.datasets import part_rows, study_prompts
from qlora_repeat.assets.fetch import needed, prepare_data
from qlora_repeat.assets.inspection import inspected
from qlora_repeat.errors import KitError
from qlora_repeat.planning.plan import train_examples
from qlora_repeat.study.workspace import Workspace

ROWS = [{"instruction": f"Is {number} odd?", "answer": "no"} for number in range(10)]
TESTS = [{"instruction": f"Is {number} odd?", "answer": "yes"} for number in (20, 21)]
OWN = ("prompts = [", 'test_file = "tests.jsonl"\nprompts = [')


def written(folder: Path, tests: list[dict[str, str]]) -> Workspace:
    folder.mkdir(exist_ok=True)
    (folder / "tests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    return write_own_study(folder, ROWS, OWN)


def test_no_split_is_drawn_from_rows_with_a_test_file(tmp_path: Path) -> None:
    workspace = written(tmp_path, TESTS)
    for seed in (1, 2):
        assert part_rows(workspace, "rows", "train", seed) == ROWS
        assert part_rows(workspace, "rows", "test", seed) == TESTS
    assert [each.shown for each in study_prompts(workspace, "own", 1)] == [TESTS[0]["instruction"]]
    assert train_examples(workspace.study.data["rows"]) == len(ROWS)


def test_rows_that_are_in_both_files_are_reported(tmp_path: Path) -> None:
    found = inspected(written(tmp_path, [*TESTS, ROWS[3]]), "own")
    assert (found.train_rows, found.test_rows) == (10, 3)
    assert found.counts["in_training_and_test"] == 1


def test_another_test_file_is_noticed(tmp_path: Path) -> None:
    workspace = written(tmp_path, TESTS)
    assert all(item.present for item in needed(workspace))
    with (tmp_path / "tests.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(KitError, match=r"tests\.jsonl: SHA-256 is .*delete the entry data\.rows"):
        prepare_data(workspace, "rows")


def test_a_test_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"empty|no rows"):
        written(tmp_path, [])
    assert at(tmp_path / "own.toml", tmp_path, tmp_path).study.data["rows"].has_test
