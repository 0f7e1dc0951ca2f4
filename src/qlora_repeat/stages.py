"""The four stages of a trial, in order: which are done, and how to run what is not."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.base_model import base_bytes
from qlora_repeat.digest import file_digest
from qlora_repeat.errors import KitError, StageError, StoppedError
from qlora_repeat.files import require_space, write_json
from qlora_repeat.inputs import base_inputs, changed_inputs, stage_inputs
from qlora_repeat.kernels import named_operation, set_kernels
from qlora_repeat.lock import exclusive, live_owner
from qlora_repeat.record import Record, damaged_file, now, read_record, write_record
from qlora_repeat.stopping import stop_if_requested
from qlora_repeat.study import Study
from qlora_repeat.trial import STAGES, Stage, Trial, base_record
from qlora_repeat.watch import Watch

State = Literal["done", "running", "stale", "failed", "missing"]


@dataclass(frozen=True)
class StageState:
    """How a stage of a trial stands."""

    state: State
    record: Record | None = None
    changed: list[str] = field(default_factory=list)
    """Stale: the inputs that are no longer what they were."""


def stage_states(trial: Trial, cache: Path) -> dict[Stage, StageState]:
    """How each stage stands. One is stale if its inputs changed, or the stage before is not done."""
    states: dict[Stage, StageState] = {}
    upstream: dict[str, Any] = {}
    before: Stage | None = None  # the stage whose outcome the next one needs
    for stage in STAGES:
        record = read_record(trial.record(stage))
        if record is None:
            states[stage] = StageState("missing")
        else:
            changed = changed_inputs(record.inputs, stage_inputs(trial, stage, cache, upstream))
            if before is not None and states[before].state != "done":
                changed.append(f"the {before} stage")
            states[stage] = StageState("stale" if changed else "done", record, changed)
            upstream = upstream | record.outputs
        # Timing does not depend on the evaluation: both follow from the merged model.
        before = before if stage == "evaluate" else stage
    return states


def trial_state(trial: Trial, cache: Path) -> State:
    """How a trial stands as a whole."""
    if live_owner(trial.lock) is not None:
        return "running"
    states = [state.state for state in stage_states(trial, cache).values()]
    if all(state == "done" for state in states):
        return "done"
    if trial.failure.is_file():
        return "failed"
    return "stale" if "stale" in states else "missing"


def base_state(study: Study, model_name: str, number: int, runs: Path, cache: Path) -> StageState:
    """How a test of a model's base stands."""
    record = read_record(base_record(study, model_name, number, runs))
    if record is None:
        return StageState("missing")
    changed = changed_inputs(record.inputs, base_inputs(study, model_name, cache))
    return StageState("stale" if changed else "done", record, changed)


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
    with exclusive(trial.lock, trial.name), _failure_noted(trial):
        _clean(trial)
        for stage in stages:
            states = stage_states(trial, cache)
            if states[stage].state == "done" and not force:
                continue
            _require(trial, stage, states)
            stop_if_requested()
            _run(trial, stage, cache, states, watch, seeds if stage == "finetune" else None)
        trial.failure.unlink(missing_ok=True)
        finished = all(state.state == "done" for state in stage_states(trial, cache).values())
        if finished and not trial.study.keep_merged:
            from qlora_repeat.merge import delete_merged

            delete_merged(trial)


def _clean(trial: Trial) -> None:
    """Removes what a process left that was killed: half a folder, or what was unfinished until it ended."""
    for name in (".merged.*", ".adapter.*", ".trace.*", ".*.json.*", "unfinished/.*"):
        for left in trial.folder.glob(name):
            if left.name.startswith(f".{trial.lock.name}"):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        traces = [path.read_bytes() for path in (trial.trace, trial.unfinished / trial.trace.name)]
        if trial.record("finetune").is_file() and traces[0] == traces[1]:
            shutil.rmtree(trial.unfinished, ignore_errors=True)


def run_base(study: Study, model_name: str, number: int, runs: Path, cache: Path, watch: Watch) -> None:
    """Tests the base of a model, in this process, unless that test is done."""
    path = base_record(study, model_name, number, runs)
    name = f"{model_name}/base/{number}"
    with exclusive(path.with_name(f"lock-{number}.json"), name):
        if base_state(study, model_name, number, runs, cache).state == "done":
            return
        from qlora_repeat.evaluate import evaluate_base

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
    from qlora_repeat.evaluate import evaluate
    from qlora_repeat.finetune import finetune
    from qlora_repeat.merge import merge, require_merged
    from qlora_repeat.timing import time_responses

    def report(done: int, total: int, loss: float | None) -> None:
        stop_if_requested()
        watch(stage, done, total, loss)

    upstream: dict[str, Any] = {}
    for before in STAGES[: STAGES.index(stage)]:
        if (record := states[before].record) is not None:
            upstream |= record.outputs
    set_kernels(trial.study.randomness.kernels, trial.study.threads)
    report(0, 1, None)
    inputs = stage_inputs(trial, stage, cache, upstream)
    with _recorded(trial.record(stage), trial.name, stage, inputs, trial) as outputs:
        if stage == "finetune":
            outputs |= finetune(trial, cache, report, inputs, seeds)
        elif stage == "merge":
            outputs |= merge(trial, cache)
        else:
            require_merged(trial, cache, upstream["merged_digest"])
            measure = evaluate if stage == "evaluate" else time_responses
            with named_operation(trial.model_name):
                outputs |= measure(trial, cache, report, upstream["seeds"]["split"])
    if stage == "finetune":
        shutil.rmtree(trial.unfinished, ignore_errors=True)


def _require(trial: Trial, stage: Stage, states: dict[Stage, StageState]) -> None:
    needed: dict[Stage, Stage] = {"merge": "finetune", "evaluate": "merge", "time": "merge"}
    before = needed.get(stage)
    if before is None:
        return
    state = states[before]
    if state.state != "done":
        why = f"is stale ({', '.join(state.changed)})" if state.state == "stale" else "has not run"
        raise StageError(
            f"{trial.name}: {stage} needs the {before} stage, which {why}; run `qlora-repeat {before}`"
        )
    assert state.record is not None
    if (name := damaged_file(state.record, trial.folder)) is not None:
        raise StageError(
            f"{trial.folder / name}: not the file that the {before} stage left; "
            f"run `qlora-repeat {before} {trial.name} --force`"
        )


@contextlib.contextmanager
def _recorded(
    path: Path, name: str, stage: str, inputs: dict[str, Any], trial: Trial | None = None
) -> Iterator[dict[str, Any]]:
    """Yields a dictionary for the outputs, and writes the record when the block ends well."""
    from qlora_repeat.fingerprint import fingerprint

    started, began = now(), time.perf_counter()
    outputs: dict[str, Any] = {}
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


def _kept_files(trial: Trial | None, stage: str) -> dict[str, str]:
    if trial is None or stage != "finetune":
        return {}
    paths = [trial.trace, *sorted(path for path in trial.adapter.rglob("*") if path.is_file())]
    return {path.relative_to(trial.folder).as_posix(): file_digest(path) for path in paths}


@contextlib.contextmanager
def _failure_noted(trial: Trial) -> Iterator[None]:
    try:
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


def failure_of(trial: Trial) -> str | None:
    """Why a trial failed last, or None."""
    try:
        return str(json.loads(trial.failure.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
