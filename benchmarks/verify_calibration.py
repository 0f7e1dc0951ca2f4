"""Measure how often `verify` gives the right verdict, on hundreds of re-runs with known changes.

    python benchmarks/verify_calibration.py run RESULTS [--trials 301] [--workers 2]
    python benchmarks/verify_calibration.py table RESULTS

`run` fills the folder RESULTS, and resumes if it was interrupted. EXPECTED has the right verdicts for each
kind of re-run; tolerances are the default ones. `table` prints how often the verdict was wrong. Run
`qlora-repeat fetch pocket` first.

Seven trials are an arm: where statistics decide, the other six judge the re-run of one. So the arms are
clusters, and each 95 % interval is Wilson's for N / design effect re-runs (`interval`). A bootstrap of arms
would give an interval of no width where no verdict is wrong.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any
from unittest.mock import patch

from places import at

from qlora_repeat.analysis.trial_diff import Side, compare_trials, read_side
from qlora_repeat.analysis.verify.ceilings import relative
from qlora_repeat.analysis.verify.consistency import contradictions
from qlora_repeat.analysis.verify.deviations import Deviations, measure_deviations
from qlora_repeat.analysis.verify.rerun import (
    Recorded,
    compared,
    compared_tests,
    read_recorded,
    rerun_folder,
    run_again,
)
from qlora_repeat.analysis.verify.verdict import DEFAULT_TOLERANCE, Scope, judge_rerun
from qlora_repeat.assets import datasets, derived_cache
from qlora_repeat.assets.base_models import load_tokenizer
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.code_digest import code_digest
from qlora_repeat.records.trace import Step, loss_curve
from qlora_repeat.stages import evaluate, finetune, merge
from qlora_repeat.stages.perplexity import ExampleLoss, accuracy, mean_example_perplexity, perplexity
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import draw_seeds
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.study.workspace import Workspace

STUDY = "benchmarks/calibration.toml"
MODEL, OPTIMIZER = "neox", "adamw-32bit"
ARM = 7
STUDY_TRIALS = 56
"""The number of trials of the study among which `verify` divides its error rate, as in the paper's study."""
OUTLIER = 30.0
"""The learning rate of outliers, relative to that of their siblings; it about doubles their perplexity."""

OTHER_INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Make torch and its libraries use vector instructions of older processors, where there is AVX-512."""

AGREES = ("within tolerance", "bitwise")
EXPECTED: dict[str, tuple[str, ...]] = {
    "run again": ("bitwise",),
    "run again, 8-bit": ("bitwise",),
    "one weight moved by one ulp": ("within tolerance",),
    "one weight moved by one ulp, 8-bit": ("within tolerance",),
    "two threads for one": AGREES,
    "new seeds": ("statistically consistent", "inconclusive"),
    "another initial adapter than the seed gives": ("different",),
    "one example swapped": ("different",),
    "learning rate 1 % higher": ("different",),
    "8-bit state for 32-bit": ("different",),
    "32-bit state for 8-bit": ("different",),
    # Something wrong together with something excusable, and something odd with nothing wrong:
    "8-bit state for 32-bit, two threads": ("different",),
    "learning rate 1 % higher, new seeds": ("different",),
    "another initial adapter, a GPU's default kernels": ("different",),
    "test forged by 5 %, two threads": ("different",),
    "test forged by 5 %, two threads, only tested again": ("different",),
    "losses forged by 50 %, another processor": ("different",),
    "losses forged by 50 % from step 5, another processor": ("different",),
    "other vector instructions": AGREES,
    "8-bit state for 32-bit, other vector instructions": ("different",),
    "outlier, two threads": (*AGREES, "statistically consistent", "inconclusive"),
}
"""The right verdicts for each kind of re-run. Two threads may also give the same bits.

If anything is wrong, only *different* is right, even where docs/reference/verdicts.md says that `verify`
cannot find it: the share of wrong verdicts is then the share of misses. *Inconclusive* deceives nobody, but
counts as wrong there. For new seeds or an outlier, where nothing is wrong, the rules ask for it if the other
trials vary too much, so only the other verdicts are wrong.

