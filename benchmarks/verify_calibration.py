"""Measure how often `verify` gives the right verdict, on hundreds of re-runs with known changes.

    python benchmarks/verify_calibration.py run RESULTS [--trials 301] [--workers 2]
    python benchmarks/verify_calibration.py table RESULTS

`run` fills the folder RESULTS, and resumes if it was interrupted. It sets tolerances on separate trials
before it judges any re-run; EXPECTED has the right verdict for each kind of change. `table` prints how often
the verdict was right. Run `qlora-repeat fetch pocket` first.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import shutil
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from places import at

from qlora_repeat.analysis.trial_diff import Side, compare_trials, read_side
from qlora_repeat.analysis.verify.rerun import Recorded, compared, read_recorded, rerun_folder, run_again
from qlora_repeat.analysis.verify.verdict import judge_rerun
from qlora_repeat.assets import derived_cache
from qlora_repeat.assets.base_models import load_tokenizer
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.code_digest import code_digest
from qlora_repeat.stages import evaluate, finetune, merge
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.randomness import draw_seeds
from qlora_repeat.study.study import Study, Tolerance
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace

STUDY = "benchmarks/calibration.toml"
MODEL, OPTIMIZER = "neox", "adamw-32bit"
FIRST_NOISE_TRIAL = 901
"""The number of the first trial for tolerances; trials to judge are numbered from 1."""
MARGIN = 10.0
"""Tolerances are the largest observed noise times this factor."""
LEAST_FIRST_LOSS = 1e-6
"""The smallest tolerance of the first loss, whose noise is at most a few units in float32's last place."""
ARM = 7

EXPECTED: dict[str, tuple[str, ...]] = {
    "run again": ("bitwise",),
    "run again, 8-bit": ("bitwise",),
    "one weight moved by one ulp": ("within tolerance",),
    "one weight moved by one ulp, 8-bit": ("within tolerance",),
    "two threads for one": ("within tolerance", "bitwise"),
    "new seeds": ("statistically consistent",),
    "another initial adapter than the seed gives": ("different",),
    "one example swapped": ("different",),
    "learning rate 1 % higher": ("different",),
    "8-bit state for 32-bit": ("different",),
    "32-bit state for 8-bit": ("different",),
}
"""The right verdicts for each kind of re-run. Two threads may also give the same bits.

If the settings, seeds or learning rates would reveal a change, the re-run claims the recorded ones: `verify`
must find the change in the results.
"""


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


def rerun_trial(kind: str, study: Study, number: int, runs: Path) -> Trial:
    """Return the trial to run in place of recorded trial `number`."""
    optimizer = "adamw-8bit" if kind.endswith("8-bit") else OPTIMIZER
    if kind.startswith("one weight moved"):
        study = altered(study, randomness={"nudge": True})
    elif kind == "two threads for one":
        study = altered(study, threads=2)
    elif kind == "learning rate 1 % higher":
        rate = study.models[MODEL].training.learning_rate
        study = altered(study, training={"learning_rate": rate * 1.01})
    return Trial(at(study, runs), MODEL, optimizer, number)


def run_one(trial: Trial, seeds: dict[str, int] | None = None) -> Side:
    run_trial(trial, ["finetune", "merge", "evaluate"], lambda *progress: None, seeds=seeds)
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
    """Make this process read the tokenizer only once, since it is the same for all trials."""
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


def noise_of(work: Path, number: int) -> list[dict[str, Any]]:
    """Measure for each optimizer how far a nudge and another number of threads move one trial."""
    study, found = load_study(STUDY), []
    with scratch() as folder:
        for optimizer in (OPTIMIZER, "adamw-8bit"):
            still = run_one(Trial(at(study, folder / "still"), MODEL, optimizer, number))
            for kind in ("one weight moved by one ulp", "two threads for one"):
                trial = rerun_trial(kind, study, number, folder / kind)
                moved = run_one(dataclasses.replace(trial, optimizer=optimizer))
                measured = judge_rerun(
                    compare_trials(still, moved), [], Tolerance(0.0, 0.0, 0.0, 0.0)
                ).measured
                found.append({"kind": kind, "optimizer": optimizer, "trial": number, **vars(measured)})
    return found


def record(work: Path, number: int) -> list[dict[str, Any]]:
    """Run the recorded trial of that number with each optimizer, and keep its folders."""
    study, found = load_study(STUDY), []
    for optimizer in (OPTIMIZER, "adamw-8bit"):
        trial = Trial(at(study, work / "recorded"), MODEL, optimizer, number)
        side = run_one(trial)
        merge.delete_merged(trial)  # 43 MB each, and not needed
        found.append({"optimizer": optimizer, "trial": number, "perplexity": side.perplexity})
    return found


def rerun(work: Path, number: int) -> list[dict[str, Any]]:
    """Run each kind of re-run of a recorded trial, and judge it."""
    study, found = load_study(STUDY), []
    tolerances = tolerances_from(read_lines(work / "noise.jsonl"))
    with scratch() as folder:
        recorded = {
            optimizer: read_recorded(trial, trial.folder, folder / "again")
            for optimizer in (OPTIMIZER, "adamw-8bit")
            for trial in [Trial(at(study, work / "recorded"), MODEL, optimizer, number)]
        }
        for kind in EXPECTED:
            own = recorded["adamw-8bit" if kind.endswith("8-bit") else OPTIMIZER]
            assert not own.contradictions, own.contradictions
            side = (
                recorded["adamw-8bit" if kind.startswith("8-bit") else OPTIMIZER].side
                if "state for" in kind
                else rerun_side(kind, own, study, folder / "runs")
            )
            diff, retest = compared(own.side, side)
            others = arm_beside(work, number, own.again.optimizer)
            verdict = judge_rerun(diff, others, tolerances[own.again.optimizer], retest=retest)
            found.append({"kind": kind, "trial": number, "verdict": verdict.kind, **vars(verdict.measured)})
            shutil.rmtree(folder / "runs", ignore_errors=True)
    return found


