"""Find the number format of the paper's perplexities from their printed digits (a second).

    python benchmarks/number_formats.py

A half-precision format has few numbers: float16 has 1,024 between 8 and 16, while three decimals give 8,000.
If all numbers of a column lie on such a grid, they were almost certainly computed in that format. If they
also lie on the coarser grid of exponentials of the format's numbers, then so was the loss.

The probability by chance assumes that, without a grid, all numbers with the same decimals between two powers
of two are equally likely, and that the printed numbers are independent.

The output is Markdown, for docs/explanation/findings.md. For each model and optimizer, it says how many
printed values can be a number of float16 or bfloat16, or the exponential of one, with the probability of at
least this number by chance. Then it lists each value of the GPT-NeoX models with the numbers that it can be,
and shows how the runs of Llama2-7B alternate.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

Numbers = NDArray[np.float64]

FORMATS = ("float16", "bfloat16")
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
BASE = "base"
"""Takes the place of the optimizer for a model before fine-tuning."""
GRIDS = [*FORMATS, *(f"exp-{name}" for name in FORMATS)]
HEADINGS = ["float16", "bfloat16", "exp of a float16 loss", "exp of a bfloat16 loss"]
SHOWN = {"gpt-neox-20b": "float16", "gpt-neoxt-chat-20b": "bfloat16"}
"""The models whose numbers lie on a grid, and its format."""


@dataclass(frozen=True)
class Printed:
    """A perplexity of Table 1 or 2 as printed."""

    model: str
    optimizer: str
    run: int
    text: str


@dataclass(frozen=True)
class Agreement:
    """The number of printed values that lie on a grid."""

    found: int
    of: int
    chance: float
    """The probability of at least `found` values without a grid."""


def read_perplexities(folder: Path) -> list[Printed]:
    """Return Tables 1 and 2 of ``paper/published/`` and section IX's base models, with trailing zeros."""
    rows = []
    for name in ("table-01.csv", "table-02.csv", "base-perplexity.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows += [
                Printed(
                    row["model"],
                    row.get("optimizer", BASE),
                    int(row.get("run", 0)),
                    row.get("perplexity") or row["mean"],
                )
                for row in csv.DictReader(file)
            ]
    return rows


