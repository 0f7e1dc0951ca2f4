"""The split, the tokens, and the prompts of a study's data."""

import dataclasses
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.own_rows import write_own_study
from support.places import NO_RUNS, at
from support.tiny import tiny_tokenizer, write_study

from qlora_repeat.assets.dataset_builders import corpus_rows
from qlora_repeat.assets.datasets import (
    ROWS,
    Part,
    batch_order,
    data_digest,
    data_folder,
    encode,
    instruction_text,
    part_rows,
    read_rows,
    split_rows,
    study_prompts,
    text_of,
)
from qlora_repeat.assets.fetch import prepare_data
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Row
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import stream_seed
from qlora_repeat.study.study import Study

NAMES = ["quotes", "instructions"]
PARTS: list[Part] = ["train", "test"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def own_cache(cache: Path, tmp_path: Path) -> Path:
    """Return a copy of the data in the cache, which a test may damage."""
    shutil.copytree(cache / "data", tmp_path / "cache" / "data")
    return tmp_path / "cache"


@pytest.mark.parametrize("name", NAMES)
def test_the_split_is_80_to_20_and_loses_nothing(study: Study, cache: Path, name: str) -> None:
    train, test = (part_rows(at(study, NO_RUNS, cache), name, part, 42) for part in PARTS)
    assert (len(train), len(test)) == (48, 12)
    every = corpus_rows(study.data[name])
    assert sorted(map(str, train + test)) == sorted(map(str, every))
    assert [row for row in test if row in train] == []
    assert train + test != every, "not shuffled"


@pytest.mark.parametrize(("rows", "share"), [(2, 0.2), (7, 0.5), (60, 0.2), (99, 1 / 3), (1000, 0.05)])
def test_the_split_is_that_of_the_library_of_datasets(rows: int, share: float, study: Study) -> None:
    import datasets

    data = dataclasses.replace(study.data["quotes"], test_share=share, prompts=[])
    texts: list[Row] = [{"quote": f"quote {number}"} for number in range(rows)]
    for seed in (1, 42):
        drawn = datasets.Dataset.from_list(texts).train_test_split(share, seed=stream_seed(seed, "split"))
        assert split_rows(data, texts, seed) == {part: list(drawn[part]) for part in PARTS}


def test_a_split_without_rows_to_train_on_is_refused(study: Study) -> None:
    data = dataclasses.replace(study.data["quotes"], test_share=0.9)
    with pytest.raises(UsageError, match=r"test_share: of 2 rows, 0\.9 leaves none to train on"):
        split_rows(data, [{"quote": "one"}, {"quote": "two"}], 1)


def test_the_split_does_not_depend_on_what_ran_before(study: Study, cache: Path, tmp_path: Path) -> None:
    for state in (1, 2):
        np.random.seed(state)
        random.seed(state)
        torch.manual_seed(state)
        prepare_data(at(study, NO_RUNS, tmp_path / str(state)), "quotes")
        assert part_rows(at(study, NO_RUNS, tmp_path / str(state)), "quotes", "test", 42) == part_rows(
            at(study, NO_RUNS, cache), "quotes", "test", 42
        )


def test_another_split_seed_gives_another_split_of_the_same_rows(study: Study, cache: Path) -> None:
    one, two = (
        [part_rows(at(study, NO_RUNS, cache), "quotes", part, seed) for part in PARTS] for seed in (42, 43)
    )
    assert one[1] != two[1]
    assert sorted(map(str, one[0] + one[1])) == sorted(map(str, two[0] + two[1]))


def test_every_epoch_has_every_example_once_in_its_own_order() -> None:
    order = batch_order(10, 4, 7, 42)
    assert [len(batch) for batch in order] == [4, 4, 2, 4, 4, 2, 4]
    epochs = [[*order[start], *order[start + 1], *order[start + 2]] for start in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert batch_order(10, 4, 3, 42) == order[:3]
    assert batch_order(10, 4, 7, 43) != order


def test_other_rows_than_the_study_expects_are_refused(tmp_path: Path) -> None:
    changed = load_study(str(write_study(tmp_path, ("\nseed = 1", "\nseed = 2"))))
    with pytest.raises(MissingError, match=r"data quotes: .* study tiny expects \w{64}; install the locked"):
        prepare_data(at(changed, NO_RUNS, tmp_path / "cache"), "quotes")
    assert data_digest(at(changed, NO_RUNS, tmp_path / "cache"), "quotes") is None


def test_missing_data_are_refused_with_the_command_that_fetches_them(study: Study, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"data quotes are missing; run `qlora-repeat fetch "):
        read_rows(at(study, NO_RUNS, tmp_path), "quotes")


def test_a_changed_file_is_named(study: Study, own_cache: Path) -> None:
    path = data_folder(at(study, NO_RUNS, own_cache), "quotes") / ROWS
    path.write_text(path.read_text(encoding="utf-8").replace("e", "E", 1), encoding="utf-8")
    with pytest.raises(MissingError, match=r"rows\.jsonl was changed; delete the folder and run"):
        read_rows(at(study, NO_RUNS, own_cache), "quotes")


def without_rows(folder: Path) -> None:
    (folder / ROWS).unlink()


def not_utf8(folder: Path) -> None:
    (folder / ROWS).write_bytes(b"\xff")


def a_fifo(folder: Path) -> None:
    (folder / ROWS).unlink()
    os.mkfifo(folder / ROWS)


@pytest.mark.parametrize("damage", [without_rows, not_utf8, a_fifo])
def test_changed_data_are_refused_with_other_advice_than_missing_data(
    study: Study, own_cache: Path, damage: Any
) -> None:
    damage(data_folder(at(study, NO_RUNS, own_cache), "quotes"))
    assert data_digest(at(study, NO_RUNS, own_cache), "quotes") is not None, "so `fetch` accepts them"
    with pytest.raises(MissingError, match="delete the folder"):
        read_rows(at(study, NO_RUNS, own_cache), "quotes")


def test_the_answer_starts_at_the_mark(study: Study, cache: Path, tokenizer: Any) -> None:
    model = study.models["tiny-llama-chat"]
    rows = part_rows(at(study, NO_RUNS, cache), "instructions", "test", 42)
    for row, example in zip(rows, encode(tokenizer, model, rows), strict=True):
        before, after = example.ids[: example.answer_start], example.ids[example.answer_start :]
        assert tokenizer.decode(after).lstrip(" ") == f"{row['answer']}</s>"
        assert tokenizer.decode(before) == instruction_text(model, row).rstrip(" ")


def test_a_quote_has_no_answer(study: Study, cache: Path, tokenizer: Any) -> None:
    rows = part_rows(at(study, NO_RUNS, cache), "quotes", "test", 42)
    examples = encode(tokenizer, study.models["tiny-neox"], rows)
    assert [example.row for example in examples] == list(range(len(rows)))
    assert all(example.answer_start == len(example.ids) for example in examples)
    assert [tokenizer.decode(example.ids) for example in examples] == [row["quote"] for row in rows]


def test_long_rows_are_truncated_with_their_answer(study: Study, cache: Path, tokenizer: Any) -> None:
    model = study.models["tiny-llama-chat"]
    model = dataclasses.replace(model, training=dataclasses.replace(model.training, max_length=10))
    for example in encode(tokenizer, model, part_rows(at(study, NO_RUNS, cache), "instructions", "test", 42)):
        assert len(example.ids) == example.answer_start == 10


def test_braces_in_a_row_stay(study: Study) -> None:
    row = {"instruction": "What is {answer}?", "answer": "{0}"}
    assert (
        text_of(None, study.models["tiny-llama-chat"], row).text
        == "<s><INST> What is {answer}? </INST> {0}</s>"
    )


def test_prompts_of_text_generation_are_unchanged(study: Study, cache: Path) -> None:
    prompts = study_prompts(at(study, NO_RUNS, cache), "tiny-neox", 42)
    assert [prompt.shown for prompt in prompts] == study.data["quotes"].prompts
    assert [prompt.fed for prompt in prompts] == study.data["quotes"].prompts
    assert not any(prompt.has_options for prompt in prompts)


def test_questions_are_found_in_the_test_part_by_their_beginning(study: Study, cache: Path) -> None:
    legs, gcd = study_prompts(at(study, NO_RUNS, cache), "tiny-llama-chat", 42)
    asked = [row["instruction"] for row in part_rows(at(study, NO_RUNS, cache), "instructions", "test", 42)]
    assert legs.shown == next(text for text in asked if text.startswith("Your task is to count"))
    assert gcd.shown == next(text for text in asked if text.startswith("Find the Greatest"))
    assert (legs.has_options, gcd.has_options) == (True, False)
    assert legs.fed == f"<s><INST> {legs.shown} </INST>", (
        "without the space before the answer, which belongs to its token"
    )


def test_a_prompt_that_no_row_begins_with_is_named(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, ("Find the Greatest", "Find the Smallest"))))
    prepare_data(at(study, NO_RUNS, tmp_path), "instructions")
    words = r"data\.instructions\.prompts: no row of the test part begins with 'Find the Smallest'"
    with pytest.raises(UsageError, match=words):
        study_prompts(at(study, NO_RUNS, tmp_path), "tiny-llama-chat", 42)


