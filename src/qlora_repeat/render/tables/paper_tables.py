"""What the tables of a study's results say, in the paper's order and with its numbers, before any layout.

A third model's responses have the second's number and a letter (5b). Only trials that are done have
values, or stale ones on request, with a note; any other leaves a dash and a note.
"""

import math

from qlora_repeat.errors import UsageError
from qlora_repeat.render.tables.ablation import ablation_tables
from qlora_repeat.render.tables.claims import claims_table
from qlora_repeat.render.tables.collapse import collapse_tables
from qlora_repeat.render.tables.published import in_the_papers_words
from qlora_repeat.render.tables.responses import answer_tables, continuation_tables
from qlora_repeat.render.tables.statistics import statistics_tables
from qlora_repeat.render.tables.table import Column, Table, by_run, measured, missing
from qlora_repeat.results.arms import (
    Arm,
    Measure,
    by_model,
    distinct,
    group_arms,
    source_of,
    stale,
    stale_bases,
    values,
)
from qlora_repeat.results.number_format import DASH, DEVIATION_NOTE, mean, number, span, summary_rows
from qlora_repeat.results.trial_result import TrialResult

TASKS = {"text-generation": ("1", "10"), "question-answering": ("2", "11")}
"""The numbers of each task's tables of perplexity and of seconds."""
SECONDS: dict[str, Measure] = {
    "train": lambda trial: trial.train_seconds,
    "test": lambda trial: trial.test_seconds,
}


def make_tables(results: list[TrialResult]) -> list[Table]:
    """The tables that these results have, in the paper's order; then those that it lacks: S0, S1, S3 and S4.

    Raises:
        UsageError: there are no results, or two rows of the same trial.
    """
    if not results:
        raise UsageError("no collected results to make tables of")
    arms = group_arms(results)
    tables = [_memory(arms)]
    for task, (perplexity, seconds) in TASKS.items():
        own = [arm for arm in arms if arm.task == task]
        if own:
            responses = continuation_tables(own) if task == "text-generation" else answer_tables(own)
            tables += [_perplexity(perplexity, task, own), _seconds(seconds, task, own), *responses]
    tables.sort(key=lambda table: table.name)
    tables += [*ablation_tables(arms), *statistics_tables(arms), *collapse_tables(arms), claims_table(arms)]
    return [in_the_papers_words(table, results) for table in tables]


def _perplexity(number: str, task: str, arms: list[Arm]) -> Table:
    """Table 1 or 2, with a summary of the runs and the base models' perplexity."""
    columns = [measured((arm.title, arm.optimizer), arm, lambda trial: trial.perplexity) for arm in arms]
    found = [arm.values(lambda trial: trial.perplexity) for arm in arms]
    summary = summary_rows(["mean", "SD", "range", "n"], found)
    base = {
        model: values((trial for arm in own for trial in arm.done), lambda trial: trial.base_perplexity)
        for model, own in by_model(arms).items()
    }
    summary.append(["base", *(span(base[arm.model]) or DASH for arm in arms)])
    caption = f"Perplexity of the fine-tuned {task} models on the test examples, by run and optimizer."
    merged = "Measured on merged models, which have no 4-bit weights: fine-tuning took another path."
    notes = [
        DEVIATION_NOTE,
        "base: the model before fine-tuning, measured alike.",
        *([merged] if any(trial.weights for arm in arms for trial in arm.done) else []),
        *diverged(arms),
        *stale_bases(arm for arm in arms if base[arm.model]),
    ]
    return by_run(number, caption, columns, summary=summary, notes=notes)


def diverged(arms: list[Arm]) -> list[str]:
    """A note of the trials whose loss or perplexity is not finite."""
    found = []
    for arm in arms:
        for trial in arm.done:
            run = f"{arm.name} run {trial.trial}"
            if trial.diverged_at is not None:
                found.append(f"{run} (from step {trial.diverged_at})")
            elif trial.perplexity is not None and not math.isfinite(trial.perplexity):
                found.append(run)
    return [f"Diverged, and kept in mean and SD: {'; '.join(found)}."] if found else []


