"""Read the columns of data files, in a process of its own, which a stranger's file may crash or fill.

JSON and CSV are read by the standard library, Parquet by pyarrow. The builders of `datasets` guess: they turn
columns of ISO dates into timestamps, `None`, `NA` and `007` of a CSV file into nothing and numbers, and
brackets or ``::`` in a path into patterns. Here, a value is the text that stands in the file. All values of a
CSV or text file are text, and numbers of JSON stay as they are written; a column of Parquet must be text. No
scratch files are needed: the request and the answer go through pipes.
"""

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from qlora_repeat.system.files import megabytes
from qlora_repeat.system.memory import memory_limit

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
"""How compressed files begin."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MOST_NAMES = 100
"""Names of columns in a message."""
_LONGEST_NAME = 100
_MISSING, _TWICE = ["missing"], ["several values under the same key"]
"""Words on values that a row does not have, or has more than once."""
_BLANKS = re.compile("[\\s\ufeff]*")
"""Between rows; a file that was joined from several may have a byte-order mark in it."""

_Row = Mapping[str, Any]


def read_columns(
    kind: str,
    files: Sequence[Path],
    wanted: Sequence[str],
    rows: int,
    largest: int,
    memory: int,
    nested: Sequence[str] = (),
) -> dict[str, Any]:
    """Return columns of the files of a data set.

    Args:
        kind: json (also JSON Lines), csv, parquet, or text, whose paragraphs are rows with a column ``text``.
        rows: if not 0, return no values if there is another number of rows.
        largest: the most bytes of the files, and of the values.
        memory: the most bytes that reading may need.
        nested: the wanted columns whose lists are returned as JSON.

    Returns:
        The names of the ``columns``, the number of ``rows``, and the ``values`` row by row, if all wanted
        columns are there. A value that is not text is a list with words on it.

    Raises:
        ValueError: the files cannot be read as this kind, or are too large.
        OSError: a file cannot be read.
    """
    asked = {
        "kind": kind,
        "files": [str(path) for path in files],
        "wanted": list(wanted),
        "rows": rows,
        "largest": largest,
        "memory": memory,
        "nested": list(nested),
    }
    answer, code = _run(json.dumps(asked).encode(), 6 * largest + 1_000_000)
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ValueError(f"the library that reads it ended with {how}") from None
    if "errno" in found:
        raise OSError(found["errno"], os.strerror(found["errno"]), found["file"])
    if "error" in found:
        raise ValueError(found["error"])
    return found


def _run(request: bytes, most: int) -> tuple[bytes, int]:
    """Return what the process answers, at most this many bytes, and its exit code."""
    command = [sys.executable, "-P", "-m", "qlora_repeat.assets.row_reader"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(request)
            # JSON needs about as many bytes as the values, but six for a control character.
            answer = process.stdout.read(most)
        except BaseException:
            process.kill()
            raise
    return answer, process.returncode


def _answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    unreadable: tuple[type[Exception], ...] = (ValueError, csv.Error, MemoryError)
    if asked["kind"] == "parquet":
        from pyarrow import ArrowException, parquet  # noqa: F401 (before the limit)

        unreadable += (ArrowException,)
    try:
        with memory_limit(asked["memory"]):
            return _read(asked)
    except OSError as error:
        if error.errno is not None:  # errors of pyarrow have no number
            return {"errno": error.errno, "file": error.filename}
        return {"error": " ".join(str(error).split())}
    except RecursionError:
        return {"error": "its values are nested too deeply"}
    except unreadable as error:
        return {"error": " ".join(str(error).split()) or "it needs too much memory"}


def _read(asked: Mapping[str, Any]) -> dict[str, Any]:
    wanted, largest = asked["wanted"], asked["largest"]
    files = [Path(path) for path in asked["files"]]
    csv.field_size_limit(largest)
    for path in files:
        _require_plain(path)
    _require_small(sum(path.stat().st_size for path in files), largest)
    columns, values = dict[str, None](), list[list[Any]]()
    count = size = 0
    for path in files:
        for row in _rows(asked["kind"], path, wanted):
            count += 1
            for name in row:
                if name in wanted or len(columns) < _MOST_NAMES:
                    columns[name if name in wanted else name[:_LONGEST_NAME]] = None
            if asked["rows"] and count > asked["rows"]:
                values.clear()
                continue
            values.append([_text(row.get(column, _MISSING), column in asked["nested"]) for column in wanted])
            size += sum(len(value.encode()) for value in values[-1] if isinstance(value, str))
            _require_small(size, largest)
    if not columns:
        raise ValueError("it is empty")
    found = {"columns": list(columns), "rows": count}
    complete = count == (asked["rows"] or count) and columns.keys() >= {*wanted}
    return found | ({"values": values} if complete else {})


def _rows(kind: str, path: Path, wanted: Sequence[str]) -> Iterator[_Row]:
    try:
        yield from _READERS[kind](path, wanted)
    except UnicodeDecodeError:
        raise ValueError(_where_not_utf8(path)) from None


def _where_not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}: byte 0x{line[error.start]:02x} is not UTF-8"
    return "it has text that is not UTF-8"


def _text(value: Any, is_nested: bool) -> str | list[str]:
    """Return a text as it is, a list as JSON if it may be one, and a list with words on anything else."""
    if value is _MISSING or value is _TWICE:
        return value
    if value is None:
        return ["nothing (null)"]
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_nested and isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if not isinstance(value, str):
        return [repr(value)[:200]]
    try:
        value.encode()
    except UnicodeEncodeError:
        return ["text with half of a surrogate pair"]
    return value


def _require_plain(path: Path) -> None:
    """Raise ValueError for a file that is compressed, whose rows could be much larger, or in UTF-16."""
    with path.open("rb") as file:
        start = file.read(10)
    for begin, name in _COMPRESSED.items():
        if start.startswith(begin):
            raise ValueError(f"it is compressed ({name})")
    if start.startswith(_UTF16):
        raise ValueError("it is in UTF-16; expected UTF-8")


def _require_small(size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"its rows are larger than {megabytes(largest)}")


def _open(path: Path, newline: str | None) -> TextIO:
    return path.open(encoding="utf-8-sig", newline=newline)  # without a byte-order mark


def _json_rows(path: Path, wanted: Sequence[str]) -> Iterator[_Row]:
    """Yield objects: those of a list, or one after another, such as one on each line."""
    with _open(path, "\n") as file:
        rows = (
            row for value in _json_values(file) for row in (value if isinstance(value, list) else [value])
        )
        for number, row in enumerate(rows, 1):
            if isinstance(row, dict):
                yield row
            elif isinstance(row, str) and not isinstance(row, _Number):  # of a list of texts
                yield {"text": row}
            else:
                raise ValueError(f"row {number} has no columns, it is {repr(row)[:50]}")


def _json_values(file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        try:
            value = [] if _after_blanks(line, 0) == len(line) else _JSON.decode(line)
        except json.JSONDecodeError:  # a value on several lines, several values on a line, or a mistake
            yield from _following_values(line + file.read(), number)
            return
        yield value


def _following_values(text: str, first_line: int) -> Iterator[Any]:
    place = _after_blanks(text, 0)
    while place < len(text):
        try:
            value, place = _JSON.raw_decode(text, place)
        except json.JSONDecodeError as error:
            where = f"line {first_line + error.lineno - 1}, column {error.colno}"
            raise ValueError(f"{where}: {error.msg}") from None
        yield value
        place = _after_blanks(text, place)


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, value in pairs:
        found[name] = _TWICE if name in found else value
    return found


class _Number(str):
    """A number of a JSON file, as it is written there."""

    __repr__ = str.__str__


def _csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[_Row]:
    """Yield the rows below the first line, which names the columns. A line with blanks only is no row."""
    with _open(path, "") as file:
        reader = csv.reader(file, strict=True)
        names: list[str] | None = None
        try:
            for fields in reader:
                if not fields or (len(fields) == 1 and fields[0].isspace()):
                    continue
                if names is None:
                    names = [name if name in wanted else name.strip() for name in fields]
                    _require_single(names, wanted)
                elif len(fields) > len(names):
                    found = f"{len(fields)} values for {len(names)} columns"
                    raise ValueError(f"line {reader.line_num} has {found}")
                else:
                    yield dict(zip(names, fields, strict=False))
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[_Row]:
    from pyarrow.parquet import ParquetFile

    with path.open("rb") as opened, ParquetFile(opened) as file:  # for a name, pyarrow may open another file
        names = file.schema_arrow.names
        _require_single(names, wanted)
        read = [name for name in wanted if name in names]
        for name in read:
            _require_text(name, file.schema_arrow.field(name).type)
        others = dict.fromkeys(names)
        for batch in file.iter_batches(1000, columns=read):
            columns = [batch.column(name) for name in read]
            for place in range(batch.num_rows):
                yield others | {
                    name: column[place].as_py() for name, column in zip(read, columns, strict=True)
                }


def _require_text(name: str, kind: Any) -> None:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return  # of messages; elsewhere, each row is refused
    stored = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(stored) or types.is_large_string(stored) or types.is_string_view(stored)):
        raise ValueError(f"column {name!r} is of type {str(kind)[:100]}; expected text (string)")


def _require_single(names: Sequence[str], wanted: Sequence[str]) -> None:
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}")


def _paragraphs(path: Path, wanted: Sequence[str]) -> Iterator[_Row]:
    """Yield the texts between blank lines."""
    with _open(path, None) as file:
        lines = list[str]()
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield {"text": "".join(lines)}
                lines = []
        if lines:
            yield {"text": "".join(lines)}


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_Number
)
_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[_Row]]] = {
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "text": _paragraphs,
}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(json.load(sys.stdin))))