def rerun_side(kind: str, own: Recorded, study: Study, runs: Path) -> Side:
    """Run a recorded trial again with the change of this kind."""
    number = own.again.number
    if kind.startswith("run again"):
        with rerun_folder(own, "whole", None, False) as (again, seeds):
            return run_again(own, again, seeds, lambda *progress: None)
    trial = rerun_trial(kind, study, number, runs)
    fresh = draw_seeds(trial.study.randomness, number + 10_000)
    seeds = own.side.records["finetune"].outputs["seeds"]
    if kind == "new seeds":
        return run_one(trial, fresh)
    if kind == "another initial adapter than the seed gives":
        seeds = seeds | {"adapter_init": fresh["adapter_init"]}
    with swapped_rows(kind, number):
        return claimed(run_one(trial, seeds), own.side)


def claimed(rerun: Side, recorded: Side) -> Side:
    """Return the re-run with a claim that it had the recorded seeds and learning rates."""
    steps = [
        dataclasses.replace(step, learning_rate=own.learning_rate)
        for step, own in zip(rerun.steps, recorded.steps, strict=True)
    ]
    seeds = recorded.records["finetune"].outputs["seeds"]
    tuned = rerun.records["finetune"]
    forged = dataclasses.replace(tuned, outputs=tuned.outputs | {"seeds": seeds})
    return dataclasses.replace(rerun, steps=steps, records=rerun.records | {"finetune": forged})


def arm_beside(work: Path, number: int, optimizer: str) -> list[float]:
    """Return the perplexities of the six other recorded trials of its arm; arms do not overlap."""
    first = (number - 1) // ARM * ARM + 1
    return [
        line["perplexity"]
        for line in read_lines(work / "recorded.jsonl")
        if line["optimizer"] == optimizer and first <= line["trial"] < first + ARM and line["trial"] != number
    ]


def tolerances_from(noise: list[dict[str, Any]]) -> dict[str, Tolerance]:
    """Return for each optimizer the largest observed noise times MARGIN."""
    names, found = ("first_loss", "loss", "adapter", "perplexity"), {}
    for optimizer in (OPTIMIZER, "adamw-8bit"):
        own = [line for line in noise if line["optimizer"] == optimizer]
        largest = {name: MARGIN * max(line[name] for line in own) for name in names}
        found[optimizer] = Tolerance(**largest | {"first_loss": max(largest["first_loss"], LEAST_FIRST_LOSS)})
    return found


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(work: Path, trials: int, noise_trials: int, workers: int) -> None:
    """Run the missing trials: first those for noise, then the recorded trials, then the re-runs."""
    work.mkdir(parents=True, exist_ok=True)
    noisy = range(FIRST_NOISE_TRIAL, FIRST_NOISE_TRIAL + noise_trials)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=remembered) as pool:
        for name, function, numbers in (
            ("noise", noise_of, noisy),
            ("recorded", record, range(1, trials + 1)),
            ("verdicts", rerun, range(1, trials + 1)),
        ):
            path, code = (
                work / f"{name}.jsonl",
                code_digest("analysis.verify.rerun", "analysis.verify.verdict"),
            )
            done = {line["trial"] for line in read_lines(path)}
            if any(line["code"] != code for line in read_lines(path)):
                raise SystemExit(f"{path}: the code has changed since; give another folder")
            left = [number for number in numbers if number not in done]
            with path.open("a", encoding="utf-8") as file:
                for lines in pool.imap_unordered(functools.partial(function, work), left):
                    file.write("".join(json.dumps(line | {"code": code}) + "\n" for line in lines))
                    file.flush()
                    print(f"{name}: {lines[0]['trial']}", flush=True)


def table(work: Path) -> None:
    """Print the tolerances, and how often the verdict on each kind was right."""
    from scipy.stats import binomtest

    noise, verdicts = read_lines(work / "noise.jsonl"), read_lines(work / "verdicts.jsonl")
    print(f"Tolerances, {MARGIN:g} times the largest noise of {len(noise)} re-runs of other trials:")
    for optimizer, found in tolerances_from(noise).items():
        print(f"{optimizer}: " + ", ".join(f"{name} {value:.1e}" for name, value in vars(found).items()))
    print()
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for line in verdicts:
        by_kind[line["kind"]][line["verdict"]] += 1
    print("| re-run | right verdict | re-runs | wrong | share wrong, 95 % interval | verdicts |")
    print("|---|---|---|---|---|---|")
    for kind, right in EXPECTED.items():
        counted = by_kind[kind]
        total = sum(counted.values())
        wrong = total - sum(counted[each] for each in right)
        interval = binomtest(wrong, total).proportion_ci(0.95, "wilson") if total else None
        share = (
            f"{100 * wrong / total:.2f} % ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
            if interval
            else "-"
        )
        verdicts_given = ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())
        print(f"| {kind} | {' or '.join(right)} | {total} | {wrong} | {share} | {verdicts_given} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("work", type=Path, metavar="RESULTS")
    parser.add_argument("--trials", type=int, default=301)
    parser.add_argument("--noise-trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.what == "run":
        run(given.work, given.trials, given.noise_trials, given.workers)
    else:
        table(given.work)


if __name__ == "__main__":
    main()
