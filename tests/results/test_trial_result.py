"""Collected results are written and read, and mistakes in them are reported."""

import dataclasses
import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.trial_result import Response, TrialResult, read_results, write_results

ROW = TrialResult("tiny", "text-generation", "neox", "NeoX", "adamw-8bit", 1, "done")
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)  # line breaks too
COUNT = st.integers(0, 2**63 - 1)
RESPONSES = st.builds(
    Response, prompt=TEXT, temperature=st.floats(), top_p=st.floats(), text=TEXT, answer=st.none() | TEXT
)
ROWS = st.builds(
    TrialResult,
    study=TEXT,
    task=TEXT,
    model=TEXT,
    model_title=TEXT,
    optimizer=TEXT,
    trial=COUNT,
    status=TEXT,
    stale_inputs=st.lists(TEXT, max_size=2),
    randomness=st.none() | TEXT,
    free_sources=st.none() | st.lists(TEXT, max_size=2),
    perplexity=st.none() | st.floats(),
    diverged_at=st.none() | COUNT,
    responses=st.lists(RESPONSES, max_size=3),
    software=st.none() | TEXT,
)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_results_are_read_as_they_were_written(rows: list[TrialResult]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        write_results(rows, path)
        assert repr(read_results(path)) == repr(rows)  # repr, since NaN does not equal NaN
        assert path.read_bytes().count(b"\n") == len(path.read_text().splitlines()) == len(rows)


@pytest.mark.parametrize("text", ["\u2028", "\u2029\x85\x0b\x0c\x1c", "\r\n", "\x00", "🙂", "</s>"])
def test_no_text_breaks_a_line(text: str, tmp_path: Path) -> None:
    row = dataclasses.replace(ROW, responses=[Response("prompt", 1.0, 1.0, text)])
    write_results([row, ROW], tmp_path / "results.jsonl")
    assert read_results(tmp_path / "results.jsonl") == [row, ROW]


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, 0.1 + 0.2, 1e300, -0.0])
def test_numbers_are_exact(value: float, tmp_path: Path) -> None:
    write_results([dataclasses.replace(ROW, final_loss=value)], tmp_path / "results.jsonl")
    (row,) = read_results(tmp_path / "results.jsonl")
    assert row.final_loss is not None
    assert row.final_loss.hex() == value.hex()


def test_a_loss_that_is_not_finite_is_read_as_written(tmp_path: Path) -> None:
    curve = [[0.5, 2.0], [1.0, math.inf], [1.5, math.nan]]
    diverged = dataclasses.replace(ROW, final_loss=math.nan, diverged_at=3, loss_curve=curve)
    write_results([diverged], tmp_path / "results.jsonl")
    (row,) = read_results(tmp_path / "results.jsonl")
    assert row.final_loss is not None
    assert math.isnan(row.final_loss)
    assert repr(row.loss_curve) == repr(curve)


def test_keys_have_the_order_of_the_class(tmp_path: Path) -> None:
    write_results([ROW], tmp_path / "results.jsonl")
    keys = list(json.loads((tmp_path / "results.jsonl").read_text()))
    assert keys == [field.name for field in dataclasses.fields(TrialResult)]


def test_a_file_without_rows_can_be_read(tmp_path: Path) -> None:
    write_results([], tmp_path / "results.jsonl")
    assert read_results(tmp_path / "results.jsonl") == []


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(ROW).items() if name != key}


NESTED = functools.reduce(lambda inner, _: [inner], range(400), [])


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (without("status"), "status"),
        (without("x") | {"perplexitty": 1.0}, "perplexitty"),
        (without("x") | {"responses": [{"prompt": "p", "temperature": 1.0, "top_p": 1.0}]}, "text"),
        (without("x") | {"responses": ["text"]}, "responses.0"),
        (without("x") | {"loss_curve": [[0.5]]}, "loss_curve.0: expected [epochs, loss]"),
        (without("x") | {"loss_curve": [[0.5, 2.0], [1.0, "2.0"]]}, "loss_curve"),
        (without("x") | {"loss_curve": [[math.nan, 2.0]]}, "loss_curve"),
        (without("x") | {"loss_curve": [3.0]}, "loss_curve"),
        (without("x") | {"stale_inputs": [3]}, "stale_inputs"),
        (without("x") | {"stale_inputs": "code"}, "stale_inputs"),
        (without("x") | {"free_sources": [3]}, "free_sources"),
        (without("x") | {"free_sources": "kernels"}, "free_sources"),
        (without("x") | {"responses": [{"prompt": "\ud800"}]}, "half of a surrogate pair"),
        (without("x") | {"model": "\ud800"}, "half of a surrogate pair"),
        (without("x") | {"diverged_at": 10**400}, "needs more than 64 bits"),
        (without("x") | {"diverged_at": -1}, "diverged_at"),
        (without("x") | {"trial": 2**63}, "trial"),
        (without("x") | {"perplexity": 10**400}, "needs more than 64 bits"),
        (without("x") | {"peak_memory_bytes": 1.5}, "peak_memory_bytes"),
        (without("x") | {"stale_inputs": NESTED}, "nested too deeply"),
        ([], "not a row"),
        (None, "not a row"),
        ("row", "not a row"),
    ],
)
def test_the_error_for_a_wrong_row_names_line_and_key(row: Any, word: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results([ROW], path)
    with path.open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")
    with pytest.raises(UsageError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}:3: not a row of collected results")
    assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_error_for_a_truncated_line_names_its_number(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results([ROW, ROW], path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UsageError, match=r"results\.jsonl:2: not a row"):
        read_results(path)


@pytest.mark.parametrize(
    "wrong", [{"perplexity": "12"}, {"trial": "1"}, {"trial": None}, {"status": 3}, {"model": None}]
)
def test_the_error_for_a_value_of_another_type_names_line_and_key(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(ROW) | wrong) + "\n")
    with pytest.raises(UsageError, match=rf"results\.jsonl:1: .*{next(iter(wrong))}"):
        read_results(path)


def test_more_rows_than_a_study_can_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("{}\n" * 10_002)
    with pytest.raises(UsageError, match=r"10,003 lines; a study has at most 10,000 trials"):
        read_results(path)
    path.write_text("\n" * 600_000)
    with pytest.raises(UsageError, match=r"not readable \(more than 500,000 lines\)"):
        read_results(path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"results\.jsonl"):
        read_results(tmp_path / "results.jsonl")


def test_the_error_for_missing_results_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError, match=r"results\.jsonl: no collected results; run `qlora-repeat collect`"
    ):
        read_results(tmp_path / "results.jsonl")
