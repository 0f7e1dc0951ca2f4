"""Collect the results of a study from its records."""

import dataclasses
from typing import Any

from qlora_repeat.records.record import Record
from qlora_repeat.records.trial_state import StageState, base_state, trial_state
from qlora_repeat.results.trial_result import Response, TrialResult
from qlora_repeat.study.randomness import SOURCES, Randomness
from qlora_repeat.study.trial import STAGES, Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import device_name, software_names
from qlora_repeat.system.memory import gc_paused

_MEASURES: dict[Stage, tuple[str, ...]] = {
    "finetune": (
        "initial_loss", "final_loss", "diverged_at", "train_seconds", "peak_memory_bytes",
        "peak_memory_share", "weights", "adapter_digest", "loss_curve", "miniature",
    ),
    "merge": (),
    "evaluate": ("perplexity", "perplexity_example_mean", "test_examples", "accuracy"),
    "time": ("test_seconds", "test_seconds_min", "test_seconds_max"),
}  # fmt: skip
_OF_BASE = ("perplexity", "perplexity_example_mean", "accuracy")


@gc_paused()  # records have no cycles
def collect(workspace: Workspace, *, include_stale: bool = False) -> list[TrialResult]:
    """Return a row for each trial of the study, with values if the trial is done.

    With `include_stale`, complete but stale trials have values too, and stale base tests count where none is
    done; the row lists what has changed. A trial whose stages belong to different adapters or merged models
    has no values. A trial that was tested on another split than its base has no base values.
    """
    bases = {
        model: list(counted_base_tests(workspace, model, include_stale=include_stale).values())
        for model in workspace.study.models
    }
    rows = [_result(trial, bases[trial.model_name], include_stale) for trial in workspace.trials()]
    miniature = {row.model for row in rows if row.miniature}
    return [
        dataclasses.replace(row, model_title=f"miniature {row.model_title}")
        if row.model in miniature
        else row
        for row in rows
    ]


def free_sources(randomness: Randomness) -> list[str]:
    """Return what may make trials differ: sources without a common seed, and nondeterministic kernels."""
    found: list[str] = [source for source in SOURCES if not isinstance(getattr(randomness, source), int)]
    return [*found, "kernels"] if randomness.kernels == "default" else found


def counted_base_tests(
    workspace: Workspace, model: str, *, include_stale: bool = False
) -> dict[int, tuple[Record, list[str]]]:
    """Return the records of the base tests that count, by number, each with what has changed since."""
    states = {test.number: base_state(test) for test in workspace.base_tests(model)}
    for wanted in ("done", "stale") if include_stale else ("done",):
        tests = {
            number: (state.record, state.changed)
            for number, state in states.items()
            if state.state == wanted and state.record
        }
        if tests:
            return tests
    return {}


def _result(trial: Trial, base: list[tuple[Record, list[str]]], include_stale: bool) -> TrialResult:
    found = trial_state(trial)
    states, state = found.stages, found.state
    row: dict[str, Any] = {
        "study": trial.study.label,
        "task": trial.data.task,
        "model": trial.model_name,
        "model_title": trial.model.title,
        "counterpart": trial.model.counterpart,
        "optimizer": trial.optimizer,
        "trial": trial.number,
        "status": state,
        "randomness": trial.study.profile,
        "free_sources": free_sources(trial.study.randomness),
    }
    if base:
        first = base[0][0].outputs
        row |= {f"base_{name}": first[name] for name in _OF_BASE}
        row["base_perplexities"] = [record.outputs["perplexity"] for record, _ in base]
        row["stale_base_inputs"] = sorted({change for _, changed in base for change in changed})
        row["miniature"] = first["miniature"]
    counts = state == "done" or (state == "stale" and include_stale)
    if counts and (changed := _changes(states)) is not None:
        row |= _measured(states) | {"stale_inputs": changed}
        if base and not _tested_alike(states, base[0][0]):
            row |= dict.fromkeys(f"base_{name}" for name in _OF_BASE)
    return TrialResult(**row)


def _tested_alike(states: dict[Stage, StageState], base: Record) -> bool:
    """Return whether a trial and its base were tested on the same split."""
    trained = states["finetune"].record
    return trained is not None and bool(trained.outputs["seeds"]["split"] == base.outputs["split_seed"])


def _changes(states: dict[Stage, StageState]) -> list[str] | None:
    """Return what has changed since the records; None if one is missing or their models differ."""
    if any(state.record is None or state.state not in ("done", "stale") for state in states.values()):
        return None
    changed = {change for state in states.values() for change in state.changed}
    if changed & {"adapter_digest", "merged_digest"}:
        return None
    return sorted(changed - {f"the {stage} stage" for stage in STAGES})


def _measured(states: dict[Stage, StageState]) -> dict[str, Any]:
    records: dict[Stage, Record] = {
        stage: state.record for stage, state in states.items() if state.record is not None
    }
    row = {name: records[stage].outputs[name] for stage, names in _MEASURES.items() for name in names}
    trained = records["finetune"]
    return row | {
        "skipped_steps": trained.outputs.get("skipped_steps"),
        "adapter_init_seed": trained.outputs["seeds"]["adapter_init"],
        **{
            name: [Response(**response) for response in records["evaluate"].outputs.get(name, [])]
            for name in ("responses", "repeated_responses")
        },
        "device": device_name(trained.fingerprint),
        "software": software_names(trained.fingerprint),
        "finished": max(record.finished for record in records.values()),
    }
