"""The four stages of a trial, in order: which are done, and how to run what is not."""

import contextlib
import errno
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qlora_repeat.assets.base_models import base_bytes
from qlora_repeat.errors import KitError, StageError, StoppedError
from qlora_repeat.records.record import KeptFile, Record, keep, now, write_record
from qlora_repeat.records.stage_inputs import base_inputs, stage_inputs
from qlora_repeat.records.trial_state import StageState, base_state, has_ended, stage_states
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES, Stage, Trial, base_lock, base_record
from qlora_repeat.study.watch import Watch
from qlora_repeat.system.determinism import named_operation, set_kernels
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import disk_error, require_space, write_json
from qlora_repeat.system.signals import deferrable, stop_if_requested, told_as_such


def run_stages(
    trial: Trial,
    stages: Sequence[Stage],
    cache: Path,
    watch: Watch,
    *,
    force: bool = False,
    seeds: dict[str, int] | None = None,
) -> None:
    """Runs those of a trial's stages that are not done (with `force`: all that are named), in this process.

    `seeds`, as a record has them, are used instead of those that the fine-tuning would draw.

    Raises:
        BusyError: another process works on the trial.
        MissingError: the disk has no room for merged weights.
        StageError: a stage before a wanted one is not done, or a stage failed.
        StoppedError: this process was asked to stop; what is done is kept.
    """
    require_space(trial.folder, base_bytes(trial.study, trial.model.base, cache), "QLORA_REPEAT_RUNS")
    with exclusive(trial.lock, trial.name), failure_noted(trial):
        _clean(trial)
        for stage in stages:
            states = stage_states(trial, cache)
            if states[stage].state == "done" and not force:
                continue
            _require(trial, stage, states)
            try:
                stop_if_requested()
                _run(trial, stage, cache, states, watch, seeds or _seeds_before(states))
            except StoppedError as error:
                # With it, what is done by now would be done once more; a fine-tuning has a checkpoint.
                again = "the same command" + (" without --force" if force and stage != "finetune" else "")
                raise StoppedError(f"{error}; {again} goes on from there") from None
        trial.failure.unlink(missing_ok=True)
        finished = all(state.state == "done" for state in stage_states(trial, cache).values())
        if finished and not trial.study.keep_merged:
            from qlora_repeat.stages.merge import delete_merged

            delete_merged(trial)


def _seeds_before(states: dict[Stage, StageState]) -> dict[str, int] | None:
    """The seeds of a fine-tuning of which only a file is damaged: it gives the same adapter again."""
    before = states["finetune"]
    if before.state != "damaged" or before.record is None or before.changed:
        return None
    seeds: dict[str, int] = before.record.outputs["seeds"]
    return seeds


def _clean(trial: Trial) -> None:
    """Removes what a process left that was killed: half a folder, or what was unfinished until it ended."""
    for name in (".merged.*", ".adapter.*", ".unfinished.*", ".trace.*", ".*.json.*", "unfinished/.*"):
        for left in trial.folder.glob(name):
            if left.name.startswith(f".{trial.lock.name}"):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    if has_ended(trial):
        shutil.rmtree(trial.unfinished, ignore_errors=True)


def run_base(study: Study, model_name: str, number: int, runs: Path, cache: Path, watch: Watch) -> None:
    """Tests the base of a model, in this process, unless that test is done."""
    path = base_record(study, model_name, number, runs)
    name = f"{model_name}/base/{number}"
    with exclusive(base_lock(study, model_name, number, runs), name), told_as_such():
        if base_state(study, model_name, number, runs, cache).state == "done":
            return
        from qlora_repeat.stages.evaluate import evaluate_base

        def report(done: int, total: int, loss: float | None) -> None:
            watch("base", done, total, loss)

        set_kernels(study.randomness.kernels, study.threads)
        with (
            named_operation(model_name),
            _recorded(path, name, "evaluate", base_inputs(study, model_name, cache)) as outputs,
        ):
            outputs |= evaluate_base(study, model_name, number, cache, report)


