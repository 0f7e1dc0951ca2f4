"""Made-up trials and traces for a report."""

from dataclasses import replace
from typing import Any

from qlora_repeat.records.trace import Step
from qlora_repeat.render.report.trial_files import TrialFiles
from qlora_repeat.results.trial_result import TrialResult


def trial(number: int, digest: str | None = "same", **changes: Any) -> TrialResult:
    made = TrialResult(
        study="mine",
        task="text-generation",
        model="neox",
        model_title="NeoX",
        optimizer="adamw-8bit",
        trial=number,
        status="done" if digest else "missing",
        perplexity=9.0 + number if digest else None,
        base_perplexity=20.0,
        adapter_digest=digest,
        loss_curve=[[1.0, 3.0], [2.0, 2.0]] if digest else [],
    )
    return replace(made, **changes)


def traced(losses: dict[int, list[float]]) -> TrialFiles:
    steps = {
        f"neox/adamw-8bit/{number}": [
            Step(0, adapter="start"),
            *(Step(place, loss=loss) for place, loss in enumerate(own, 1)),
        ]
        for number, own in losses.items()
    }
    return TrialFiles(steps)