@cache
def grid(name: str) -> Numbers:
    """Return all positive finite numbers of a format; for ``exp-FORMAT``, the exponentials of its losses."""
    if name.startswith("exp-"):
        return np.unique(_exponentials(name.removeprefix("exp-"))[1])
    if name == "float16":
        return np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return (np.arange(1, 0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def losses_of(number: float, name: str) -> list[float]:
    """Return the losses of a format whose exponential in that format is this number."""
    losses, exponentials = _exponentials(name)
    return [float(loss) for loss in losses[exponentials == number]]


@cache
def _exponentials(name: str) -> tuple[Numbers, Numbers]:
    """Return a format's losses from 0.5, and their exponentials as in torch: in float32, then rounded."""
    losses = grid(name)
    losses = losses[(losses >= 0.5) & (losses < math.log(LARGEST[name]))]
    exact = np.exp(losses).astype(np.float32)
    if name == "float16":
        return losses, exact.astype(np.float16).astype(np.float64)
    bits = exact.view(np.uint32).astype(np.uint64)  # the upper half is the bfloat16 number
    nearest = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return losses, nearest.astype(np.uint32).view(np.float32).astype(np.float64)


def sources(text: str, name: str) -> list[float]:
    """Return the numbers of a grid that give this text when rounded or truncated to its decimals."""
    digits = _decimals(text)
    wanted = round(float(text) * 10.0**digits)
    numbers = _between(name, _power_of_two(float(text)))
    return [float(number) for number in numbers if wanted in _printed_as(number, digits)]


def lies_on(text: str, name: str) -> bool:
    """Return whether a printed number can be a number of the grid."""
    return bool(sources(text, name))


def share_on(text: str, name: str) -> float:
    """Return the share of numbers with the same decimals and power of two that can be numbers of the grid."""
    digits, low = _decimals(text), _power_of_two(float(text))
    count = round(low * 10.0**digits)
    printed = {each for number in _between(name, low) for each in _printed_as(number, digits)}
    return len(printed & set(range(count, 2 * count))) / count


def agreement(texts: Iterable[str], name: str) -> Agreement:
    """Return how many of these lie on a grid, and the probability of at least this number by chance."""
    texts = list(texts)
    found = sum(lies_on(text, name) for text in texts)
    return Agreement(found, len(texts), at_least(found, [share_on(text, name) for text in texts]))


def at_least(count: int, shares: Iterable[float]) -> float:
    """Return the probability that at least `count` of the independent events happen (Poisson binomial)."""
    law = [1.0]
    for share in shares:
        law = [(1 - share) * stay + share * come for stay, come in zip([*law, 0.0], [0.0, *law], strict=True)]
    return math.fsum(law[count:])


def step(value: float, name: str) -> float:
    """Return the distance from a number of a format to the next."""
    bits = {"float16": 10, "bfloat16": 7}[name]
    return _power_of_two(value) * 2.0**-bits


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _power_of_two(value: float) -> float:
    """Return the largest power of two that is not above the value."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1)


@cache
def _between(name: str, low: float) -> Numbers:
    """Return the numbers of a grid from a power of two to the next."""
    numbers = grid(name)
    return numbers[(numbers >= low) & (numbers < 2 * low)]


def _printed_as(number: Any, digits: int) -> set[int]:
    """Return the number truncated and rounded to this number of decimals, as integers times 10**-digits."""
    scaled = float(number) * 10.0**digits  # exact, since both factors have few digits
    return {math.floor(scaled), math.floor(scaled + 0.5)}


def main() -> None:
    printed = read_perplexities(Path("paper/published"))
    print(_table(["model", "optimizer", *HEADINGS], _agreements(printed)), "\n")
    headers = ["model", "optimizer", "run", "printed", "number", "step there", "loss of the same format"]
    print(_table(headers, [_value(each) for each in printed if each.model in SHOWN]), "\n")
    print("\n".join(_alternation(printed)))


def _agreements(printed: list[Printed]) -> list[list[str]]:
    rows = []
    for model, optimizer in product(
        dict.fromkeys(each.model for each in printed), ("adamw-8bit", "adamw-32bit", "both", BASE)
    ):
        wanted = ("adamw-8bit", "adamw-32bit") if optimizer == "both" else (optimizer,)
        texts = [each.text for each in printed if each.model == model and each.optimizer in wanted]
        cells = [agreement(texts, name) for name in GRIDS]
        rows.append([model, optimizer, *(f"{one.found} of {one.of} ({one.chance:.1g})" for one in cells)])
    return rows


def _value(each: Printed) -> list[str]:
    """Return a row: a printed value, the number that it can be, and the loss whose exponential that is."""
    name = SHOWN[each.model]
    found = sources(each.text, name)
    losses = [loss for number in found for loss in losses_of(number, name)]
    return [
        each.model,
        each.optimizer,
        str(each.run or ""),
        each.text,
        " or ".join(f"{number:.10g}" for number in found) or "none",
        f"{step(float(each.text), name):g}",
        " or ".join(f"{loss:.10g}" for loss in losses) or "none",
    ]


def _alternation(printed: list[Printed]) -> list[str]:
    lines = []
    for (model, optimizer), own in groupby(
        sorted(printed, key=lambda each: (each.model, each.optimizer, each.run)),
        key=lambda each: (each.model, each.optimizer),
    ):
        high = [float(each.text) > 1000 for each in own]
        if any(high) and not all(high):
            pattern = "".join("H" if one else "L" for one in high)
            lines.append(
                f"{model} {optimizer}: above 1,000 (H) or not (L), runs 1 to 7: {pattern}; "
                f"{math.comb(len(high), sum(high))} orders with the same number of H are possible"
            )
    above = [each for each in printed if float(each.text) > LARGEST["float16"]]
    lines.append(f"above float16's largest, {LARGEST['float16']:,.0f}: " + _named(above))
    above = [each for each in printed if each.model.startswith("llama") and float(each.text) > 32000]
    lines.append("above 32,000, the perplexity if all tokens of Llama are equally likely: " + _named(above))
    return lines


def _named(found: list[Printed]) -> str:
    return ", ".join(f"{each.text} ({each.model} run {each.run})" for each in found)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
