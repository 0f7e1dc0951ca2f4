"""The table of docs/reference/architectures.md: `make architectures` writes it, and tests compare it."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from support.architecture_trials import Outcome, try_out
from support.architectures import ARCHITECTURES
from support.checkout import ROOT

PAGE = ROOT / "docs/reference/architectures.md"
UNSUPPORTED = ("t5", "mistral3")
"""Types of models that the page names as refused: an encoder-decoder, and images with text."""
_HEAD = (
    "| family | `model_type` | adapter on | weights | in 4 bits | of layers | trains | merges | repeats "
    "| resumes | no adapter on |"
)


def row(name: str, outcome: Outcome) -> str:
    """Return the line of a family."""
    from transformers import AutoConfig

    from qlora_repeat.assets.layers import skeleton
    from qlora_repeat.planning.memory_estimate import quantized_skeleton
    from qlora_repeat.stages.dequantize import count_weights
    from qlora_repeat.study.loading import load_study

    family = ARCHITECTURES[name]
    usual = quantized_skeleton(load_study("pocket"), AutoConfig.for_model(family.model_type, **family.usual))
    counts = count_weights(usual)
    weights = counts.in_4_bits + counts.embeddings + counts.other
    left_out = [f"`{each}`" for each in refused_layers(skeleton(family.config()))]
    if outcome.untrained_layers:
        left_out.append(f"{outcome.untrained_layers} adapted layers never change")
    done = (outcome.trains, outcome.merges, outcome.repeats, outcome.resumes)
    cells = [
        name,
        f"`{family.model_type}`",
        ", ".join(f"`{each}`" for each in family.targets),
        f"{weights / 1e9:.2f} B",
        f"{100 * counts.share:.0f} %",
        f"{100 * counts.share_of_layers:.0f} %",
        *("yes" if each else "no" for each in done),
        ", ".join(left_out),
    ]
    return f"| {' | '.join(cells)} |"


def refused_layers(model: Any) -> list[str]:
    """Return the names of modules with matrices, other than embeddings, that cannot have an adapter."""
    from torch.nn import Embedding

    from qlora_repeat.assets.layers import target_layers
    from qlora_repeat.errors import UsageError

    found = dict[str, None]()
    for path, module in model.named_modules():
        has_matrix = any(weight.ndim > 1 for weight in module.parameters(recurse=False))
        name = path.rpartition(".")[2]
        if has_matrix and not isinstance(module, Embedding) and not name.isdecimal():
            try:
                target_layers(model, [name], "")
            except UsageError:
                found[name] = None
    return list(found)


def documented() -> dict[str, str]:
    """Return the lines of the page's table by family."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line != _HEAD}


def write(rows: dict[str, str]) -> None:
    """Replace the page's table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    before = next(number for number, line in enumerate(lines) if line.startswith("|"))
    after = [line for line in lines[before:] if not line.startswith("|")]
    table = [_HEAD, f"|{'---|' * (_HEAD.count('|') - 1)}", *rows.values()]
    PAGE.write_text("\n".join([*lines[:before], *table, *after]) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    """Try out these families, by default all, and write their lines."""
    from qlora_repeat.cli.options import silence_libraries
    from qlora_repeat.execution import preload  # noqa: F401 (as a trial's process begins)

    silence_libraries(False)
    rows = documented()
    for name in names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(name, try_out(name, Path(folder)))
        print(rows[name], flush=True)
        write({each: rows[each] for each in ARCHITECTURES if each in rows})


if __name__ == "__main__":
    main(sys.argv[1:])