If the settings, seeds or learning rates would reveal a change, the re-run claims the recorded ones, except
for new seeds: `verify` must find the change in the results. Forged records do not contradict each other.
"""
SAME_RUN = {
    "another initial adapter, a GPU's default kernels": "another initial adapter than the seed gives",
    "test forged by 5 %, two threads": "two threads for one",
    "losses forged by 50 %, another processor": "run again",
    "other vector instructions": "run again",
    "8-bit state for 32-bit, other vector instructions": "run again",
    "losses forged by 50 % from step 5, another processor": "run again",
}
"""Kinds whose re-run is that of another kind, because only records differ."""


def altered(study: Study, **changes: Any) -> Study:
    """Return the study with changes in training, randomness or other settings."""
    model = study.models[MODEL]
    training = dataclasses.replace(model.training, **changes.pop("training", {}))
    randomness = dataclasses.replace(study.randomness, **changes.pop("randomness", {}))
    return dataclasses.replace(
        study,
        models={MODEL: dataclasses.replace(model, training=training)},
        profiles={study.profile: randomness},
        **changes,
    )


def optimizers(kind: str) -> tuple[str, str]:
    """Return the recorded optimizer and the re-run's."""
    recorded, other = OPTIMIZER, "adamw-8bit"
    if kind.endswith(", 8-bit") or "for 8-bit" in kind:
        recorded, other = other, recorded
    return recorded, other if "state for" in kind else recorded


def rerun_trial(kind: str, study: Study, number: int, runs: Path) -> Trial:
    """Return the trial to run in place of recorded trial `number`; the words of its kind say what changes."""
    rate = study.models[MODEL].training.learning_rate
    if "one weight moved" in kind:
        study = altered(study, randomness={"nudge": True})
    if "two threads" in kind:
        study = altered(study, threads=2)
    if "learning rate" in kind or "outlier" in kind:
        study = altered(study, training={"learning_rate": rate * (OUTLIER if "outlier" in kind else 1.01)})
    return Trial(at(study, runs), MODEL, optimizers(kind)[1], number)


def run_one(trial: Trial, seeds: dict[str, int] | None = None) -> Side:
    stages: list[Stage] = ["finetune", "merge", "evaluate"]
    # Merged weights have 43 MB in each trial, and are not needed.
    run_trial(trial, stages, lambda *progress: None, seeds=seeds, delete_merged=True)
    return read_side("re-run", trial.folder)


@contextlib.contextmanager
def swapped_rows(kind: str, number: int) -> Iterator[None]:
    """For this kind, exchange the row of one of the trial's steps with another row."""
    if kind != "one example swapped":
        yield
        return
    part_rows = derived_cache.part_rows
    study = load_study(STUDY)
    seeds = draw_seeds(study.randomness, number)

    def swapped(workspace: Workspace, name: str, part: Any, seed: int) -> list[Any]:
        rows = list(part_rows(workspace, name, part, seed))
        steps = workspace.study.models[MODEL].training.steps or 1
        order = finetune.batch_order(len(rows), 1, steps, seeds["data_order"])
        seen = order[number % steps][0]
        other = (seen + 1 + number) % len(rows)
        rows[seen], rows[other] = rows[other], rows[seen]
        return rows

    with patch.object(derived_cache, "part_rows", swapped):
        yield


def remembered() -> None:
    """Make this process read tokenizer and rows only once, since they are the same for all trials."""
    import gc

    import qlora_repeat.execution.preload  # noqa: F401

    gc.freeze()  # otherwise garbage collection of library objects takes a quarter of each trial
    known: list[Any] = []

    def load(folder: Path) -> Any:
        if not known:
            known.append(load_tokenizer(folder))
        return known[0]

    for module in (finetune, evaluate, merge):
        setattr(module, "load_tokenizer", load)  # noqa: B010
    part_rows, found = datasets.part_rows, {}

    def rows(workspace: Workspace, name: str, part: Any, seed: int, *, whole: bool = False) -> list[Any]:
        key = name, part, seed, whole
        if key not in found:
            found[key] = part_rows(workspace, name, part, seed, whole=whole)
        return list(found[key])

    for module in (datasets, derived_cache):
        setattr(module, "part_rows", rows)  # noqa: B010