def test_without_prompts_rows_with_text_are_asked_whatever_they_begin_with(tmp_path: Path) -> None:
    rows = [{"instruction": ' "Why?"', "answer": "a"}, {"instruction": " ", "answer": "b"}] * 5
    workspace = write_own_study(tmp_path, rows, ('prompts = ["Is"]', "test_share = 0.8"))
    assert [prompt.shown for prompt in study_prompts(workspace, "own", 42)] == [' "Why?"'] * 2


def questions(asked: dict[int, str]) -> list[Row]:
    """Return forty questions, with prompts for the named ones."""
    return [
        {"instruction": asked.get(number, f"Question {number}?"), "answer": str(number)}
        for number in range(40)
    ]


def split_asking(study: Study, *prompts: str, asked: dict[int, str]) -> dict[Part, list[Row]]:
    """Return the split of those questions in a study with those prompts."""
    data = dataclasses.replace(study.data["instructions"], prompts=list(prompts))
    return split_rows(data, questions(asked), 42)


def places(parts: dict[Part, list[Row]]) -> dict[Part, list[int]]:
    """Return the numbers of the questions of each part."""
    return {part: [int(row["answer"]) for row in rows] for part, rows in parts.items()}


def drawn(study: Study) -> dict[Part, list[int]]:
    """Return the split of the questions without prompts."""
    return places(split_asking(study, "No question begins so", asked={}))