def _memory(arms: list[Arm]) -> Table:
    """Table 3: a share of the GPU where all runs were measured on GPUs, otherwise MiB."""
    on_gpu = is_share_of_gpu(arms)
    measure, unit, digits = (share_percent, "% of GPU", 2) if on_gpu else (_mebibytes, "MiB", 1)
    if on_gpu:
        what = "GPU memory while fine-tuning, in percent of the GPU's memory"
    elif any(arm.values(share_percent) for arm in arms):
        what = "memory while fine-tuning, in MiB (of the GPU, or resident where there was none)"
    else:
        what = "resident memory of the fine-tuning process, in MiB"
    optimizers = distinct(arm.optimizer for arm in arms)
    rows = []
    for own in by_model(arms).values():
        means = {arm.optimizer: mean(arm.values(measure)) for arm in own}
        cells = [means.get(optimizer) for optimizer in optimizers]
        rows.append([own[0].title, *(DASH if cell is None else f"{cell:,.{digits}f}" for cell in cells)])
    return Table(
        number="3",
        caption=f"Peak {what}, by model and optimizer; mean over the runs.",
        source=source_of(arms),
        stub="Model",
        columns=[(f"{optimizer} ({unit})",) for optimizer in optimizers],
        rows=rows,
        notes=[
            *_frozen_weights(arms),
            *stale(arms, lambda trial: measure(trial) is not None),
            *missing([Column((), arm, lambda trial: number(measure(trial))) for arm in arms]),
        ],
    )


def _frozen_weights(arms: list[Arm]) -> list[str]:
    """A note of how the frozen base stood in memory, which tells most of what fine-tuning takes."""
    known = [(arm, trial.weights) for arm in arms for trial in arm.done if trial.weights is not None]
    kinds = distinct(kind for _, kind in known)
    if not kinds:
        return []
    if len(kinds) == 1:
        return [f"The frozen base while fine-tuning: {_FROZEN.get(kinds[0], kinds[0])}."]
    runs = {kind: distinct(arm.name for arm, found in known if found == kind) for kind in kinds}
    told = "; ".join(f"{_FROZEN.get(kind, kind)}: {', '.join(runs[kind])}" for kind in kinds)
    return [f"The frozen base while fine-tuning: {told}."]


_FROZEN = {
    "nf4": "in 4 bits, unpacked for each product",
    "materialized": "unpacked from 4 bits once and kept",
}


def is_share_of_gpu(arms: list[Arm]) -> bool:
    """Whether every trial that has its memory measured has it as a share of a GPU's."""
    shares = sum(len(arm.values(share_percent)) for arm in arms)
    return shares >= max(sum(len(arm.values(_mebibytes)) for arm in arms), 1)


def share_percent(trial: TrialResult) -> float | None:
    """The peak memory in percent of the GPU's."""
    return None if trial.peak_memory_share is None else 100 * trial.peak_memory_share


def _mebibytes(trial: TrialResult) -> float | None:
    return None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 2**20


def _seconds(number: str, task: str, arms: list[Arm]) -> Table:
    """Table 10 or 11: the optimizers side by side, in each the models, as in the paper."""
    columns, found = [], []
    for optimizer in distinct(arm.optimizer for arm in arms):
        for arm in (arm for arm in arms if arm.optimizer == optimizer):
            for name, measure in SECONDS.items():
                columns.append(measured((optimizer, arm.title, f"{name} (s)"), arm, measure))
                found.append(arm.values(measure))
    caption = f"Seconds to fine-tune (train) and to answer the prompts (test), {task} models, by run."
    return by_run(number, caption, columns, summary_rows(["mean", "SD", "n"], found), [DEVIATION_NOTE])
