"""Run a recorded trial again in a folder of its own, and compare the two.

Nothing is written to the recorded trial. Settings and seeds come from its records; everything else is
computed or hashed again.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_repeat.analysis.trial_diff import Side, TrialDiff, compare_trials, read_side, record_differences
from qlora_repeat.analysis.verify.causes import may_matter, noisy_kernels
from qlora_repeat.analysis.verify.ceilings import relative
from qlora_repeat.analysis.verify.consistency import contradictions
from qlora_repeat.analysis.verify.deviations import Deviations, measure_deviations
from qlora_repeat.analysis.verify.recorded_settings import VERIFIED_STAGES, recorded_trial
from qlora_repeat.analysis.verify.verdict import BENCHMARKS, Retest, Scope
from qlora_repeat.assets.benchmarks import PACKAGE, why_not
from qlora_repeat.errors import MissingError, StageError, UsageError
from qlora_repeat.execution.run_trial import run_trial
from qlora_repeat.records.record import read_record
from qlora_repeat.records.stage_inputs import FIRST_TRIAL_SETTINGS, stage_inputs
from qlora_repeat.records.trace import read_trace
from qlora_repeat.records.trial_state import advised, stage_record
from qlora_repeat.stages.checkpoint import read_sealed, write_sealed
from qlora_repeat.study.randomness import SOURCES, draw_seeds
from qlora_repeat.study.trial import Progress, Stage, Trial
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import copy_file, delete_folder
from qlora_repeat.system.fingerprint import fingerprint
from qlora_repeat.system.hashing import json_digest
from qlora_repeat.system.private_folder import is_private, make_private

RERUNS = "verify"
"""The folder of re-runs in the cache."""
VERDICT = "verdict.json"
_TESTED: tuple[tuple[Stage, str], ...] = (
    ("merge", "merged_digest"),
    *(("evaluate", name) for name in (
        "perplexity", "examples", "responses", "accuracy", "perplexity_example_mean", "test_examples",
        "test_tokens", "generation_seed", "answers",
    )),
)  # fmt: skip
"""Outputs that a test of the same adapter reproduces."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded trial, its arm, and the trial to run again."""

    side: Side
    again: Trial
    """The trial with its recorded settings, to be run again."""
    others: list[float]
    """The perplexities of the other recorded trials of its arm."""
    left_out: list[str]
    """Trials of the arm that do not count, and why."""
    contradictions: list[str]
    """Sentences on files that disagree with each other."""


def read_recorded(trial: Trial, folder: Path, scratch: Path, scope: Scope = "whole") -> Recorded:
    """Read a recorded trial and its arm from any folder; the re-run will be in `scratch`.

    Raises:
        MissingError: it lacks what its `scope` needs, or a file is missing, damaged, or not what its stage
            writes.
        UsageError: the folder is itself a re-run.
    """
    folder = folder.resolve()
    if folder.is_relative_to(scratch.resolve()):
        raise UsageError(f"{folder}: is itself a re-run; give a trial outside of --scratch")
    for damage in _damages(trial.name, folder):
        own = folder == trial.folder.resolve()
        get = "; get the trial again from whoever ran it"
        raise MissingError(f"{advised(trial.workspace, damage) if own else damage + get}")
    side = read_side(trial.name, folder)
    needed = VERIFIED_STAGES if scope == "evaluation" else VERIFIED_STAGES[:1]
    if lacking := [stage for stage in needed if stage not in side.records]:
        raise MissingError(f"{folder / lacking[0]}.json: no such record, so there is nothing to verify")
    again = recorded_trial(trial, side.records, folder, scratch)
    if sorted(side.records["finetune"].outputs["seeds"]) != sorted(SOURCES):
        raise MissingError(f"{folder / 'finetune.json'}: expected exactly the seeds {', '.join(SOURCES)}")
    for path in sorted((folder / "adapter").glob("*")):
        if path.is_symlink() or not path.is_file():  # a link could lead anywhere
            raise MissingError(f"{path}: expected a regular file in an adapter")
    others, left_out = _others(trial, folder, side)
    return Recorded(side, again, others, left_out, contradictions(side, again))


def _damages(name: str, folder: Path) -> Iterator[str]:
    """Yield what is wrong with each record of a trial that `verify` reads."""
    for stage in VERIFIED_STAGES:
        damage = stage_record(folder / f"{stage}.json", name, stage)[1]
        if damage is not None:
            yield damage


def _others(trial: Trial, folder: Path, own: Side) -> tuple[list[float], list[str]]:
    """Return the perplexities of the arm's other trials, and sentences on trials that do not count."""
    found: list[float] = []
    left_out: list[str] = []
    if folder.name != f"trial-{trial.number}":  # other folders need not belong to its arm
        return found, left_out
    folders = set(folder.parent.glob("trial-*")) - {folder}
    for other in sorted(folders, key=lambda path: (len(path.name), path.name)):
        name = f"{trial.model_name}/{trial.optimizer}/{other.name.removeprefix('trial-')}"
        try:
            if trial.workspace.trial(name).name != name:  # as in trial-01
                raise UsageError("not a trial of the study")
            if (damage := next(_damages(name, other), None)) is not None:
                raise MissingError(damage)
            side = read_side(name, other)
        except (MissingError, UsageError) as error:
            left_out.append(f"{name}: {error}")
            continue
        if side.perplexity is None:
            left_out.append(f"{name}: not evaluated")
        elif any(_origin(side, stage) != _origin(own, stage) for stage in VERIFIED_STAGES):
            left_out.append(f"{name}: has other settings, data or base model")
        else:
            found.append(side.perplexity)
    return found, left_out


