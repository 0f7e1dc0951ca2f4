"""Show with torch's profiler how the steps of fine-tuning spend their time, without the first step.

python benchmarks/step_profile.py [STUDY] [TRIAL], such as: pocket@bitwise@nf4 smollm2-135m/adamw-8bit/1

The numbers contain the time of the profiler itself, mostly in small operations. `operations` counts those
that compute; on a GPU, each would need at least one kernel launch. The last lines give the number of
operations and the speed of matrix products, and for comparison the speed of a product of two matrices of
2,000 x 2,000.
"""

import dataclasses
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from places import at
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import qlora_repeat.execution.preload  # noqa: F401
from qlora_repeat.stages.finetune import finetune
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.system.determinism import set_kernels

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm")
VIEWS = {
    "aten::_has_compatible_shallow_copy_type", "aten::_reshape_alias", "aten::_unsafe_view", "aten::alias",
    "aten::as_strided", "aten::lift_fresh", "aten::resolve_conj", "aten::resolve_neg", "aten::result_type",
    "aten::set_", "aten::to", "aten::view",
}  # fmt: skip
"""Operations without arithmetic."""
UNPACKING = ("bitsandbytes::dequantize_4bit", "bitsandbytes::dequantize_blockwise")


def main(study_name: str = "pocket@bitwise@nf4", trial_name: str = "smollm2-135m/adamw-8bit/1") -> None:
    """Print the milliseconds of a step, and the share of each kind of operation."""
    study = load_study(study_name)
    set_kernels(study.randomness.kernels, study.threads)
    profiler = profile(activities=[ProfilerActivity.CPU])
    outputs, spent = finetuned(study, trial_name, profiler)
    steps = outputs["steps"] - 1
    found, computing = Counter[str](), Counter[str]()
    for event in profiler.events():
        kind = _kind(event)
        found[kind] += event.self_cpu_time_total / 1e6
        computing[kind] += _computes(event)
    found["Python, and what the profiler does not see"] = spent - sum(found.values())
    rows = [
        [kind, 1000 * value / steps, 100 * value / spent, round(computing[kind] / steps)]
        for kind, value in found.most_common()
    ]
    print(
        f"{study.label}, {trial_name}: weights {outputs['weights']}, {study.threads} thread(s), {steps} steps"
    )
    rows.append(["a step", 1000 * spent / steps, 100, round(computing.total() / steps)])
    headers = ["", "ms a step", "%", "operations"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=(None, ".1f", ".1f")))

    # The counter sees all products only with unpacked weights, where they are the same. It needs a separate
    # run, since its own time would be counted above.
    counter = FlopCounterMode(display=False)
    finetuned(dataclasses.replace(study, weights="materialized"), trial_name, counter)
    billions = counter.get_total_flops() / 1e9
    rate = billions / found["matrix products"]
    print(f"matrix products: {billions / steps:.1f} GFLOP a step, at {rate:.0f} GFLOP/s; ", end="")
    print(f"of large matrices {large_product():.0f} GFLOP/s")


def finetuned(
    study: Study, trial_name: str, watching: AbstractContextManager[Any]
) -> tuple[dict[str, Any], float]:
    """Fine-tune with `watching` entered after the first step; return the outputs and the seconds after it."""
    times = []

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        if done == 1:
            watching.__enter__()
            times.append(time.perf_counter())
        if done == total:
            times.append(time.perf_counter())
            watching.__exit__(None, None, None)

    with tempfile.TemporaryDirectory() as runs:
        trial = at(study, Path(runs)).trial(trial_name)
        outputs = finetune(trial, progress, {})
    return outputs, times[1] - times[0]


def large_product() -> float:
    """Return the speed of a product of large matrices, in billions of operations per second."""
    size, repeats = 2000, 5
    one, other = torch.ones(size, size), torch.ones(size, size)
    began = time.perf_counter()
    for _ in range(repeats):
        one @ other
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e9


def _computes(event: Any) -> bool:
    """Return whether the event is an elementary operation with arithmetic (on a GPU, at least one launch)."""
    if event.name in (*PRODUCTS, *UNPACKING):
        return True
    return not event.cpu_children and event.name.startswith("aten::") and event.name not in VIEWS


def _kind(event: Any) -> str:
    """Return the kind of work of an operation."""
    within = event
    while within is not None:
        if within.name.startswith("Optimizer.step"):
            return "the optimizer"
        within = within.cpu_parent
    if event.name in PRODUCTS:
        return "matrix products"
    if event.name in UNPACKING:
        return "unpacking 4-bit weights"
    return "all other operations"


if __name__ == "__main__":
    main(*sys.argv[1:])
