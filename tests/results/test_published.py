"""The paper's numbers as data agree with the paper's text, if it is available, and with each other."""

import math
import os
import re
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from support.checkout import ROOT

from qlora_repeat.errors import MissingError
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import TrialResult, read_results, write_results
from qlora_repeat.study.loading import load_study

FOLDER = ROOT / "paper" / "published"
OPTIMIZERS = ("adamw-8bit", "adamw-32bit")
QUOTING = ("gpt-neox-20b", "llama2-7b")
CHATTING = ("gpt-neoxt-chat-20b", "llama2-chat-7b")


@pytest.fixture(scope="module")
def results() -> list[TrialResult]:
    return read_published(FOLDER)


@pytest.fixture(scope="module")
def paper() -> str:
    """Return the paper as plain text, with tabs between the cells of tables."""
    path = os.environ.get("QLORA_REPEAT_PAPER_TEXT")
    if not path:
        pytest.skip("QLORA_REPEAT_PAPER_TEXT does not name a file with the paper's text")
    return Path(path).read_text(encoding="utf-8")


def printed(paper: str, number: int) -> list[list[str]]:
    """Return the rows of one of the paper's tables below its headings."""
    below = paper.split(f"\nTABLE {number} ", 1)[1].split("\n")[1:]
    rows = [[cell.strip() for cell in line.split("\t")] for line in below if "\t" in line]
    wanted = 4 if number == 3 else 7
    is_row = re.compile(r"(GPT|Llama)\S+-\d+B$" if number == 3 else r"[1-7]$")
    return [row for row in rows if is_row.match(row[0])][:wanted]