def _run(
    trial: Trial,
    stage: Stage,
    cache: Path,
    states: dict[Stage, StageState],
    watch: Watch,
    seeds: dict[str, int] | None,
) -> None:
    if stage == "finetune":
        import qlora_repeat.execution.preload  # noqa: F401

    from qlora_repeat.stages.evaluate import evaluate
    from qlora_repeat.stages.finetune import finetune
    from qlora_repeat.stages.merge import merge, require_merged
    from qlora_repeat.stages.timing import time_responses

    def report(done: int, total: int, loss: float | None) -> None:
        if stage != "finetune":  # which looks for itself, and keeps a checkpoint first
            stop_if_requested()
        watch(stage, done, total, loss)

    upstream: dict[str, Any] = {}
    for before in STAGES[: STAGES.index(stage)]:
        if (record := states[before].record) is not None:
            upstream |= record.outputs
    set_kernels(trial.study.randomness.kernels, trial.study.threads)
    report(0, 1, None)
    inputs = stage_inputs(trial, stage, cache, upstream)
    with deferrable(), _recorded(trial.record(stage), trial.name, stage, inputs, trial) as outputs:
        if stage == "finetune":
            outputs |= finetune(trial, cache, report, inputs, seeds)
        elif stage == "merge":
            outputs |= merge(trial, cache)
        else:
            require_merged(trial, cache, upstream["merged_digest"])
            measure = evaluate if stage == "evaluate" else time_responses
            with named_operation(trial.model_name):
                outputs |= measure(trial, cache, report, upstream["seeds"])
    if stage == "finetune":
        done = trial.folder / f".{trial.unfinished.name}.done"
        trial.unfinished.rename(done)  # or, killed half way, it would look like a checkpoint that is damaged
        shutil.rmtree(done, ignore_errors=True)


def _require(trial: Trial, stage: Stage, states: dict[Stage, StageState]) -> None:
    """Checks that what a stage needs is there; damaged merged weights are deleted, to be built again."""
    needed: dict[Stage, Stage] = {"merge": "finetune", "evaluate": "merge", "time": "merge"}
    before = needed.get(stage)
    if before is None:
        return
    state = states[before]
    if state.state == "damaged" and before == "merge" and state.record is not None and not state.changed:
        from qlora_repeat.stages.merge import delete_merged

        print(f"{state.damage}; the {stage} stage needs it, so that is done now", file=sys.stderr, flush=True)
        delete_merged(trial)
    elif state.state == "damaged":
        raise StageError(f"{trial.name}: {stage} needs the {before} stage, which is damaged: {state.damage}")
    elif state.state != "done":
        why = f"is stale ({', '.join(state.changed)})" if state.state == "stale" else "has not run"
        raise StageError(
            f"{trial.name}: {stage} needs the {before} stage, which {why}; run `qlora-repeat {before}`"
        )


@contextlib.contextmanager
def _recorded(
    path: Path, name: str, stage: str, inputs: dict[str, Any], trial: Trial | None = None
) -> Iterator[dict[str, Any]]:
    """Yields a dictionary for the outputs, and writes the record when the block ends well.

    Raises:
        StageError: the disk is full or cannot be written; names the file, and says how to go on.
    """
    from qlora_repeat.system.fingerprint import fingerprint

    started, began = now(), time.perf_counter()
    outputs: dict[str, Any] = {}
    try:
        if path.is_dir():  # told now, and not after hours
            raise IsADirectoryError(errno.EISDIR, "a folder stands where the record is to be", str(path))
        yield outputs
        record = Record(
            stage=stage,
            trial=name,
            inputs=inputs,
            outputs=outputs,
            files=_kept_files(trial, stage),
            fingerprint=fingerprint(),
            started=started,
            finished=now(),
            seconds=time.perf_counter() - began,
        )
        write_record(path, record)
    except OSError as error:
        if error.errno is None:  # of a library, which does not speak of a disk
            raise
        what = disk_error(error, path.parent)
        raise StageError(f"{name}: {stage}: {what}; what was done before is kept") from error


def _kept_files(trial: Trial | None, stage: str) -> dict[str, KeptFile]:
    if trial is None or stage not in ("finetune", "merge"):
        return {}
    folder = trial.adapter if stage == "finetune" else trial.merged
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if stage == "finetune":
        paths.insert(0, trial.trace)
    return {path.relative_to(trial.folder).as_posix(): keep(path) for path in paths}


@contextlib.contextmanager
def failure_noted(trial: Trial) -> Iterator[None]:
    """Leaves a note where the block fails, and makes what a library raises one line."""
    try:
        with told_as_such():
            yield
    except StoppedError:
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            write_json(trial.failure, {"time": now(), "error": f"{type(error).__name__}: {error}"})
        if isinstance(error, (KitError, AssertionError, TypeError, NameError, AttributeError)):
            raise
        raise StageError(
            f"{trial.name}: {type(error).__name__}: {error}; what was done before is kept"
        ) from error
