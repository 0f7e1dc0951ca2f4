"""Tidy files of any tool: formats, columns, arms and seeds, and what is no such file."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from qlora_repeat.errors import KitError
from qlora_repeat.results.tidy_file import read_tidy

ROWS = [
    {"arm": arm, "seed": seed, "accuracy": 0.5 + seed / 100, "note": "x"}
    for arm in "ab"
    for seed in (1, 2, 3)
]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"own.{kind}"
    if kind == "csv":
        lines = [",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS)]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_all_formats_say_the_same(kind: str, tmp_path: Path) -> None:
    found = read_tidy(write(tmp_path, kind))
    assert list(found) == ["a", "b"]
    assert (found["b"].metric, found["b"].values, found["b"].seeds) == (
        "accuracy",
        [0.51, 0.52, 0.53],
        ["1", "2", "3"],
    )


def test_without_arms_and_seeds_there_is_one_arm(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("perplexity,loss\n1.5,2\nnan,3\n,4\n")
    found = read_tidy(path)["mine"]
    assert (found.metric, found.values[0], len(found.values), found.seeds) == ("perplexity", 1.5, 2, None)
    assert found.values[1] != found.values[1], "a run that diverged is a value, an empty cell is none"
    assert read_tidy(path, "loss")["mine"].values == [2, 3, 4]


WRONG = {
    "another format.txt": (b"a", "expected a file that ends in .csv, .jsonl, .parquet"),
    "nothing.csv": (b"", "0 rows and 0 columns"),
    "two columns.csv": (b"x,y\n1,2\n", "choose a column with --metric; those with numbers: x, y"),
    "words.csv": (b"arm,seed\na,b\n", "those with numbers: none"),
    "more values.csv": (b"x\n1,2\n", "line 2 has more values than columns"),
    "no UTF-8.csv": (b"x\n\xff\n", "cannot be read as csv"),
    "a list.jsonl": (b"[1]\n", "row 1 is no object"),
    "no JSON.jsonl": (b"{\n", "cannot be read as jsonl"),
    "deep.jsonl": (b"[" * 100_000, "cannot be read as jsonl"),
    "no Parquet.parquet": (b"PAR1PAR1", "cannot be read as parquet"),
    "a seed twice.csv": (b"seed,x\n1,2\n1,3\n", "arm a seed twice has two rows of seed 1"),
    "an arm that is a list.jsonl": (b'{"arm": [1], "x": 1}\n', "row 1, column arm: expected a name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_tidy_file_gives_one_line(name: str, tmp_path: Path) -> None:
    content, words = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KitError) as caught:
        read_tidy(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_must_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("x,y\n1,2\nhigh,3\n")
    with pytest.raises(KitError, match="row 2, column x: 'high' is no number"):
        read_tidy(tmp_path / "own.csv", "x")
    with pytest.raises(KitError, match="no column z; those with numbers: y"):
        read_tidy(tmp_path / "own.csv", "z")
    with pytest.raises(KitError, match="no such file"):
        read_tidy(tmp_path / "none.csv")