def by_step(first: Side, second: Side) -> list[float | None]:
    """Return the relative difference of the losses of each step."""
    pairs = zip(first.steps[1:], second.steps[1:], strict=True)
    return [relative(one.loss, other.loss) for one, other in pairs]


def record(work: Path, number: int, folder: str = "recorded") -> list[dict[str, Any]]:
    """Run the recorded trial of that number with each optimizer, and keep its folders."""
    study, found = load_study(STUDY), []
    for optimizer in (OPTIMIZER, "adamw-8bit"):
        trial = Trial(at(study, work / folder), MODEL, optimizer, number)
        side = run_one(trial)
        found.append({"optimizer": optimizer, "trial": number, "perplexity": side.perplexity})
    return found


def rerun(work: Path, number: int) -> list[dict[str, Any]]:
    """Run each kind of re-run of a recorded trial, and judge it."""
    study, found = load_study(STUDY), []
    with scratch() as folder:
        recorded = {
            optimizer: read_recorded(trial, trial.folder, folder / "again")
            for optimizer in (OPTIMIZER, "adamw-8bit")
            for trial in [Trial(at(study, work / "recorded"), MODEL, optimizer, number)]
        }

        for own in recorded.values():
            assert not own.contradictions, own.contradictions

        @functools.cache
        def run_of(kind: str) -> Side:
            own, other = (recorded[optimizer] for optimizer in optimizers(kind))
            if own is not other and "threads" not in kind:
                return other.side
            return rerun_side(kind, own, study, folder / kind)

        @functools.cache
        def usual(kind: str) -> Side:
            """Return what is recorded, before anything is forged."""
            if kind.startswith("outlier"):
                return run_of("outlier")
            claimed, actual = optimizers(kind)
            if "vector instructions" in kind:
                return read_side(
                    "recorded", Trial(at(study, work / "elsewhere"), MODEL, actual, number).folder
                )
            return recorded[claimed].side

        @functools.cache
        def tested(kind: str, threads: int) -> Side:
            """Test here the adapter that is usual for this kind."""
            optimizer = usual(kind).records["finetune"].trial.split("/")[1]
            own = dataclasses.replace(recorded[optimizer], side=usual(kind))
            again = Trial(at(altered(study, threads=threads), folder / "tested"), MODEL, optimizer, number)
            shutil.rmtree(again.folder, ignore_errors=True)
            return run_again(own, again, {}, lambda *progress: None, scope="evaluation")

        @functools.cache
        def noise_here(kind: str) -> Deviations:
            trial = rerun_trial(kind, study, number, folder / "noise" / kind)
            threads = trial.workspace.study.threads + 1
            again = dataclasses.replace(
                trial, workspace=at(altered(trial.workspace.study, threads=threads), trial.workspace.runs)
            )
            seeds = recorded[optimizers(kind)[0]].side.records["finetune"].outputs["seeds"]
            found = compare_trials(run_of(kind), run_one(again, seeds))
            return measure_deviations(found, found.compared_steps)

        for kind in EXPECTED:
            optimizer, _ = optimizers(kind)
            own = recorded[optimizer]
            first, second = forged(kind, usual(kind), run_of(SAME_RUN.get(kind, kind)))
            assert first is usual(kind) or not contradictions(first, own.again), kind
            scope: Scope = "evaluation" if kind.endswith("only tested again") else "whole"
            diff = compared(first, second, scope)
            adapters = {side.records["finetune"].outputs["adapter_digest"] for side in (first, second)}
            like = next(each for each in EXPECTED if usual(each).folder == usual(kind).folder)
            retest = compared_tests(
                first,
                second if len(adapters) == 1 else tested(like, 2 if "two threads" in kind else 1),
            )
            others = arm_beside(work, number, optimizer)
            judge = functools.partial(
                judge_rerun,
                diff,
                others,
                DEFAULT_TOLERANCE,
                scope=scope,
                retest=retest,
                trials=STUDY_TRIALS,
            )
            verdict = judge()
            if verdict.by_arithmetic:
                verdict = judge(noise=noise_here(SAME_RUN.get(kind, kind)))
            given = f"{verdict.kind}, weak" if verdict.weak else verdict.kind
            line = {"kind": kind, "trial": number, "verdict": given, "by_step": by_step(first, second)}
            found.append(line | vars(verdict.measured))
    return found


