"""Where the time of a step of fine-tuning goes, by torch's profiler; everything but the first step.

python benchmarks/step_profile.py [STUDY] [TRIAL], such as: pocket@bitwise@nf4 smollm2-135m/adamw-8bit/1

What the profiler itself takes is in the numbers, mostly in those of small operations. Then it prints how many
operations matrix products have, and how fast they went, beside a product of two matrices of 2,000 x 2,000.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

import qlora_repeat.preload  # noqa: F401
from qlora_repeat.finetune import finetune
from qlora_repeat.kernels import set_kernels
from qlora_repeat.study import load_study
from qlora_repeat.trial import cache_folder, find_trial

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm")
UNPACKING = ("bitsandbytes::dequantize_4bit", "bitsandbytes::dequantize_blockwise")


def main(study_name: str = "pocket@bitwise@nf4", trial_name: str = "smollm2-135m/adamw-8bit/1") -> None:
    """Prints the milliseconds of a step, and the shares of what they go to."""
    study = load_study(study_name)
    set_kernels(study.randomness.kernels, study.threads)
    profiler, times = profile(activities=[ProfilerActivity.CPU], with_flops=True), []

    def report(done: int, total: int, loss: float | None) -> None:
        if done == 1:
            profiler.start()
            times.append(time.perf_counter())
        if done == total:
            times.append(time.perf_counter())
            profiler.stop()

    with tempfile.TemporaryDirectory() as runs:
        trial = find_trial(study, trial_name, Path(runs))
        outputs = finetune(trial, cache_folder(), report, {})
    found: Counter[str] = Counter()
    for event in profiler.events():
        found[_kind(event)] += event.self_cpu_time_total / 1e6
    spent, steps = times[1] - times[0], outputs["steps"] - 1
    found["Python, and what the profiler does not see"] = spent - sum(found.values())
    rows = [[kind, 1000 * value / steps, 100 * value / spent] for kind, value in found.most_common()]
    print(
        f"{study.label}, {trial_name}: weights {outputs['weights']}, {study.threads} thread(s), {steps} steps"
    )
    rows.append(["a step", 1000 * spent / steps, 100])
    print(tabulate(rows, ["", "ms a step", "%"], tablefmt="github", floatfmt=(None, ".1f", ".1f")))
    billions = sum(event.flops for event in profiler.events() if event.name in PRODUCTS) / 1e9
    rate = billions / found["matrix products"]
    print(f"matrix products: {billions / steps:.1f} GFLOP a step, at {rate:.0f} GFLOP/s; ", end="")
    print(f"of large matrices {large_product():.0f} GFLOP/s")


def large_product() -> float:
    """Billions of operations a second in a product of matrices that are large in every direction."""
    size, repeats = 2000, 5
    one, other = torch.ones(size, size), torch.ones(size, size)
    began = time.perf_counter()
    for _ in range(repeats):
        one @ other
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e9


def _kind(event: Any) -> str:
    """What an operation's own time is spent on."""
    within = event
    while within is not None:
        if within.name.startswith("Optimizer.step"):
            return "the optimizer"
        within = within.cpu_parent
    if event.name in PRODUCTS:
        return "matrix products"
    if event.name in UNPACKING:
        return "unpacking 4-bit weights"
    if event.name == "aten::fill_" and event.cpu_parent and "empty" in event.cpu_parent.name:
        return "filling new memory, as deterministic kernels do"
    return "all other operations"


if __name__ == "__main__":
    main(*sys.argv[1:])
