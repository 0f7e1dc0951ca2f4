"""Read the paper's numbers from ``paper/published/`` as results of a study named ``published``."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.results.trial_result import Response, TrialResult
from qlora_repeat.study.study import PUBLISHED

DOI = "10.1109/ACCESS.2024.3470850"
CITATION = f"Alahmari et al., IEEE Access 2024, DOI {DOI}"
"""The paper."""

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

_Cells = tuple[str, ...]
_Value = TypeVar("_Value")


def read_published(folder: Path) -> list[TrialResult]:
    """Read the paper's 56 trials: Tables 1, 2, 3, 8, 9, 10 and 11, and the base perplexities of section IX.

    Each trial has the value of its arm in Table 3. The paper gives one mean and SD 0.0 for the seven tests of
    a base model, which are read as seven equal values. What the paper does not report is None.

    Raises:
        MissingError: a file is missing.
        UsageError: a file has unexpected columns or rows, or an invalid value; names the line.
    """
    quoting, chatting = list(_MODELS)[:2], list(_MODELS)[2:]
    instructions, seconds_of = ("instruction_1", "instruction_2"), ("train_seconds", "test_seconds")

    def by_run(
        number: int, models: list[str], columns: _Cells, parse: Callable[[list[str]], _Value]
    ) -> dict[_Cells, _Value]:
        keys = {"run": [*map(str, _RUNS)], "model": models, "optimizer": _OPTIMIZERS}
        return _read(folder / f"table-{number:02}.csv", keys, columns, parse)

    perplexities = by_run(1, quoting, ("perplexity",), _numbers) | by_run(2, chatting, ("perplexity",), _numbers)
    answers = by_run(8, chatting[:1], instructions, _answers) | by_run(9, chatting[1:], instructions, _answers)
    seconds = by_run(10, quoting, seconds_of, _numbers) | by_run(11, chatting, seconds_of, _numbers)
    models = [*_MODELS]
    arms = {"model": models, "optimizer": _OPTIMIZERS}
    memory = _read(folder / "table-03.csv", arms, ("gpu_memory_percent",), _numbers)
    bases = _read(folder / "base-perplexity.csv", {"model": models}, ("mean", "sd", "tests"), _tests)
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
                base_perplexity=bases[model,][0],
                base_perplexities=bases[model,],
                train_seconds=train,
                test_seconds=test,
                peak_memory_share=memory[model, optimizer][0] / 100,
                responses=[_response(place, cell) for place, cell in enumerate(answers.get(key, []), 1)],
                device="NVIDIA A100",  # section VII
            )
        )
    return results


def _response(place: int, cell: str) -> Response:
    """Return the response in a cell of Table 8 or 9, at the default sampling of section VII."""
    letter = cell if cell in _LETTERS else None
    return Response(f"Instruction {place}", 1.0, 1.0, letter or f"({cell})", letter)


def _read(
    path: Path,
    keys: Mapping[str, Sequence[str]],
    columns: _Cells,
    parse: Callable[[list[str]], _Value],
) -> dict[_Cells, _Value]:
    """Return the parsed values of each row, by key. There must be a row for each combination of keys."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; the paper's numbers are in paper/published") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file in UTF-8") from None
    header = (*keys, *columns)
    if not lines or tuple(lines[0].split(",")) != header:
        raise UsageError(f"{path}:1: expected the columns {','.join(header)}")
    wanted, found = set(product(*keys.values())), dict[_Cells, _Value]()
    for number, cells in enumerate((line.split(",") for line in lines[1:]), 2):
        where, key = f"{path}:{number}", tuple(cells[: len(keys)])
        if len(cells) != len(header):
            raise UsageError(f"{where}: expected {len(header)} cells, found {len(cells)}")
        if key not in wanted or key in found:
            reason = "a second row" if key in found else "the paper's table has no row"
            raise UsageError(f"{where}: {reason} {','.join(key)}")
        try:
            found[key] = parse(cells[len(keys) :])
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
    if lacking := sorted(wanted - set(found)):
        raise UsageError(f"{path}: no row {','.join(lacking[0])} ({len(lacking)} rows are missing)")
    return found


def _numbers(cells: list[str]) -> list[float]:
    return [_number(cell) for cell in cells]


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"expected a number, found {cell!r}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"expected a finite number above 0, found {cell!r}")
    return value


def _tests(cells: list[str]) -> list[float]:
    """Return the perplexity of a base model in each test, from mean, SD and the number of tests."""
    mean, deviation, tests = cells
    if deviation != "0.0" or not tests.isdecimal():
        raise ValueError(f"expected sd 0.0 and a whole number of tests, found {deviation} and {tests}")
    return [_number(mean)] * int(tests)


def _answers(cells: list[str]) -> list[str]:
    for cell in cells:
        if cell not in _LETTERS + _KINDS:
            raise ValueError(f"expected {', '.join(_LETTERS + _KINDS)}; found {cell!r}")
    return cells
