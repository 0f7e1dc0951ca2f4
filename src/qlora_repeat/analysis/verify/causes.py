"""The recorded differences that can explain why two trials differ: seeds and parts of the fingerprint."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from qlora_repeat.analysis.trial_diff import Difference, Side
from qlora_repeat.study.trial import Stage

Cause = Literal["data", "learning rate", "init", "arithmetic", "update", "perplexity"]
"""What differs between two trials, in the order in which one leads to another."""

_ANY_ORDER = "kernels of a GPU that are not deterministic"
_PROCESSOR = r"cpu|cpu_flags\.numeric|cpu_capability|machine|libc"
_LIKE_A_THREAD = rf"(kernel_)?packages\..*|{_PROCESSOR}|threads|environment\..*|{_ANY_ORDER}"
"""What makes a machine add in another order, as one more thread does on a CPU, and a repetition on a GPU."""

MATTERS = (
    rf"packages\.(torch|transformers|peft|bitsandbytes|accelerate|numpy)|kernel_packages\..*|{_PROCESSOR}|threads"
    r"|gpu|gpu_capability|cuda|cudnn|cublas|driver|kernels\..*"
    r"|environment\.(?!CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|OMP_NUM_THREADS|HF_|TRANSFORMERS_|TOKENIZERS_|LD_"
    r"|\w*(_HOME|_PATH)$).*"
)
"""The keys of a fingerprint that can change arithmetic: of packages, only those that compute.

``threads`` stands for OMP_NUM_THREADS.
"""

_CAUSES: dict[Cause, tuple[str, str, tuple[str, ...]]] = {
    "data": (
        "the rows",
        r"code|packages\.(torch|datasets|tokenizers|transformers|numpy|gguf|reasoning-gym)",
        ("split", "data_order"),
    ),
    "learning rate": ("the learning rate", "", ()),
    "init": (
        "the initial adapter",
        rf"code|packages\.(torch|peft|transformers)|{_PROCESSOR}",
        ("adapter_init",),
    ),
    "arithmetic": ("the arithmetic of a step", rf"code|{MATTERS}", ("dropout",)),
    "update": ("the optimizer's update", rf"code|{MATTERS}", ()),
    "perplexity": ("the test", rf"code|{MATTERS}", ()),
}
"""Each cause in words, and what can explain it: inputs and keys of the fingerprint (a pattern), and seeds.

Nothing explains another learning rate, because it follows from the settings.
"""


def named(causes: Iterable[Cause]) -> str:
    """Return the causes in words, each once."""
    return ", ".join(dict.fromkeys(_CAUSES[cause][0] for cause in causes))


def explained(
    causes: Iterable[Cause], differing: Sequence[Difference], noisy: list[Difference]
) -> dict[Cause, list[Difference]]:
    """Return what may explain each cause. What explains different rows also explains their consequences."""
    causes = set(causes)
    rows = _explaining("data", differing) if "data" in causes else []
    return {
        cause: _explaining(cause, differing)
        + (rows if cause in ("init", "arithmetic", "perplexity") else [])
        + (noisy if cause in ("arithmetic", "update", "perplexity") else [])
        for cause in causes
    }


def _explaining(cause: Cause, differing: Sequence[Difference]) -> list[Difference]:
    _, keys, seeds = _CAUSES[cause]
    return [
        each
        for each in differing
        if (each.key in seeds if each.what == "seed" else _is_named(each, keys))
        and (each.stage == "finetune" or cause == "perplexity")
    ]


def _is_named(difference: Difference, keys: str) -> bool:
    """Return whether a pattern names it, and it is a difference of code, packages or machine."""
    key = difference.key
    known = {
        "input": is_code(difference) or key.startswith("packages."),
        "setting": key == "threads",
        "fingerprint": key != "code",
    }
    return known.get(difference.what, False) and re.fullmatch(keys, key) is not None


def is_code(difference: Difference) -> bool:
    """Return whether it is the code of the kit, which a re-run at the recorded commit rules out."""
    return (difference.what, difference.key) == ("input", "code")


def noisy_kernels(first: Side, second: Side, stage: Stage) -> list[Difference]:
    """Return a difference if GPU kernels were not deterministic, even where the fingerprints agree."""
    found = [side.records[stage].fingerprint for side in (first, second)]
    kernels = [each.get("kernels") if each.get("gpu") else {"deterministic": True} for each in found]
    switched = [isinstance(each, dict) and each.get("deterministic") is True for each in kernels]
    return [] if all(switched) else [Difference("fingerprint", stage, _ANY_ORDER, *switched)]


def expectation(differing: Sequence[Difference], noisy: Sequence[Difference]) -> tuple[bool, str]:
    """Return whether the re-run should be bitwise the same, and why."""
    if reasons := [*differing, *noisy]:
        names = (f"seed of {each.key}" if each.what == "seed" else each.key for each in reasons)
        return (
            False,
            f"The same bits are not expected, because these differ: {', '.join(dict.fromkeys(names))}.",
        )
    same = "seeds, packages, code, threads, kernels and processor model"
    return True, f"The same bits are expected, because {same} are the same."


def draws_alike(differing: Sequence[Difference]) -> bool:
    """Return whether initial adapters that differ do so by rounding: the processor differs, not the draw."""
    reasons = [each for each in _explaining("init", differing) if not is_code(each)]
    return bool(reasons) and all(re.fullmatch(_PROCESSOR, each.key) for each in reasons)


def is_like_a_thread(key: str) -> bool:
    """Return whether another value of this key causes noise such as that of one more thread."""
    return bool(re.fullmatch(_LIKE_A_THREAD, key))


def may_matter(difference: Difference) -> bool:
    """Return whether a difference can explain anything."""
    keys = (pattern for _, pattern, _ in _CAUSES.values() if pattern)
    return difference.what == "seed" or any(_is_named(difference, key) for key in keys)
