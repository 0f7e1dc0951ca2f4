"""Fortunes with their category as the label."""

import re
from collections import Counter

import pytest

from qlora_repeat.assets.dataset_builders import corpus_rows
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Data, Task


def _data(*categories: str, rows: int = 9, task: Task = "classification") -> Data:
    return Data(task, "fortunes", rows, seed=1, families=list(categories))


def test_categories_have_equal_shares_of_different_rows_without_authors() -> None:
    rows = corpus_rows(_data("food", "law", "love", rows=90))
    assert Counter(row["answer"] for row in rows) == {"food": 30, "law": 30, "love": 30}
    assert len({row["instruction"] for row in rows}) == 90
    assert not any(re.search(r" -- [A-Z][a-z]+ [A-Z][a-z]+$", row["instruction"]) for row in rows)
    assert corpus_rows(_data("food", "law", "love", rows=90)) == rows


def test_an_unknown_category_or_too_many_rows_are_named() -> None:
    with pytest.raises(UsageError, match="no category 'sports'; known: art, computers"):
        corpus_rows(_data("food", "sports"))
    with pytest.raises(MissingError, match=r"category food .*expected 500 fortunes, found"):
        corpus_rows(_data("food", "law", rows=1000))


def test_a_source_is_for_its_tasks() -> None:
    with pytest.raises(ValueError, match="at least two categories"):
        _data("food")
    with pytest.raises(ValueError, match="fortunes is for text-generation, classification"):
        _data("food", "law", task="summarization")