def rerun_side(kind: str, own: Recorded, study: Study, runs: Path) -> Side:
    """Run a recorded trial again with the change of this kind, and claim what would reveal it."""
    if kind.startswith("run again"):
        with rerun_folder(own, "whole", None, False) as (again, seeds):
            return run_again(own, again, seeds, lambda *progress: None)
    trial = rerun_trial(kind, study, own.again.number, runs)
    claimed = seeds = own.side.records["finetune"].outputs["seeds"]
    if kind.endswith("only tested again"):
        return run_again(own, trial, seeds, lambda *progress: None, scope="evaluation")
    fresh = draw_seeds(trial.study.randomness, trial.number + 10_000)
    if "new seeds" in kind:
        claimed = seeds = fresh
    elif "initial adapter" in kind:
        seeds = seeds | {"adapter_init": fresh["adapter_init"]}
    with swapped_rows(kind, trial.number):
        side = run_one(trial, seeds)
    steps = [
        dataclasses.replace(step, learning_rate=recorded.learning_rate)
        for step, recorded in zip(side.steps, own.side.steps, strict=True)
    ]
    return changed(side, steps, finetune={"seeds": claimed})


def changed(side: Side, steps: list[Step], fingerprint: dict[str, str] | None = None, **outputs: Any) -> Side:
    """Return a trial with these steps, and with changes in its fingerprints and in outputs of stages."""
    records = {
        stage: dataclasses.replace(
            record,
            outputs=record.outputs | outputs.get(stage, {}),
            fingerprint=record.fingerprint | (fingerprint or {}),
        )
        for stage, record in side.records.items()
    }
    return dataclasses.replace(side, steps=steps, records=records)


def forged(kind: str, recorded: Side, rerun: Side) -> tuple[Side, Side]:
    """Return both trials with what this kind forges; all numbers that follow from others agree with them."""
    if kind.startswith("test forged"):
        tested = recorded.records["evaluate"].outputs
        losses = [ExampleLoss(**each) for each in tested["examples"]]
        losses = [
            dataclasses.replace(
                each,
                loss=each.loss + math.log(1 - 0.05) * each.tokens,
                answered=each.answered is not None or None,
            )
            for each in losses
        ]
        outputs = {
            "examples": [dataclasses.asdict(loss) for loss in losses],
            "perplexity": perplexity(losses),
            "perplexity_example_mean": mean_example_perplexity(losses),
            "accuracy": accuracy(losses),
            "responses": [each | {"text": "Forged."} for each in tested["responses"]],
        }
        return changed(recorded, recorded.steps, evaluate=outputs), rerun
    if kind.startswith("losses forged"):
        first = 5 if "from step 5" in kind else 1
        steps = [
            dataclasses.replace(step, loss=step.loss * 1.5) if step.loss and step.step >= first else step
            for step in recorded.steps
        ]
        outputs = {
            "initial_loss": steps[1].loss,
            "final_loss": steps[-1].loss,
            "loss_curve": loss_curve(steps),
        }
        return changed(recorded, steps, {"cpu": "another processor"}, finetune=outputs), rerun
    if "a GPU's" in kind:
        on_gpu = {"gpu": "a GPU"}
        return changed(recorded, recorded.steps, on_gpu), changed(rerun, rerun.steps, on_gpu)
    return recorded, rerun


