"""Run the stages of a trial, or a test of a base, in this process, unless they are done."""

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_bytes
from qlora_repeat.assets.inspection import inspected
from qlora_repeat.errors import KitError, StageError, StoppedError
from qlora_repeat.execution.device import prepare
from qlora_repeat.execution.tracking import tracked
from qlora_repeat.records.record import KeptFile, Record, keep, now, write_record
from qlora_repeat.records.stage_inputs import base_inputs, stage_inputs
from qlora_repeat.records.trial_state import (
    StageState,
    base_state,
    has_ended,
    source_digests,
    stage_record,
    stage_states,
)
from qlora_repeat.stages import merge
from qlora_repeat.study.trial import BaseTest, Progress, Stage, Trial
from qlora_repeat.system.determinism import named_operation, set_kernels
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import (
    delete_folder,
    discard,
    disk_error,
    remove,
    require_space,
    restore_folder,
    write_json,
)
from qlora_repeat.system.memory import release_memory
from qlora_repeat.system.optional_packages import UNWANTED, without
from qlora_repeat.system.parallel import in_parallel
from qlora_repeat.system.printable import printable, say
from qlora_repeat.system.signals import deferrable, stop_if_requested, stop_not_hidden


def run_trial(
    trial: Trial,
    stages: Sequence[Stage],
    progress: Progress,
    *,
    force: bool = False,
    seeds: dict[str, int] | None = None,
    until_step: int | None = None,
    stale: bool = False,
    delete_merged: bool = False,
) -> None:
    """Run the given stages of a trial that are not done (with `force`: all), in this process.

    Args:
        seeds: recorded seeds to use instead of those that the fine-tuning would draw.
        until_step: only fine-tune, up to this step; leave the trace in ``unfinished`` and a record in
            `Trial.first_steps`. The stage does not count as done.
        stale: allow a stage to use stale results of an earlier stage.
        delete_merged: delete the merged weights at the end, even if the study keeps them.

    Raises:
        BusyError: another process works on the trial.
        MissingError: the disk has no room for merged weights.
        NoGpuError: the study asks for a GPU, and this process can use none.
        StageError: a stage failed, or an earlier stage that it needs is not done.
        StoppedError: this process was asked to stop; finished work is kept.
    """
    prepare(trial.study)
    workspace = trial.workspace
    require_space(trial.folder, base_bytes(workspace, trial.model.base), "QLORA_REPEAT_RUNS")
    with without(*UNWANTED), exclusive(trial.lock, trial.name), _failure_noted(trial):
        _clean(trial)
        if until_step is not None:
            _run_stage(trial, "finetune", {}, progress, seeds, until_step)
            return
        for stage in stages:
            if stage not in trial.stages:
                continue
            states = stage_states(trial)
            if states[stage].state == "done" and not force:
                continue
            _require(trial, stage, states, stale)
            try:
                stop_if_requested()
                _run_stage(trial, stage, states, progress, seeds or _seeds_before(states))
            except StoppedError as error:
                # --force would repeat the finished stages; only a fine-tuning resumes from a checkpoint.
                unforced = " without --force" if force and stage != "finetune" else ""
                raise StoppedError(f"{error}; run the same command{unforced} to resume") from None
        remove(trial.failure)
        finished = all(state.state == "done" for state in stage_states(trial).values())
        if delete_merged or (finished and not trial.study.keep_merged):
            merge.delete_merged(trial)


def _seeds_before(states: dict[Stage, StageState]) -> dict[str, int] | None:
    """Return the recorded seeds if only a file of the fine-tuning is damaged, to restore its adapter."""
    before = states[next(iter(states))]
    if before.state != "damaged" or before.record is None or before.changed:
        return None
    seeds: dict[str, int] = before.record.outputs["seeds"]
    return seeds


