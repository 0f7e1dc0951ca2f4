"""Collect the results of a study from its records."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from qlora_repeat.records.record import Record
from qlora_repeat.records.record_schema import MOST_OUTCOMES, Count
from qlora_repeat.records.trial_state import base_state, measured_state, trial_state
from qlora_repeat.results.trial_result import ExampleLosses, TrialResult, trial_result
from qlora_repeat.study.randomness import SOURCES, Randomness
from qlora_repeat.study.trial import Stage, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.fingerprint import device_name, software_names
from qlora_repeat.system.memory import gc_paused

_MEASURES: dict[Stage, tuple[str, ...]] = {
    "finetune": (
        "initial_loss", "final_loss", "diverged_at", "train_seconds", "peak_memory_bytes",
        "peak_memory_share", "weights", "adapter_digest", "loss_curve", "miniature",
    ),
    "average": ("adapter_digest",),
    "merge": (),
    "evaluate": ("perplexity", "perplexity_example_mean", "test_examples", "accuracy"),
    "time": ("test_seconds", "test_seconds_min", "test_seconds_max"),
}  # fmt: skip


@with_config(ConfigDict(strict=True, extra="allow"))
class _Example(TypedDict):
    row: Count
    tokens: Count
    loss: float


_EXAMPLES = TypeAdapter(Annotated[list[_Example], Field(min_length=1, max_length=MOST_OUTCOMES)])
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
    titles = {row.model: f"miniature {row.model_title}" for row in rows if row.miniature}
    return [dataclasses.replace(row, model_title=titles.get(row.model, row.model_title)) for row in rows]


def free_sources(randomness: Randomness) -> list[str]:
    """Return what may make trials differ: sources without a common seed, and nondeterministic kernels."""
    found: list[str] = [source for source in SOURCES if not isinstance(getattr(randomness, source), int)]
    return [*found, "kernels"] if randomness.kernels == "default" else found


def counted_base_tests(
    workspace: Workspace, model: str, *, include_stale: bool = False
) -> dict[int, tuple[Record, list[str]]]:
    """Return the records of the base tests that count, by number, each with what has changed since."""
    states = {test.number: base_state(test) for test in workspace.base_tests(model)}
    done, stale = (
        {n: (each.record, each.changed) for n, each in states.items() if each.state == state and each.record}
        for state in ("done", "stale")
    )
    return done or (stale if include_stale else {})


def _result(trial: Trial, base: list[tuple[Record, list[str]]], include_stale: bool) -> TrialResult:
    found = trial_state(trial)
    state = measured_state(found)
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
        "answers_only": True if trial.model.training.loss == "answer" else None,
    }
    if base:
        first = base[0][0].outputs
        row |= {f"base_{name}": first[name] for name in _OF_BASE}
        row["base_scores"] = first.get("answers", {}).get("scores", {})
        row["base_perplexities"] = [record.outputs["perplexity"] for record, _ in base]
        row["stale_base_inputs"] = sorted({change for _, changed in base for change in changed})
        row["miniature"] = first["miniature"]
    stages = {stage: found.stages[stage] for stage in trial.measured_stages}
    records = {stage: each.record for stage, each in stages.items() if each.record is not None}
    changed = {change for each in stages.values() for change in each.changed}
    if (
        state not in ("done", "stale")
        or (state == "stale" and not include_stale)
        or len(records) < len(stages)
        or changed & {"adapter_digest", "merged_digest"}  # stages of different adapters
    ):
        return trial_result(row)
    made, tested = records[trial.stages[0]], records["evaluate"]
    row |= {name: records[stage].outputs[name] for stage in stages for name in _MEASURES[stage]}
    if (answers := tested.outputs.get("answers")) is not None:
        row |= {"scores": answers["scores"], "scored_answers": len(answers["examples"])}
    row["example_losses"] = _example_losses(tested.outputs, base[0][0].outputs if base else {})
    for name in ("responses", "repeated_responses"):
        row[name] = tested.outputs.get(name, [])
    if base and made.outputs["seeds"]["split"] != first["split_seed"]:
        row |= dict.fromkeys(f"base_{name}" for name in _OF_BASE) | {"base_scores": {}}
    tasks = found.stages.get("benchmark")
    own_model = tasks is not None and "merged_digest" not in tasks.changed
    if tasks is not None and tasks.record and own_model and (tasks.state == "done" or include_stale):
        row["benchmarks"] = list(_benchmarks(tasks.record))
        changed |= {*tasks.changed}
    row |= {
        "stale_inputs": sorted(changed - {f"the {stage} stage" for stage in stages}),
        "skipped_steps": made.outputs.get("skipped_steps"),
        "adapter_init_seed": made.outputs["seeds"].get("adapter_init"),
        "device": device_name(made.fingerprint),
        "software": software_names(made.fingerprint),
        "finished": max(record.finished for record in records.values()),
    }
    return trial_result(row)


def _example_losses(outputs: dict[str, Any], of_base: dict[str, Any]) -> ExampleLosses | None:
    """Return the losses of single examples; None for records of early versions, which have others or none."""
    try:
        examples, bases = _EXAMPLES.validate_python(outputs.get("examples")), dict[int, _Example]()
    except ValidationError:
        return None
    with contextlib.suppress(ValidationError):
        bases = {each["row"]: each for each in _EXAMPLES.validate_python(of_base.get("examples"))}
    known = all(each["row"] in bases for each in examples)
    return ExampleLosses(
        rows=[each["row"] for each in examples],
        tokens=[each["tokens"] for each in examples],
        losses=[each["loss"] for each in examples],
        better_than_base=[each["loss"] < bases[each["row"]]["loss"] for each in examples] if known else [],
    )


def _benchmarks(record: Record) -> Iterator[dict[str, Any]]:
    """Yield a score for each task and metric, with the outcomes that it is the mean of, if it is one."""
    for name, task in record.outputs["tasks"].items():
        for metric, score in task["scores"].items():
            yield {
                "task": name,
                "metric": metric.removesuffix(",none"),
                "score": score,
                "examples": task["examples"],
                "outcomes": task["outcomes"].get(metric, []),
            }