def cells(name: str) -> dict[tuple[str, ...], list[str]]:
    """Return the values in a file as text, by run, model and optimizer."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    keys = sum(column in ("run", "model", "optimizer") for column in lines[0].split(","))
    rows = [line.split(",") for line in lines[1:]]
    return {tuple(row[:keys]): row[keys:] for row in rows}


@pytest.mark.parametrize(("number", "models"), [(1, QUOTING), (2, CHATTING)])
def test_perplexities_match_the_paper(paper: str, number: int, models: tuple[str, str]) -> None:
    found = {
        (row[0], model, optimizer): [value]
        for row in printed(paper, number)
        for (model, optimizer), value in zip(product(models, OPTIMIZERS), row[1:5], strict=True)
    }
    assert len(found) == 28
    assert cells(f"table-{number:02}.csv") == found


@pytest.mark.parametrize(("number", "models"), [(10, QUOTING), (11, CHATTING)])
def test_seconds_match_the_paper(paper: str, number: int, models: tuple[str, str]) -> None:
    found = {
        (row[0], model, optimizer): row[1 + 2 * place : 3 + 2 * place]
        for row in printed(paper, number)
        for place, (optimizer, model) in enumerate(product(OPTIMIZERS, models))
    }
    assert len(found) == 28
    assert cells(f"table-{number}.csv") == found


def test_memory_matches_the_paper(paper: str) -> None:
    found = {
        (row[0].lower(), optimizer): [value]
        for row in printed(paper, 3)
        for optimizer, value in zip(OPTIMIZERS, row[1:3], strict=True)
    }
    assert {key[0] for key in found} == {"gpt-neox-20b", "llama2-7b", "gpt-neoxt-chat-20b", "llama2-chat-7b"}
    assert cells("table-03.csv") == found


@pytest.mark.parametrize(("number", "model"), [(8, CHATTING[0]), (9, CHATTING[1])])
def test_answers_match_the_paper(paper: str, number: int, model: str) -> None:
    ours = cells(f"table-{number:02}.csv")
    rows = printed(paper, number)
    assert len(rows) * len(OPTIMIZERS) == len(ours) == 14
    latin = str.maketrans("АВС", "ABC")  # some letters in the text are Cyrillic
    for row in rows:
        theirs = [cell.translate(latin) for cell in row[1:5]]
        if theirs[0] and not theirs[1]:  # one cell holds the answers to both instructions
            theirs[1] = theirs[0]
        kinds = ours[row[0], model, "adamw-8bit"] + ours[row[0], model, "adamw-32bit"]
        for cell, kind in zip(theirs, kinds, strict=True):
            if re.fullmatch("[ABCD]?", cell):
                assert kind == (cell or "blank")
            elif kind == "words":
                assert re.fullmatch("[A-Za-z ]+", cell)
                assert max(Counter(cell.split()).values()) == 1
            else:
                assert kind == "degenerate"


def test_base_perplexities_match_the_paper(paper: str) -> None:
    text = paper.split("SECTION IX.")[1].split("SECTION X.")[0]
    number = r"(\d+\.\d+) ± (\d+\.\d+)"
    llama = re.findall(rf"for (Llama2-7B\S*)-hf for (seven) test runs is {number}", text)
    neox = re.search(
        rf"for (GPT\S+) and (GPT\S+) for (seven) test runs are {number} and {number} respectively", text
    )
    assert neox
    first, second, tests, *values = neox.groups()
    found = {
        (name.lower().replace("llama2-7b-chat", "llama2-chat-7b"),): [mean, deviation, {"seven": "7"}[count]]
        for name, count, mean, deviation in [
            *llama,
            (first, tests, *values[:2]),
            (second, tests, *values[2:]),
        ]
    }
    assert cells("base-perplexity.csv") == found


def test_there_is_a_row_for_each_trial_of_the_papers_study(results: list[TrialResult]) -> None:
    study = load_study("paper")
    arms = [
        (name, model.title, study.data[model.data].task, optimizer, run)
        for name, model in study.models.items()
        for optimizer in study.optimizers
        for run in range(1, study.trials + 1)
    ]
    assert len(arms) == 56
    assert [(row.model, row.model_title, row.task, row.optimizer, row.trial) for row in results] == arms
    for row in results:
        assert (row.study, row.status, row.counterpart) == ("published", "done", row.model)
        assert row.software is row.finished is row.adapter_digest is row.peak_memory_bytes is None
        assert row.base_perplexities == [row.base_perplexity] * 7


def test_rows_contain_the_values_of_the_files(results: list[TrialResult]) -> None:
    for row in results:
        quotes = row.model in QUOTING
        key = (str(row.trial), row.model, row.optimizer)
        assert [str(row.perplexity)] == [
            str(float(text)) for text in cells(f"table-{'01' if quotes else '02'}.csv")[key]
        ]
        assert [row.train_seconds, row.test_seconds] == [
            float(text) for text in cells(f"table-{10 if quotes else 11}.csv")[key]
        ]
        assert (row.peak_memory_share is not None) == (row.trial == 1), "Table 3 has one value for an arm"
        if row.peak_memory_share is not None:
            assert 100 * row.peak_memory_share == pytest.approx(float(cells("table-03.csv")[key[1:]][0]))
        if quotes:
            tables = [f"table-0{first + QUOTING.index(row.model)}.csv" for first in (4, 6)]
            answers = [cell for table in tables for cell in cells(table)[key]]
        else:
            answers = cells(f"table-0{8 + CHATTING.index(row.model)}.csv")[key]
        assert [response.answer or response.text.strip(" ()") for response in row.responses] == answers
        assert all(response.answer in (None, *"ABCD") for response in row.responses)


def test_rows_can_be_written_and_read(results: list[TrialResult], tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.jsonl")
    assert read_results(tmp_path / "results.jsonl") == results


def test_files_have_each_row_once_and_valid_values() -> None:
    rows = [[str(run), *arm] for run in range(1, 8) for arm in product(QUOTING + CHATTING, OPTIMIZERS)]
    quoted, chatted = ([row for row in rows if row[1] in models] for models in (QUOTING, CHATTING))
    arms, models = [row[1:] for row in rows if row[0] == "1"], [[name] for name in QUOTING + CHATTING]
    for name, columns, keys in (
        ("table-01.csv", "perplexity", quoted),
        ("table-02.csv", "perplexity", chatted),
        ("table-03.csv", "gpu_memory_percent", arms),
        ("table-08.csv", "instruction_1,instruction_2", [row for row in chatted if row[1] == CHATTING[0]]),
        ("table-09.csv", "instruction_1,instruction_2", [row for row in chatted if row[1] == CHATTING[1]]),
        ("table-10.csv", "train_seconds,test_seconds", quoted),
        ("table-11.csv", "train_seconds,test_seconds", chatted),
        ("base-perplexity.csv", "mean,sd,tests", models),
    ):
        header, *lines = [
            line.split(",") for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()
        ]
        assert header[len(keys[0]) :] == columns.split(","), name
        assert {len(line) for line in lines} == {len(header)}, name
        assert sorted(line[: len(keys[0])] for line in lines) == sorted(keys), name
        for values in (line[len(keys[0]) :] for line in lines):
            if keys == models:
                assert values[1:] == ["0.0", "7"], "read as equal values"
            elif columns.startswith("instruction"):
                assert set(values) <= {*"ABCD", "words", "degenerate", "blank"}, name
            else:
                assert all(0 < float(value) < math.inf for value in values), name


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "published")
    (tmp_path / "published" / "table-08.csv").unlink()
    with pytest.raises(MissingError, match=r"table-08\.csv: no such file"):
        read_published(tmp_path / "published")