def _clean(trial: Trial) -> None:
    """Remove temporary files of a killed process, and the checkpoint of a finished fine-tuning."""
    for replaced in (trial.adapter, trial.last_steps, trial.merged):
        restore_folder(replaced)
    folders = ("merged", "adapter", "last-steps", "unfinished", "trace", "*.json")
    for name in (*(f".{folder}.*" for folder in folders), "unfinished/.*"):
        for left in trial.folder.glob(name):
            if left.name.startswith(f".{trial.lock.name}"):
                continue
            discard(left)
    if has_ended(trial):
        delete_folder(trial.unfinished)


def run_base_test(test: BaseTest, progress: Progress) -> None:
    """Test the base of a model in this process, unless the test is done.

    Raises:
        BusyError: another process runs the test.
        NoGpuError: as `run_trial`.
        StageError: the test failed.
    """
    prepare(test.workspace.study)
    with without(*UNWANTED), exclusive(test.lock, test.name), stop_not_hidden():
        for left in test.record.parent.glob(f".{test.record.name}.*"):  # of a killed process
            discard(left)
        if base_state(test).state == "done":
            return
        from qlora_repeat.stages.evaluate import evaluate_base

        study = test.workspace.study
        set_kernels(study.randomness.kernels, study.threads)
        import qlora_repeat.execution.preload  # noqa: F401 (a trial may follow in this process)

        with (
            named_operation(test.model_name),
            _recorded(test.record, test.name, "evaluate", base_inputs(test)) as outputs,
        ):
            outputs |= evaluate_base(test, progress)
            release_memory()


def _run_stage(
    trial: Trial,
    stage: Stage,
    states: dict[Stage, StageState],
    progress: Progress,
    seeds: dict[str, int] | None,
    until_step: int | None = None,
) -> None:
    if stage == "finetune":
        import qlora_repeat.execution.preload  # noqa: F401

    from qlora_repeat.stages.average import average
    from qlora_repeat.stages.benchmark import benchmark
    from qlora_repeat.stages.evaluate import evaluate
    from qlora_repeat.stages.finetune import finetune, lora_config
    from qlora_repeat.stages.mergeable import check_mergeable
    from qlora_repeat.stages.timing import time_responses

    def stoppable(stage: str, done: int, total: int, loss: float | None) -> None:
        stop_if_requested()
        progress(stage, done, total, loss)

    upstream: dict[str, Any] = {"sources": source_digests(trial)}
    for before in trial.stages[: trial.stages.index(stage)]:
        if (record := states[before].record) is not None:
            upstream |= record.outputs
    set_kernels(trial.study.randomness.kernels, trial.study.threads)
    progress(stage, 0, 1, None)
    inputs = stage_inputs(trial, stage, upstream)
    path = trial.record(stage) if until_step is None else trial.first_steps
    with deferrable(), _recorded(path, trial.name, stage, inputs, trial) as outputs:
        if stage == "finetune":  # handles requests to stop itself, with a checkpoint
            check_mergeable(trial.workspace, trial.model_name, lora_config(trial.study, ["layer"]))
            if until_step is None:
                outputs["rows"] = asdict(inspected(trial.workspace, trial.model_name, keep=False))
            with tracked(trial) if until_step is None else contextlib.nullcontext() as watch:
                outputs |= finetune(trial, progress, inputs, seeds, until_step, watch=watch)
        elif stage == "average":
            records = [
                stage_record(each.record("finetune"), each.name, "finetune")[0] for each in trial.sources
            ]
            outputs |= average(trial, [record.outputs["seeds"] for record in records if record is not None])
        elif stage == "merge":
            outputs |= merge.merge(trial)
        else:
            merge.require_merged(trial, upstream["merged_digest"])
            measure = {"evaluate": evaluate, "time": time_responses, "benchmark": benchmark}[stage]
            with named_operation(trial.model_name):
                outputs |= measure(trial, stoppable, upstream["seeds"])
        release_memory()  # before files are hashed and the next stage loads its model
    if stage == "finetune" and until_step is None:
        delete_folder(trial.unfinished)


