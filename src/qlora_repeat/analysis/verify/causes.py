"""What can explain that two runs part: seeds, and what of a fingerprint can change bits."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from qlora_repeat.analysis.trial_diff import Difference, TrialDiff
from qlora_repeat.study.trial import Stage

Cause = Literal["data", "learning rate", "init", "arithmetic", "update", "perplexity"]
"""In what runs part, in the order in which one leads to another."""

MATTERS = (
    r"packages\.[\w-]+|cpu|cpu_flags\.numeric|cpu_capability|machine|libc|threads|gpu|gpu_capability|cuda|cudnn"
    r"|cublas|driver|kernels\..*"
    r"|environment\.(?!CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|OMP_NUM_THREADS|HF_|TRANSFORMERS_|TOKENIZERS_|LD_"
    r"|\w*(_HOME|_PATH)$).*"
)
"""What of a fingerprint can change bits; the number of threads is told by ``threads``."""

_EXPLANATIONS: dict[Cause, tuple[str, tuple[str, ...]]] = {
    "data": (
        r"code|packages\.(torch|datasets|tokenizers|transformers|numpy|gguf|reasoning-gym)",
        ("split", "data_order"),
    ),
    "learning rate": ("", ()),
    "init": (
        r"code|packages\.(torch|peft|transformers)|cpu|cpu_flags\.numeric|cpu_capability|machine|libc",
        ("adapter_init",),
    ),
    "arithmetic": (rf"code|{MATTERS}", ("dropout",)),
    "update": (rf"code|{MATTERS}", ()),
    "perplexity": (rf"code|{MATTERS}", ()),
}
"""Which inputs and parts of the fingerprint, and which seeds, can explain that runs part so.

Nothing explains another learning rate: it follows from the settings.
"""


def explained(
    causes: Iterable[Cause], differing: Sequence[Difference], noisy: list[Difference]
) -> dict[Cause, list[Difference]]:
    """What may explain each cause. Whatever explains other rows explains all that follows from them."""
    causes = set(causes)
    rows = _explaining("data", differing) if "data" in causes else []
    return {
        cause: _explaining(cause, differing)
        + (rows if cause in ("init", "arithmetic", "perplexity") else [])
        + (noisy if cause in ("arithmetic", "update", "perplexity") else [])
        for cause in causes
    }


def _explaining(cause: Cause, differing: Sequence[Difference]) -> list[Difference]:
    keys, seeds = _EXPLANATIONS[cause]
    return [
        each
        for each in differing
        if (each.key in seeds if each.what == "seed" else re.fullmatch(keys, each.key))
        and (each.stage == "finetune" or cause in ("arithmetic", "perplexity"))
    ]


def noisy_kernels(diff: TrialDiff, stage: Stage) -> list[Difference]:
    """On a GPU, kernels that may add up in any order: a difference without one in the fingerprints."""
    found = [side.records[stage].fingerprint for side in (diff.first, diff.second)]
    switched = [each.get("kernels", {}).get("deterministic") if each.get("gpu") else True for each in found]
    key = "kernels of a GPU that are not deterministic"
    return [] if all(switched) else [Difference("fingerprint", stage, key, *switched)]


def expectation(differing: Sequence[Difference], noisy: Sequence[Difference]) -> tuple[bool, str]:
    """Whether the same bits are to be expected, and why."""
    if reasons := [*differing, *noisy]:
        keys = ", ".join(dict.fromkeys(map(_named, reasons)))
        return False, f"The same bits are not to be expected, because of: {keys}."
    same = "seeds, packages, code, threads, kernels and model of processor"
    return True, f"The same bits are to be expected: {same} are the same."


def _named(difference: Difference) -> str:
    return f"seed of {difference.key}" if difference.what == "seed" else difference.key


def may_matter(difference: Difference) -> bool:
    return difference.what == "seed" or re.fullmatch(f"code|{MATTERS}", difference.key) is not None
