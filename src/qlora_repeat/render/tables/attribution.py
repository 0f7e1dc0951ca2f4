"""Table S2: what each source of randomness does, and what share it has of the variance of all together."""

from qlora_repeat.analysis.attribution.decompose import MAIN, REST, SIGNIFICANT, SMALL, Attribution, Effect
from qlora_repeat.analysis.attribution.measurements import BASELINE, Measurements
from qlora_repeat.analysis.attribution.paired_statistics import Estimate
from qlora_repeat.render.footnotes import first_to_last_day, source_text
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.text.attribution import INTERVALS, in_percent, title
from qlora_repeat.results.arms import distinct
from qlora_repeat.results.number_format import DASH, cell, number, percent

NUMBER = "S2"


def attribution_table(measured: Measurements, found: Attribution) -> Table:
    """A row for each condition: what it changes, where it first differs, and what share it has."""
    decomposition = found.decompositions.get(MAIN)
    summary = []
    if decomposition is not None:
        blank = [DASH] * 8
        summary = [
            ["rest", *blank, DASH, in_percent(decomposition.shares[REST])],
            ["interactions", *blank, in_percent(decomposition.interactions), DASH],
        ]
    return Table(
        number=NUMBER,
        part=measured.arm,
        caption=f"What makes runs of {measured.model_title} with {measured.optimizer} differ: sources with "
        "another level, one by one and all of them, and disturbances.",
        source=source_of_experiment(measured),
        stub="Freed or changed",
        columns=[
            ("trials", "n"),
            ("trials", "changed"),
            ("log perplexity", "median change"),
            ("log perplexity", "SD"),
            ("loss SD", "late"),
            ("loss SD", "final"),
            ("adapters", "distance"),
            ("adapters", "parted at"),
            ("variance of log perplexity", "total effect"),
            ("variance of log perplexity", "share"),
        ],
        rows=[_row(measured, found, effect) for effect in found.effects],
        summary=summary,
        notes=_notes(measured, found),
    )


def _row(measured: Measurements, found: Attribution, effect: Effect) -> list[str]:
    decomposition = found.decompositions.get(MAIN)
    name, change = effect.condition, effect.changes[MAIN]
    total = share = DASH
    if decomposition is not None:
        total = in_percent(decomposition.total.get(name, decomposition.pairs.get(name, Estimate(None))))
        share = in_percent(decomposition.shares.get(name, Estimate(None)))
        if name == measured.together:
            total = share = "100 %"
    return [
        title(name, measured),
        str(effect.trials),
        str(effect.changed),
        cell(change.median),
        cell(change.sd),
        *(cell(effect.changes[measure].sd) for measure in ("late loss", "final loss")),
        cell(effect.distance),
        f"{effect.first_step}, {effect.first_kind}" if effect.first_step is not None else "never",
        total,
        share,
    ]


def _notes(measured: Measurements, found: Attribution) -> list[str]:
    notes = [f"Not to be interpreted: {problem}" for problem in found.problems]
    notes.append(
        f"Each row is compared with {measured.replicates} trials of the baseline, replicate by replicate: a "
        "source has another level there, and all else is as in the baseline (but repeated: its first trial "
        "alone). median change: of the size of changes; of log perplexity, it is about a relative change of "
        "perplexity. SD: the root of half the mean square of changes, which is the standard deviation that "
        "the source gives. late: of the mean loss of the last quarter of the steps."
    )
    notes.append(
        "changed: trials whose adapter is not that of the baseline. distance: the median from the "
        "baseline, of what adapters add to the weights (BA), relative to its size (1.41: unrelated). "
        "parted at: the first step at which a trace is not that of the baseline, and in what."
    )
    if {"data_order", "split"} & set(measured.freed):
        notes.append(
            "Where data order or split is freed, losses are those of other examples too: their SD is not "
            "that of the models alone."
        )
    if "kernels" in measured.freed:
        first, other = measured.of(BASELINE)[0], measured.of("kernels")[0]
        notes.append(
            f"kernels and threads: {other.kernels} kernels with {_threads(other.threads)}, in training and "
            f"in testing; in the baseline {first.kernels} ones with {_threads(first.threads)}. They are one "
            "other level, and not drawn: the effect is that of a change from the one to the other."
        )
    if "split" in measured.freed:
        notes.append(
            "Another split also tests on other examples: its spread is that of two samples, of what a model "
            "learns from and of what it is asked."
        )
    if MAIN in found.decompositions:
        notes += _notes_on_shares(measured, found)
    if any(effect.diverged for effect in found.effects):
        told = (f"{title(e.condition, measured)} {e.diverged}" for e in found.effects if e.diverged)
        notes.append(f"Trials with a loss that was not finite: {', '.join(told)}.")
    return notes


def _notes_on_shares(measured: Measurements, found: Attribution) -> list[str]:
    decomposition = found.decompositions[MAIN]
    notes = [
        "total effect: mean square of the change over that of all together (Jansen); it counts interactions "
        "whole. share: the mean of total and first-order effect, which counts half of an interaction of two; "
        "shares and rest add up to 100 %. interactions: taken as of two sources at a time; one of three "
        "counts twice. Estimates may lie outside of 0 to 100 %. Intervals: of shares by "
        "standard error HC3, of total effects by a jackknife of the logarithm. " + INTERVALS
    ]
    if measured.pairs:
        notes.append("A × B: both freed; its total effect is what the two do only together.")
    if (lost := measured.replicates - decomposition.replicates) > 0:
        notes.append(
            f"Total effects and shares are of {decomposition.replicates} replicates: in {lost} a perplexity "
            "is not finite, so that they tell of the others alone."
        )
    notes.append(
        f"Sources: {decomposition.additive}. Additive: interactions have certainly less than "
        f"{percent(SMALL)} of the variance; not additive: not so, and an F test tells them from "
        f"disturbances (p of at most {SIGNIFICANT:g})."
    )
    if decomposition.above_floor is not None:
        notes.append(
            "What sources do only together has a root mean square of "
            f"{number(decomposition.interaction_sd)}; a disturbance such as the nudge's of each trial would "
            f"give {number(decomposition.floor)} (F test: p = {decomposition.above_floor:.2g})."
        )
    return notes


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def source_of_experiment(measured: Measurements) -> str:
    """Say where the rows of an attribution come from, as `source_of` does."""
    facts = {
        "Study": measured.study,
        "Device": "; ".join(distinct(outcome.device for outcome in measured.outcomes))
        + f", {_threads(measured.of(BASELINE)[0].threads)} where they are pinned",
        "Steps": str(measured.steps),
        "Finished (UTC)": first_to_last_day(outcome.finished for outcome in measured.outcomes)[0],
        "Software": "; ".join(distinct(outcome.software for outcome in measured.outcomes)),
    }
    return source_text(facts)
