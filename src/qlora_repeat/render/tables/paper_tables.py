"""The tables of a study's results, in the paper's order and with its table numbers, before any layout.

The table of a third model's responses has the second's number and a letter (5b). Only finished trials have
values, and stale ones on request, with a note; any other trial leaves a dash and a note.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from qlora_repeat.analysis.claims.claims import judge_claims
from qlora_repeat.errors import UsageError
from qlora_repeat.render.footnotes import NOTES, diverged, missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.ablation import ablation_tables
from qlora_repeat.render.tables.averaging import averaging_tables
from qlora_repeat.render.tables.benchmarks import benchmark_tables
from qlora_repeat.render.tables.claims import claims_table, findings_table
from qlora_repeat.render.tables.collapse import collapse_tables
from qlora_repeat.render.tables.responses import answer_tables, continuation_tables
from qlora_repeat.render.tables.scores import score_tables
from qlora_repeat.render.tables.statistics import statistics_tables
from qlora_repeat.render.tables.table import Table, by_run, number_column
from qlora_repeat.results.arms import Arm, Measure, by_model, distinct, trained
from qlora_repeat.results.number_format import (
    DASH,
    DEVIATION_NOTE,
    mean,
    percent,
    span,
    spread_text,
    summary_rows,
)
from qlora_repeat.results.scope import of_paper
from qlora_repeat.results.seeds_and_examples import (
    SeedsAndExamples,
    agreement_on_improvement,
    of_log_perplexity,
)
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED

TASKS = {"text-generation": ("1", "10"), "question-answering": ("2", "11")}
"""The numbers of each task's tables of perplexity and of seconds."""
_PERPLEXITY: Measure = attrgetter("perplexity")
SECONDS: dict[str, Measure] = {
    "train": lambda trial: trial.train_seconds,
    "test": lambda trial: trial.test_seconds,
}


def make_tables(every: list[Arm]) -> list[Table]:
    """Make the tables that these arms have, in the paper's order; then those that it lacks (S0, S1, ...).

    Without one of the paper's models, or a counterpart of one, numbers begin at 1, and there is no S4. Only
    S9 has arms of averages.

    Raises:
        UsageError: there are no arms.
    """
    arms = trained(every)
    if not arms:
        raise UsageError("no collected results to make tables of")
    tables = [_memory(arms)]
    for task, (perplexity, seconds) in TASKS.items():
        own = [arm for arm in arms if arm.task == task]
        if own:
            responses = continuation_tables(own) if task == "text-generation" else answer_tables(own)
            tables += [_perplexity(perplexity, task, own), _seconds(seconds, task, own), *responses]
    tables.sort(key=lambda table: table.name)
    papers = of_paper(arms)
    if not papers:
        tables = in_sequence(tables)
    tables += [*ablation_tables(arms), *statistics_tables(arms), *collapse_tables(arms)]
    if papers:
        judged = judge_claims(papers)
        tables += [claims_table(papers, judged), findings_table(papers, judged)]
    tables += [*benchmark_tables(arms), *score_tables(arms), *averaging_tables(every)]
    if all(trial.study == PUBLISHED for arm in arms for trial in arm.trials):
        return [_in_the_papers_words(table) for table in tables]
    return tables


def in_sequence(tables: Sequence[Table], letter: str = "") -> list[Table]:
    """Return tables numbered from 1, and not as in the paper; `letter` precedes the numbers."""
    return [replace(table, number=f"{letter}{place}") for place, table in enumerate(tables, 1)]


def _in_the_papers_words(table: Table) -> Table:
    """Return a table of the paper's numbers with captions and notes that state only what it states."""
    words = NOTES["published"].get(table.number, {"notes": []})
    if "caption" in words:
        return replace(table, **words)
    return replace(table, notes=words["notes"] + table.notes)