def _require(trial: Trial, stage: Stage, states: dict[Stage, StageState], stale: bool) -> None:
    """Check that the stage before is done; delete damaged merged weights, so that they are rebuilt."""
    if stage == trial.stages[0]:
        for source in trial.sources:
            if (state := stage_states(source)["finetune"]).state != "done":
                raise StageError(
                    f"{trial.name}: average needs the adapter of {source.name}, {_why(source, state)}"
                )
        return
    before: Stage = trial.stages[0] if stage == "merge" else "merge"
    state = states[before]
    if state.state == "damaged" and before == "merge" and state.record is not None and not state.changed:
        say(f"{state.damage}; the {stage} stage needs it, so the weights are rebuilt now", error=True)
        merge.delete_merged(trial)
    elif state.state == "damaged":
        raise StageError(f"{trial.name}: {stage} needs the {before} stage, which is damaged: {state.damage}")
    elif state.state != "done" and not (stale and state.state == "stale"):
        raise StageError(f"{trial.name}: {stage} needs the {before} stage, {_why(trial, state)}")


def _why(trial: Trial, state: StageState) -> str:
    """Return why a trial's adapter or merged model cannot be used, and the command that makes it."""
    why = {"stale": f"is stale ({', '.join(state.changed)})", "damaged": f"is damaged ({state.damage})"}
    command = trial.workspace.command("trial", trial=trial.name)
    return f"which {why.get(state.state, 'has not run')}; run `{command}`"


@contextlib.contextmanager
def _recorded(
    path: Path, name: str, stage: str, inputs: dict[str, Any], trial: Trial | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for the outputs, and write the record if the block ends without an error.

    Raises:
        StageError: the disk is full or read-only; the message names the file.
    """
    from qlora_repeat.system.fingerprint import fingerprint

    started, began = now(), time.perf_counter()
    outputs: dict[str, Any] = {}
    try:
        if path.is_dir():  # fail now, not after hours
            raise IsADirectoryError(errno.EISDIR, "expected a record, found a folder", str(path))
        yield outputs
        record = Record(
            stage=stage,
            trial=name,
            inputs=inputs,
            outputs=outputs,
            files=_kept_files(trial, path.stem),
            fingerprint=fingerprint(),
            started=started,
            finished=now(),
            seconds=time.perf_counter() - began,
        )
        write_record(path, record)
    except OSError as error:
        if error.errno is None:  # raised by a library, not by the disk
            raise
        what = disk_error(error, path.parent)
        raise StageError(f"{name}: {stage}: {what}; finished work is kept") from error


def _kept_files(trial: Trial | None, stage: str) -> dict[str, KeptFile]:
    if trial is None or stage not in ("finetune", "average", "merge"):
        return {}
    folders = [trial.merged] if stage == "merge" else [trial.adapter]
    if stage == "finetune" and trial.last_steps.is_dir():
        folders.append(trial.last_steps)
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    if stage == "finetune":
        paths.insert(0, trial.trace)
    kept = in_parallel(keep, paths, sum(path.stat().st_size for path in paths))
    return {path.relative_to(trial.folder).as_posix(): file for path, file in zip(paths, kept, strict=True)}


@contextlib.contextmanager
def _failure_noted(trial: Trial) -> Iterator[None]:
    """Write a failure note if the block fails, and turn errors of libraries into one line."""
    try:
        with stop_not_hidden():
            yield
    except StoppedError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust
            raise
        with contextlib.suppress(OSError):
            text = printable(f"{type(error).__name__}: {error}")  # a lone surrogate could not be written
            write_json(trial.failure, {"time": now(), "error": text})
        if isinstance(error, (KitError, AssertionError, TypeError, NameError, AttributeError)):
            raise
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            what = disk_error(error)
        raise StageError(f"{trial.name}: {what}; finished work is kept") from error
