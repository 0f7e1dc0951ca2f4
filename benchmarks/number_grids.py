"""Do the perplexities of the paper's Tables 1 and 2 lie on the grids of half precision? For the findings.

    python benchmarks/number_grids.py

Prints, in a second and as Markdown: for each model and optimizer how many printed values may be a number of
float16 or bfloat16, or the exponential of one, with the probability of as many by chance; then each value of
the GPT-NeoX models with the numbers that it may be; and how the runs of Llama2-7B alternate.
"""

import math
from itertools import groupby, product
from pathlib import Path

from tabulate import tabulate

from qlora_repeat.results.number_formats import (
    BASE,
    FORMATS,
    LARGEST,
    Printed,
    agreement,
    losses_of,
    read_perplexities,
    sources,
    step,
)

GRIDS = [*FORMATS, *(f"exp-{name}" for name in FORMATS)]
HEADINGS = ["float16", "bfloat16", "exp of a float16 loss", "exp of a bfloat16 loss"]
SHOWN = {"gpt-neox-20b": "float16", "gpt-neoxt-chat-20b": "bfloat16"}
"""The models on a grid, and which."""


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
    """The number that a printed value may be, and the loss whose exponential that is."""
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
                f"{math.comb(len(high), sum(high))} orders of as many are possible"
            )
    above = [each for each in printed if float(each.text) > LARGEST["float16"]]
    lines.append(f"above float16's largest, {LARGEST['float16']:,.0f}: " + _named(above))
    above = [each for each in printed if each.model.startswith("llama") and float(each.text) > 32000]
    lines.append(
        "above the 32,000 of a model that takes all tokens of Llama's as equally likely: " + _named(above)
    )
    return lines


def _named(found: list[Printed]) -> str:
    return ", ".join(f"{each.text} ({each.model} run {each.run})" for each in found)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