@pytest.mark.parametrize(("one", "two"), [("train", "train"), ("train", "test"), ("test", "train")])
def test_rows_of_prompts_are_moved_to_the_test_part(study: Study, one: Part, two: Part) -> None:
    before = drawn(study)
    first, second = before[one][0], before[two][-1]
    asked = {first: "Tommy: Many", second: "If you have no"}
    parts = split_asking(study, "If you have", "Tommy:", asked=asked)
    after = places(parts)
    assert {first, second} <= set(after["test"])
    assert [len(part) for part in after.values()] == [len(part) for part in before.values()] == [32, 8]
    assert sorted(after["train"] + after["test"]) == list(range(40))
    moved = [part for part in (one, two) if part == "train"]
    for part in PARTS:
        changed = [old for old, new in zip(before[part], after[part], strict=True) if old != new]
        assert len(changed) == len(moved), "only the necessary rows change places"
    assert places(split_asking(study, "If you have", "Tommy:", asked=asked)) == after


def test_the_split_is_unchanged_if_the_rows_of_prompts_are_in_the_test_part(study: Study) -> None:
    before = drawn(study)
    asked = {before["test"][0]: "Tommy: Many", before["test"][1]: "If you have no"}
    assert places(split_asking(study, "If you have", "Tommy:", asked=asked)) == before


def test_one_of_several_rows_with_the_same_beginning_is_enough(study: Study) -> None:
    before = drawn(study)
    asked = {before["test"][3]: "Tommy: one", before["train"][0]: "Tommy: two"}
    assert places(split_asking(study, "Tommy:", asked=asked)) == before


def test_more_prompts_than_test_rows_leave_the_split_unchanged(study: Study) -> None:
    asked = {number: f"Asked {number:02}" for number in range(40)}
    prompts = [f"Asked {number:02}" for number in range(40)]
    assert places(split_asking(study, *prompts, asked=asked)) == drawn(study)


def test_the_quote_of_a_prompt_is_in_the_test_part_too(study: Study) -> None:
    """Find the quote with any quotation marks."""
    quotes = [{"quote": f"Quote {number}."} for number in range(40)]
    trained = split_rows(study.data["quotes"], quotes, 42)["train"][0]
    quotes[quotes.index(trained)] = asked = {"quote": "“Your silence will be kept.”"}
    parts = split_rows(study.data["quotes"], quotes, 42)
    assert asked in parts["test"]
    assert (len(parts["train"]), len(parts["test"])) == (32, 8)