def _perplexity(number: str, task: str, arms: list[Arm]) -> Table:
    """Make Table 1 or 2, with a summary of the runs and the base models' perplexity."""
    columns = [number_column((arm.title, arm.heading), arm, _PERPLEXITY) for arm in arms]
    decimals = [arm.decimals(_PERPLEXITY) for arm in arms]
    summary = summary_rows(["mean", "SD", "range", "n"], [arm.perplexities for arm in arms], decimals)
    base = {
        model: [value for arm in own for value in arm.values(lambda trial: trial.base_perplexity)]
        for model, own in by_model(arms).items()
    }
    spans = [span(base[arm.model], least) for arm, least in zip(arms, decimals, strict=True)]
    summary.append(["base", *(each or DASH for each in spans)])
    components = [of_log_perplexity(arm) for arm in arms]
    if any(components):
        summary += _seeds_and_examples(arms, components)
    caption = f"Perplexity of the fine-tuned {task} models on the test examples, by run and optimizer."
    merged = "Perplexity is measured after merging into unquantized weights; training used the 4-bit base."
    notes = [
        DEVIATION_NOTE,
        "base: the model before fine-tuning, measured in the same way.",
        *([NOTES["perplexity"]["seeds"]] if any(components) else []),
        *_answers_only(arms),
        *([merged] if any(trial.weights in _IN_4_BITS for arm in arms for trial in arm.done) else []),
        *diverged(arms),
        *stale_bases(arm for arm in arms if base[arm.model]),
    ]
    return by_run(number, caption, columns, summary=summary, notes=notes)


def _seeds_and_examples(arms: list[Arm], components: Sequence[SeedsAndExamples | None]) -> list[list[str]]:
    """Return rows on what the uncertainty of an arm's perplexity comes from."""
    errors = [
        found.error_of_examples * math.exp(found.mean) if found and found.mean < _LARGEST_LOG else None
        for found in components
    ]
    return [
        ["SE of the test set", *map(spread_text, errors)],
        ["due to seeds", *(percent(found.share_of_seeds if found else None) for found in components)],
        ["examples agree", *(percent(agreement_on_improvement(arm)) for arm in arms)],
    ]


def _answers_only(arms: list[Arm]) -> list[str]:
    """Note the models whose perplexity is of answers, and not of whole texts."""
    titles = distinct(arm.title for arm in arms if arm.trials[0].answers_only)
    return [f"Perplexity is of the answers only: {', '.join(titles)}."] if titles else []


_LARGEST_LOG = 700.0
_IN_4_BITS = ("nf4", "materialized")
"""Kinds of frozen weights that began in 4 bits."""


def _memory(arms: list[Arm]) -> Table:
    """Make Table 3: percent of the GPU if all runs were measured on GPUs, otherwise MiB."""
    measure, unit, digits = _mebibytes, "MiB", 1
    what = "memory while fine-tuning, in MiB (GPU memory, or resident memory without a GPU)"
    if is_share_of_gpu(arms):
        measure, unit, digits = share_percent, "% of GPU", 2
        what = "GPU memory while fine-tuning, in percent of the GPU's memory"
    optimizers = distinct(arm.heading for arm in arms)
    rows = []
    for own in by_model(arms).values():
        means = {arm.heading: mean(arm.values(measure)) for arm in own}
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
            *missing(arms, measure),
        ],
    )


def _frozen_weights(arms: list[Arm]) -> list[str]:
    """Note how the frozen base was kept in memory, which explains most of the peak."""
    kinds: dict[str, list[str]] = {}
    for arm in arms:
        for weights in distinct(trial.weights for trial in arm.done if trial.weights):
            kinds.setdefault(NOTES["table-03"].get(weights, weights), []).append(arm.name)
    named = [f"{kind}: {', '.join(own)}" if len(kinds) > 1 else kind for kind, own in kinds.items()]
    return [f"The frozen base while fine-tuning: {'; '.join(named)}."] if kinds else []


def is_share_of_gpu(arms: list[Arm]) -> bool:
    """Return whether every trial with a memory measurement has it as a share of a GPU's memory."""
    shares = sum(len(arm.values(share_percent)) for arm in arms)
    return shares >= max(sum(len(arm.values(_mebibytes)) for arm in arms), 1)


def share_percent(trial: TrialResult) -> float | None:
    """Return the peak memory in percent of the GPU's memory."""
    return None if trial.peak_memory_share is None else 100 * trial.peak_memory_share


def _mebibytes(trial: TrialResult) -> float | None:
    return None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 2**20


def _seconds(number: str, task: str, arms: list[Arm]) -> Table:
    """Make Table 10 or 11: optimizers side by side, with the models below each, as in the paper."""
    columns, found, decimals = [], [], []
    for heading in distinct(arm.heading for arm in arms):
        for arm in (arm for arm in arms if arm.heading == heading):
            for name, measure in SECONDS.items():
                columns.append(number_column((heading, arm.title, f"{name} (s)"), arm, measure))
                found.append(arm.values(measure))
                decimals.append(arm.decimals(measure))
    caption = f"Seconds to fine-tune (train) and to answer the prompts (test), {task} models, by run."
    summary = summary_rows(["mean", "SD", "n"], found, decimals)
    return by_run(number, caption, columns, summary=summary, notes=[DEVIATION_NOTE])
