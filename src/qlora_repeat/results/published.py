"""Read the paper's numbers from ``paper/published/`` as results of a study named ``published``."""

import csv
from itertools import product
from pathlib import Path

from qlora_repeat.errors import MissingError
from qlora_repeat.results.number_format import Printed
from qlora_repeat.results.trial_result import Response, TrialResult
from qlora_repeat.study.study import PUBLISHED

DOI = "10.1109/ACCESS.2024.3470850"
CITATION = f"Alahmari et al., IEEE Access 2024, DOI {DOI}"
"""The paper."""

MODELS = {
    "gpt-neox-20b": ("GPT-NeoX-20B", "text-generation"),
    "llama2-7b": ("Llama2-7B", "text-generation"),
    "gpt-neoxt-chat-20b": ("GPT-NeoXT-chat-20B", "question-answering"),
    "llama2-chat-7b": ("Llama2-chat-7B", "question-answering"),
}
"""Title and task of each model."""
PROMPTS = ("Your silence will", "Let the improvement of yourself keep you")
"""The prompts of Tables 4 and 5, and of 6 and 7."""
_OPTIMIZERS = ("adamw-8bit", "adamw-32bit")
_RUNS = range(1, 8)

_Key = tuple[str, ...]


def read_published(folder: Path) -> list[TrialResult]:
    """Read the paper's 56 trials: its tables, with kinds of responses, and base perplexities (section IX).

    The first trial of an arm has the arm's only value in Table 3. The paper gives one mean and SD 0.0 for the
    seven tests of a base model, which are read as seven equal values. What the paper does not report is None.

    Raises:
        MissingError: a file is missing.
    """
    perplexities = _by_run(folder, 1, 2)
    texts = list(zip(PROMPTS, (_by_run(folder, 4, 5), _by_run(folder, 6, 7)), strict=True))
    answers = _by_run(folder, 8, 9)
    seconds = _by_run(folder, 10, 11)
    memory = _read(folder / "table-03.csv", 2)
    bases = _read(folder / "base-perplexity.csv", 1)
    results = []
    for (model, (title, task)), optimizer, run in product(MODELS.items(), _OPTIMIZERS, _RUNS):
        key = (str(run), model, optimizer)
        train, test = map(Printed, seconds[key])
        base, _, tests = bases[model,]
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
                perplexity=Printed(perplexities[key][0]),
                base_perplexity=Printed(base),
                base_perplexities=[Printed(base)] * int(tests),
                train_seconds=train,
                test_seconds=test,
                peak_memory_share=float(memory[model, optimizer][0]) / 100 if run == 1 else None,
                responses=[
                    *(_continuation(prompt, own[key]) for prompt, own in texts if key in own),
                    *(_answer(place, cell) for place, cell in enumerate(answers.get(key, []), 1)),
                ],
                device="NVIDIA A100",  # section VII
            )
        )
    return results


def _continuation(prompt: str, cells: list[str]) -> Response:
    """Return the kind of a continuation in Tables 4 to 7, at the default sampling of section VII."""
    return Response(prompt, 1.0, 1.0, f" ({cells[0]})")


def _answer(place: int, cell: str) -> Response:
    """Return the response in a cell of Table 8 or 9, at the default sampling of section VII."""
    letter = cell if cell in ("A", "B", "C", "D") else None
    return Response(f"Instruction {place}", 1.0, 1.0, letter or f"({cell})", letter)


def _by_run(folder: Path, *tables: int) -> dict[_Key, list[str]]:
    """Return the values of each run, model and optimizer in these tables."""
    rows = (_read(folder / f"table-{number:02}.csv", 3) for number in tables)
    return {key: values for own in rows for key, values in own.items()}


def _read(path: Path, keys: int) -> dict[_Key, list[str]]:
    """Return the cells of each row below the heading, by the first `keys` cells."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; the paper's numbers are in paper/published") from None
    return {tuple(row[:keys]): row[keys:] for row in rows}