def _origin(side: Side, stage: Stage) -> Any:
    """Return the inputs of a stage that all trials of an arm share."""
    if (record := side.records.get(stage)) is None:
        return None
    settings = record.inputs["settings"]
    shared = {name: settings[name] for name in settings.keys() - FIRST_TRIAL_SETTINGS}
    return shared, record.inputs.get("base"), record.inputs.get("data")


@contextlib.contextmanager
def rerun_folder(
    recorded: Recorded, scope: Scope, steps: int | None, new_seeds: bool, repetition: int = 1
) -> Iterator[tuple[Trial, dict[str, int]]]:
    """Lock the folder of a re-run for the block; yield the trial there and its seeds.

    The folder depends on the recorded trial, the scope and the number of steps. An interrupted re-run resumes
    if inputs and machine are the same; a re-run that has its verdict starts from the beginning, and so does
    one in a folder that others could write to, because its results may be planted.

    Raises:
        BusyError: another process is running it there.
        MissingError: the folder contains something else.
        UsageError: the folder of re-runs cannot be private (`make_private`).
    """
    records = {stage: vars(record) for stage, record in recorded.side.records.items()}
    claims = json_digest(json.loads(json.dumps(records, default=vars)))
    wanted = json_digest([claims, scope, steps, new_seeds, repetition])
    workspace = recorded.again.workspace
    scratch = workspace.runs / wanted[:16]
    again = dataclasses.replace(recorded.again, workspace=dataclasses.replace(workspace, runs=scratch))
    marker = scratch / "rerun.json"
    make_private(workspace.runs)
    with exclusive(scratch.with_name(f"{scratch.name}.lock.json"), again.name):
        begun = read_sealed(marker)
        if scratch.is_symlink() or (scratch.exists() and any(scratch.iterdir()) and begun is None):
            raise MissingError(f"{scratch}: not a folder of verify; move it away, or give another --scratch")
        here = json_digest([stage_inputs(again, stage, {}) for stage in VERIFIED_STAGES] + [fingerprint()])
        resumes = begun is not None and (begun["here"], begun.get("wanted")) == (here, wanted)
        if begun is None or not resumes or not is_private(scratch) or list(scratch.rglob(VERDICT)):
            delete_folder(scratch)
            used: dict[str, int] = recorded.side.records["finetune"].outputs["seeds"]
            seeds = draw_seeds(again.study.randomness, again.number) if new_seeds else used
            make_private(scratch)
            write_sealed(marker, {"here": here, "wanted": wanted, "seeds": seeds})
        else:
            seeds = begun["seeds"]
        yield again, seeds


def run_again(
    recorded: Recorded,
    again: Trial,
    seeds: dict[str, int],
    progress: Progress,
    *,
    scope: Scope = "whole",
    steps: int | None = None,
) -> Side:
    """Run a recorded trial again, or the part that `scope` names, in the folder of `again`.

    Delete the merged weights, which can be as large as the base model; their digest is compared.

    Raises:
        StageError, StoppedError: as `run_trial`.
    """
    os.environ["OMP_NUM_THREADS"] = str(again.study.threads)
    if scope == "first steps":
        run_trial(again, ["finetune"], progress, seeds=seeds, until_step=steps or 1)
        record = read_record(again.first_steps)
        assert record is not None, "it was written just now"
        trace = read_trace(again.unfinished / again.trace.name)
        return Side("re-run", again.folder, trace, False, {"finetune": record})
    if scope == "evaluation":
        for name in ("finetune.json", *recorded.side.records["finetune"].files):
            copy_file(recorded.side.folder / name, again.folder / name)
        run_trial(again, ["merge", "evaluate"], progress, force=True, stale=True, delete_merged=True)
    else:
        stages = VERIFIED_STAGES if "evaluate" in recorded.side.records else VERIFIED_STAGES[:1]
        run_trial(again, stages, progress, seeds=seeds, delete_merged=True)
    return read_side("re-run", again.folder)


def compared(recorded: Side, rerun: Side, scope: Scope = "whole") -> TrialDiff:
    """Compare a re-run within its scope."""
    if scope == "evaluation":  # trace and adapter are the recorded ones
        diff = compare_trials(recorded, dataclasses.replace(rerun, folder=recorded.folder))
        tested = [each for each in diff.differences if each.stage == "evaluate"]
        return dataclasses.replace(diff, distances=None, differences=tested, unlike=[])
    diff = compare_trials(recorded, rerun)
    return dataclasses.replace(diff, distances=None, unlike=[]) if scope == "first steps" else diff


