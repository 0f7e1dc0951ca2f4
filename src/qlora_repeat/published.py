"""The numbers that the paper prints, from ``paper/published/``, as results of a study named ``published``."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TypeVar

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results import Response, TrialResult

PUBLISHED = "published"
"""The name that results with the paper's numbers have in place of a study's."""

_MODELS = {
    "gpt-neox-20b": ("GPT-NeoX-20B", "text-generation"),
    "llama2-7b": ("Llama2-7B", "text-generation"),
    "gpt-neoxt-chat-20b": ("GPT-NeoXT-chat-20B", "question-answering"),
    "llama2-chat-7b": ("Llama2-chat-7B", "question-answering"),
}
"""Title and task of each model."""
_OPTIMIZERS = ("adamw-8bit", "adamw-32bit")
_RUNS = range(1, 8)

_LETTERS = ("A", "B", "C", "D")
_KINDS = ("words", "degenerate", "blank")

Key = tuple[str, ...]
_Value = TypeVar("_Value")


def read_published(folder: Path) -> list[TrialResult]:
    """The paper's 56 trials: Tables 1, 2, 3, 8, 9, 10 and 11, and the base perplexities of section IX.

    A trial has its arm's value of Table 3, since the paper has no others. The paper gives one mean and
    SD 0.0 for the seven tests of a base: those are seven equal values. What the paper does not say is null.

    Raises:
        MissingError: a file is not there.
        UsageError: a file has other columns or rows than it should, or a value that is none; names the line.
    """
    quoting, chatting = list(_MODELS)[:2], list(_MODELS)[2:]
    table_1, table_2 = (
        _by_run(folder / name, models, ("perplexity",), _positive)
        for name, models in (("table-01.csv", quoting), ("table-02.csv", chatting))
    )
    table_8, table_9 = (
        _by_run(folder / name, [model], ("instruction_1", "instruction_2"), _cell)
        for name, model in zip(("table-08.csv", "table-09.csv"), chatting, strict=True)
    )
    table_10, table_11 = (
        _by_run(folder / name, models, ("train_seconds", "test_seconds"), _positive)
        for name, models in (("table-10.csv", quoting), ("table-11.csv", chatting))
    )
    perplexities, answers, seconds = table_1 | table_2, table_8 | table_9, table_10 | table_11
    arms: set[Key] = set(product(_MODELS, _OPTIMIZERS))
    columns = ("gpu_memory_percent",)
    memory = _read(folder / "table-03.csv", ("model", "optimizer"), arms, columns, _positive)
    bases = _bases(folder / "base-perplexity.csv")

    results = []
    for (model, (title, task)), optimizer, run in product(_MODELS.items(), _OPTIMIZERS, _RUNS):
        key = (str(run), model, optimizer)
        train, test = seconds[key]
        results.append(
            TrialResult(
                study=PUBLISHED,
                task=task,
                model=model,
                model_title=title,
                optimizer=optimizer,
                trial=run,
                status="done",
                counterpart=model,
                perplexity=perplexities[key][0],
                base_perplexity=bases[model][0],
                base_perplexities=bases[model],
                train_seconds=train,
                test_seconds=test,
                peak_memory_share=memory[model, optimizer][0] / 100,
                responses=[_response(place, cell) for place, cell in enumerate(answers.get(key, []), 1)],
                device="NVIDIA A100",  # section VII
            )
        )
    return results


def _response(place: int, cell: str) -> Response:
    """What a cell of Table 8 or 9 stands for, at the settings that section VII calls the default."""
    letter = cell if cell in _LETTERS else None
    return Response(f"Instruction {place}", 1.0, 1.0, letter or f"({cell})", letter)


def _bases(path: Path) -> dict[str, list[float]]:
    """The perplexity of each base in each test."""
    columns = ("mean", "sd", "tests")
    rows = _read(path, ("model",), {(model,) for model in _MODELS}, columns, _not_negative)
    found = {}
    for (model,), (mean, deviation, tests) in rows.items():
        if deviation or not tests or tests % 1:
            raise UsageError(f"{path}: {model}: expected sd 0.0 and a whole number of tests")
        found[model] = [mean] * int(tests)
    return found


def _by_run(
    path: Path, models: list[str], columns: tuple[str, ...], parse: Callable[[str], _Value]
) -> dict[Key, list[_Value]]:
    """The values of each run, model and optimizer."""
    keys: set[Key] = set(product(map(str, _RUNS), models, _OPTIMIZERS))
    return _read(path, ("run", "model", "optimizer"), keys, columns, parse)


def _read(
    path: Path,
    key_columns: Key,
    keys: set[Key],
    value_columns: tuple[str, ...],
    parse: Callable[[str], _Value],
) -> dict[Key, list[_Value]]:
    """The values of a file by what its first columns say: a row for each of `keys`, in any order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; paper/published holds the paper's numbers") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file in UTF-8") from None
    header = key_columns + value_columns
    if not lines or tuple(lines[0].split(",")) != header:
        raise UsageError(f"{path}:1: expected the columns {','.join(header)}")
    found: dict[Key, list[_Value]] = {}
    for number, cells in enumerate((line.split(",") for line in lines[1:]), 2):
        where, key = f"{path}:{number}", tuple(cells[: len(key_columns)])
        if len(cells) != len(header):
            raise UsageError(f"{where}: expected {len(header)} cells, found {len(cells)}")
        if key not in keys:
            raise UsageError(f"{where}: the paper's table has no row of {','.join(key)}")
        if key in found:
            raise UsageError(f"{where}: a second row of {','.join(key)}")
        try:
            found[key] = [parse(cell) for cell in cells[len(key_columns) :]]
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
    if lacking := sorted(keys - set(found)):
        raise UsageError(f"{path}: no row of {','.join(lacking[0])} ({len(lacking)} rows are missing)")
    return found


def _not_negative(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"expected a number, found {cell!r}") from None
    if not 0 <= value < math.inf:
        raise ValueError(f"expected a number that is finite and not negative, found {cell!r}")
    return value


def _positive(cell: str) -> float:
    value = _not_negative(cell)
    if value == 0:
        raise ValueError(f"expected a number above 0, found {cell!r}")
    return value


def _cell(cell: str) -> str:
    if cell not in _LETTERS + _KINDS:
        raise ValueError(f"expected {', '.join(_LETTERS + _KINDS)}; found {cell!r}")
    return cell
