"""Read a tidy file of any tool: a row for each trial, with its arm, its seed and a column for each metric.

Formats: CSV, JSON Lines and Parquet. Columns `arm` and `seed` may be missing.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.number_format import computable
from qlora_repeat.system.files import megabytes, read_file
from qlora_repeat.system.memory import memory_limit

FORMATS = (".csv", ".jsonl", ".parquet")
ARM, SEED = "arm", "seed"
_LARGEST = 50_000_000
"""Bytes of a file."""
_MOST_MEMORY = 1_000_000_000
"""Bytes that reading may need."""
_MOST_ROWS = 10_000
_MOST_COLUMNS = 1_000
_LONGEST = 200
"""Characters of the name of an arm or a column."""


@dataclass(frozen=True)
class Values:
    """The values of an arm in one metric, and the seed of each, if there are seeds."""

    arm: str
    metric: str
    values: list[float]
    seeds: list[str] | None = None


def read_tidy(path: Path, metric: str | None = None) -> dict[str, Values]:
    """Return the values of each arm, by its name; without a column `arm`, of one named after the file.

    Args:
        path: a file in one of `FORMATS`.
        metric: the column to read; by default the only one with numbers, or `perplexity`.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        UsageError: it is not such a file, or has no such column, or one with other values than numbers.
    """
    rows = _rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not rows or len(rows) > _MOST_ROWS or len(columns) > _MOST_COLUMNS:
        raise UsageError(
            f"{path}: {len(rows)} rows and {len(columns)} columns; expected 1 to {_MOST_ROWS} rows, and at "
            f"most {_MOST_COLUMNS} columns"
        )
    name = _metric(path, rows, columns, metric)
    arms = dict[str, list[tuple[float, str | None]]]()
    for number, row in enumerate(rows, 1):
        value, arm, seed = _number(row.get(name)), row.get(ARM, path.stem), row.get(SEED)
        if row.get(name) in (None, ""):
            continue  # not measured
        if value is None:
            raise UsageError(f"{path}: row {number}, column {name}: {repr(row[name])[:50]} is no number")
        if not isinstance(arm, str | int | float) or len(str(arm)) > _LONGEST:
            raise UsageError(f"{path}: row {number}, column {ARM}: expected a name of an arm")
        known = seed is not None and seed != ""
        arms.setdefault(str(arm), []).append((value, str(seed)[:_LONGEST] if known else None))
    if not arms:
        raise UsageError(f"{path}: column {name} has no values")
    return {arm: _values(path, arm, name, own) for arm, own in arms.items()}


def _values(path: Path, arm: str, metric: str, found: Sequence[tuple[float, str | None]]) -> Values:
    seeds = [seed for _, seed in found if seed is not None]
    if seeds and len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UsageError(f"{path}: arm {arm[:50]} has two rows of seed {twice[:50]}; expected one")
    return Values(arm, metric, [value for value, _ in found], seeds if len(seeds) == len(found) else None)


def _metric(path: Path, rows: Sequence[Mapping[str, Any]], columns: list[str], given: str | None) -> str:
    numeric = [
        name
        for name in columns
        if name not in (ARM, SEED)
        and any(_number(row.get(name)) is not None for row in rows)
        and all(_number(row.get(name)) is not None for row in rows if row.get(name) not in (None, ""))
    ]
    listed = ", ".join(name[:50] for name in numeric) or "none"
    if given is not None:
        if given in columns and given not in (ARM, SEED):
            return given
        raise UsageError(f"{path}: no column {given}; those with numbers: {listed}")
    if len(numeric) == 1:
        return numeric[0]
    if "perplexity" in numeric:
        return "perplexity"
    raise UsageError(f"{path}: choose a column with --metric; those with numbers: {listed}")


def _number(value: Any) -> float | None:
    """Return a number, or None for what is none; a text may be one, as in CSV."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return computable(float(value))
    except (ValueError, OverflowError):
        return None


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
    try:
        content = read_file(path, _LARGEST, follow=True)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UsageError(f"{path}: larger than {megabytes(_LARGEST)}") from None
    try:
        with memory_limit(_MOST_MEMORY):
            return {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}[kind](content)
    except (ValueError, csv.Error, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or "it needs too much memory"
        raise UsageError(f"{path}: cannot be read as {kind[1:]} ({reason})") from None


def _csv(content: bytes) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    found = list[dict[str, Any]]()
    for row in rows:
        if None in row:
            raise ValueError(f"line {rows.line_num} has more values than columns")
        found.append(row)
    return found


def _json_lines(content: bytes) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no object")
    return rows


def _parquet(content: bytes) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(str(error)) from None
    return rows
