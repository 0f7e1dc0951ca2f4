"""From the records of a study to its collected results."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_repeat.fingerprint import device_name, software_names
from qlora_repeat.record import Record
from qlora_repeat.results import Response, TrialResult
from qlora_repeat.stages import base_state, stage_states, trial_state
from qlora_repeat.study import Study
from qlora_repeat.trial import Stage, Trial, all_trials, base_tests

_MEASURES: dict[Stage, tuple[str, ...]] = {
    "finetune": (
        "initial_loss", "final_loss", "diverged_at", "train_seconds", "peak_memory_bytes",
        "peak_memory_share", "adapter_digest", "loss_curve", "miniature",
    ),
    "merge": (),
    "evaluate": ("perplexity", "perplexity_example_mean", "test_examples", "accuracy"),
    "time": ("test_seconds", "test_seconds_min", "test_seconds_max"),
}  # fmt: skip


def collect(study: Study, runs: Path, cache: Path) -> list[TrialResult]:
    """One row per trial that the study asks for; only those that are done, and so whole, bring values."""
    bases = {model: _base_tests(study, model, runs, cache) for model in study.models}
    rows = [_result(trial, bases[trial.model_name], cache) for trial in all_trials(study, runs)]
    miniature = {row.model for row in rows if row.miniature}
    return [
        dataclasses.replace(row, model_title=f"miniature {row.model_title}")
        if row.model in miniature
        else row
        for row in rows
    ]


def _base_tests(study: Study, model: str, runs: Path, cache: Path) -> list[Record]:
    """The records of those tests of a base that are done."""
    states = [base_state(study, model, number, runs, cache) for number in base_tests(study)]
    return [state.record for state in states if state.state == "done" and state.record is not None]


def _result(trial: Trial, base: list[Record], cache: Path) -> TrialResult:
    state = trial_state(trial, cache)
    row: dict[str, Any] = {
        "study": trial.study.label,
        "task": trial.data.task,
        "model": trial.model_name,
        "model_title": trial.model.title,
        "counterpart": trial.model.counterpart,
        "optimizer": trial.optimizer,
        "trial": trial.number,
        "status": state,
    }
    if base:
        row |= {
            f"base_{name}": base[0].outputs[name]
            for name in ("perplexity", "perplexity_example_mean", "accuracy")
        }
        row["base_perplexities"] = [record.outputs["perplexity"] for record in base]
        row["miniature"] = base[0].outputs["miniature"]
    if state == "done":
        row |= _measured(trial, cache)
    return TrialResult(**row)


def _measured(trial: Trial, cache: Path) -> dict[str, Any]:
    records: dict[Stage, Record] = {
        stage: state.record for stage, state in stage_states(trial, cache).items() if state.record is not None
    }
    row = {name: records[stage].outputs[name] for stage, names in _MEASURES.items() for name in names}
    trained = records["finetune"]
    return row | {
        "adapter_init_seed": trained.outputs["seeds"]["adapter_init"],
        **{
            name: [Response(**response) for response in records["evaluate"].outputs.get(name, [])]
            for name in ("responses", "repeated_responses")
        },
        "device": device_name(trained.fingerprint),
        "software": software_names(trained.fingerprint),
        "finished": max(record.finished for record in records.values()),
    }


def distinct_adapters(results: Sequence[TrialResult]) -> list[str]:
    """A line for each arm: how many of its trials' adapters differ, by digest."""
    lines = []
    arms = dict.fromkeys((row.model, row.optimizer) for row in results)
    for model, optimizer in arms:
        digests = [
            row.adapter_digest
            for row in results
            if (row.model, row.optimizer) == (model, optimizer) and row.adapter_digest
        ]
        same = (
            f"; {Counter(digests).most_common(1)[0][1]} are alike" if len(set(digests)) < len(digests) else ""
        )
        lines.append(
            f"{model}/{optimizer}: {len(set(digests))} different adapters in {len(digests)} trials{same}"
        )
    return lines
