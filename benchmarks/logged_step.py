"""Measure how much longer a step takes while all of its operators are logged (`diff --operations`).

python benchmarks/logged_step.py [STUDY] [TRIAL], such as: pocket@bitwise smollm2-135m/adamw-8bit/1

The script runs the first steps of a trial twice, and logs the last of them the second time. It prints the CPU
seconds of this step in both runs, their ratio, and the number of logged operators.
"""

import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from places import at

from qlora_repeat.analysis.operator_log import StepLog
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study

STEPS = 4


def main(study_name: str = "pocket@bitwise", trial_name: str = "smollm2-135m/adamw-8bit/1") -> None:
    study = load_study(study_name)
    plain, _ = last_step(study, trial_name, logs=False)
    logged, operators = last_step(study, trial_name, logs=True)
    print(
        f"{study.label}, {trial_name}, {study.threads} thread(s), step {STEPS}: plain {plain:.2f} s, ", end=""
    )
    print(f"logged {logged:.2f} s, {logged / plain:.1f} times as long, {operators:,} operators")


def last_step(study: Study, trial_name: str, *, logs: bool) -> tuple[float, int]:
    """Return the CPU seconds of the last step, and how many operators were logged."""
    times = []

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        times.append(time.process_time())

    log = StepLog(STEPS, progress)
    with tempfile.TemporaryDirectory() as runs, log if logs else nullcontext():
        trial = at(study, Path(runs)).trial(trial_name)
        run_trial(trial, ["finetune"], log.progress, seeds=SEEDS, until_step=STEPS)
    return times[-1] - times[-2], len(log.operators)


SEEDS = {"split": 1, "adapter_init": 1, "data_order": 1, "dropout": 1, "generation": 1}


if __name__ == "__main__":
    main(*sys.argv[1:])