def arm_beside(work: Path, number: int, optimizer: str) -> list[float]:
    """Return the perplexities of the six other recorded trials of its arm; arms do not overlap."""
    first = (number - 1) // ARM * ARM + 1
    return [
        line["perplexity"]
        for line in read_lines(work / "recorded.jsonl")
        if line["optimizer"] == optimizer and first <= line["trial"] < first + ARM and line["trial"] != number
    ]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(work: Path, trials: int, workers: int) -> None:
    """Run the missing trials: first the recorded ones, then their re-runs."""
    work.mkdir(parents=True, exist_ok=True)
    every = range(1, trials + 1)
    run_each(work, "recorded", record, every, workers)
    with patch.dict(os.environ, OTHER_INSTRUCTIONS):  # which new processes read when they start
        run_each(work, "elsewhere", functools.partial(record, folder="elsewhere"), every, workers)
    run_each(work, "verdicts", rerun, every, workers)


def run_each(
    work: Path,
    name: str,
    function: Callable[[Path, int], list[dict[str, Any]]],
    numbers: Iterable[int],
    workers: int,
) -> None:
    """Call the function with each number whose lines are not yet in the file of this name, and add them."""
    path, code = work / f"{name}.jsonl", code_digest("analysis.verify.rerun", "analysis.verify.verdict")
    done = {line["trial"] for line in read_lines(path)}
    if any(line["code"] != code for line in read_lines(path)):
        raise SystemExit(f"{path}: the code has changed since; give another folder")
    left = [number for number in numbers if number not in done]
    pool = multiprocessing.get_context("spawn").Pool(workers, initializer=remembered)
    with pool, path.open("a", encoding="utf-8") as file:
        for lines in pool.imap_unordered(functools.partial(function, work), left):
            file.write("".join(json.dumps(line | {"code": code}) + "\n" for line in lines))
            file.flush()
            print(f"{name}: {lines[0]['trial']}", flush=True)


def table(work: Path) -> None:
    """Print how far losses differ, how often the verdict on each kind was wrong, and the verdicts."""
    verdicts = read_lines(work / "verdicts.jsonl")
    for kind in ("two threads for one", "other vector instructions", "outlier, two threads"):
        lines = [line["by_step"] for line in verdicts if line["kind"] == kind]
        largest = [max(steps) for steps in zip(*lines, strict=True)]
        shown = ", ".join(f"{each:.1e}" for each in largest)
        print(f"Largest relative difference of a loss, by step, {kind}: {shown}")
    print()
    print("| re-run | right verdict | wrong | share wrong, 95 % interval | verdicts |")
    print("|---|---|---|---|---|")
    for kind, right in EXPECTED.items():
        own = [line for line in verdicts if line["kind"] == kind]
        arms = [(line["trial"] - 1) // ARM for line in own]
        is_wrong = [line["verdict"].removesuffix(", weak") not in right for line in own]
        wrong = Counter(itertools.compress(arms, is_wrong))
        low, high = interval(wrong, Counter(arms))
        share = f"{100 * wrong.total() / max(len(own), 1):.2f} % ({100 * low:.2f} to {100 * high:.2f})"
        split = Counter(line["verdict"] for line in own).most_common()
        given = "; ".join(f"{count} {verdict}" for verdict, count in split)
        print(f"| {kind} | {' or '.join(right)} | {wrong.total()} of {len(own)} | {share} | {given} |")


def interval(wrong: Counter[int], judged: Counter[int]) -> tuple[float, float]:
    """Return the 95 % interval of the share of wrong verdicts, from their numbers in each arm.

    It is Wilson's for N / design effect re-runs. The design effect is the variance of the share between arms
    (of a ratio), relative to that of independent re-runs, and at least 1. It is 1 if all verdicts are wrong,
    or none is, because false alarms of the test of a pair are almost independent (as its test simulates).
    """
    total, arms = judged.total(), len(judged)
    if not total:
        return 0.0, 1.0
    share = wrong.total() / total
    squares = sum((wrong[arm] - share * count) ** 2 for arm, count in judged.items())
    independent = share * (1 - share) * total
    effect = max(1.0, arms / (arms - 1) * squares / independent) if independent and arms > 1 else 1.0
    z, n = NormalDist().inv_cdf(0.975), total / effect
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("work", type=Path, metavar="RESULTS")
    parser.add_argument("--trials", type=int, default=301)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.what == "run":
        run(given.work, given.trials, given.workers)
    else:
        table(given.work)


if __name__ == "__main__":
    main()