def measure_noise(
    recorded: Recorded,
    again: Trial,
    seeds: dict[str, int],
    rerun: Side,
    progress: Progress,
    *,
    scope: Scope,
    steps: int | None,
) -> Deviations | None:
    """Run a trial again with one more thread, in a folder inside that of its re-run, and compare both.

    Returns:
        How far one more thread moves the re-run; None if it changes nothing, as with a GPU's deterministic
        kernels.

    Raises:
        StageError, StoppedError: as `run_trial`.
    """
    study = dataclasses.replace(again.study, threads=again.study.threads + 1)
    workspace = again.workspace
    inside = dataclasses.replace(workspace, study=study, runs=workspace.runs / "one-more-thread")
    trial = dataclasses.replace(again, workspace=inside)
    diff = compared(rerun, run_again(recorded, trial, seeds, progress, scope=scope, steps=steps), scope)
    return None if diff.divergence is None else measure_deviations(diff, diff.compared_steps)


def retested(recorded: Recorded, again: Trial, diff: TrialDiff, progress: Progress) -> Retest:
    """Return how the recorded test differs from a test of the recorded adapter here.

    A re-run with another adapter says little about the recorded test. So then the recorded adapter is merged
    and tested too, in a folder inside that of the re-run `again`.

    Raises:
        StageError, StoppedError: as `run_trial`.
    """
    side = diff.second
    if "evaluate" not in recorded.side.records or "evaluate" not in side.records:
        return Retest()
    digests = (each.records["finetune"].outputs["adapter_digest"] for each in (recorded.side, side))
    if len(set(digests)) > 1:
        inside = dataclasses.replace(again.workspace, runs=again.workspace.runs / "recorded-adapter")
        trial = dataclasses.replace(again, workspace=inside)
        side = run_again(recorded, trial, {}, progress, scope="evaluation")
    else:
        trial = again
    return compared_tests(recorded.side, _with_benchmarks(recorded, trial, side, progress))


def _with_benchmarks(recorded: Recorded, trial: Trial, side: Side, progress: Progress) -> Side:
    """Run the recorded benchmarks too, if they can run here."""
    if "benchmark" not in recorded.side.records or why_not(trial.workspace) is not None:
        return side
    try:
        run_trial(trial, ["benchmark"], progress, stale=True, delete_merged=True)
    except (StageError, UsageError, MissingError):  # such as data that cannot be fetched
        return side
    return read_side("re-run", trial.folder)


def compared_tests(recorded: Side, tested: Side) -> Retest:
    """Compare the recorded merge and test with those made here, from an adapter with the same bits."""

    def differs(stage: Stage, name: str) -> bool:
        found = [side.records[stage].outputs.get(name) for side in (recorded, tested)]
        # As JSON, because NaN is not equal to NaN.
        return len({json.dumps(each, sort_keys=True) for each in found}) > 1

    unlike = [name for stage, name in _TESTED if differs(stage, name)]
    other_outcomes, benchmarked = _compared_benchmarks(recorded, tested)
    unlike += [BENCHMARKS] if other_outcomes else []
    apart = None
    if "examples" in unlike:
        apart = _examples_apart(*(side.records["evaluate"].outputs for side in (recorded, tested)))
    different = record_differences(recorded.records, tested.records, ("merge", "evaluate"))
    noisy = noisy_kernels(recorded, tested, "evaluate")
    return Retest(unlike, apart, not (noisy or any(map(may_matter, different))), benchmarked)


def _compared_benchmarks(recorded: Side, tested: Side) -> tuple[bool, bool]:
    """Return whether outcomes of the same examples differ, and whether all recorded ones were compared."""
    records = [side.records.get("benchmark") for side in (recorded, tested)]
    if records[0] is None or records[1] is None:
        return False, False
    ours, theirs = (record.outputs["tasks"] for record in records if record is not None)
    same_code = records[0].inputs.get(PACKAGE) == records[1].inputs.get(PACKAGE)
    shared = [
        name
        for name, task in ours.items()
        if same_code and name in theirs and task["examples"] == theirs[name]["examples"]
    ]
    differ = any(
        json.dumps(ours[name][key], sort_keys=True) != json.dumps(theirs[name][key], sort_keys=True)
        for name in shared
        for key in ("scores", "outcomes")
    )
    return differ, len(shared) == len(ours)


def _examples_apart(recorded: dict[str, Any], rerun: dict[str, Any]) -> float:
    """Return the largest relative difference of losses of examples; infinite for different examples.

    Examples with an answer differ from those without.
    """
    ours, theirs = recorded["examples"], rerun["examples"]
    names = [
        [(each["row"], each["tokens"], each["answered"] is None) for each in side] for side in (ours, theirs)
    ]
    if names[0] != names[1]:
        return math.inf
    apart = [relative(one["loss"], other["loss"]) or 0.0 for one, other in zip(ours, theirs, strict=True)]
    return max(apart, key=lambda value: math.inf if math.isnan(value) else value)
