"""Table S2: the effect of each source of randomness, and its share of the total variance."""

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
    """Make a row for each condition: what it changes, where it first differs, and its share."""
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
        caption=f"Why runs of {measured.model_title} with {measured.optimizer} differ: each source of "
        "randomness at another level, alone and all together, and small disturbances.",
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
            ("adapters", "first difference"),
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
    notes = [f"Do not interpret these results: {problem}" for problem in found.problems]
    notes.append(
        f"Each row is compared with {measured.replicates} trials of the baseline, replicate by replicate: "
        "one source has another level, and everything else is as in the baseline (the repeated row: only "
        "its first trial). median change: median of absolute changes; a change of log perplexity is about a "
        "relative change of perplexity. SD: root of half the mean square of the changes, which is the "
        "standard deviation that the source causes. late: the mean loss over the last quarter of the steps."
    )
    notes.append(
        "changed: trials whose adapter differs from the baseline's. distance: median relative distance "
        "from the baseline of the product BA, which an adapter adds to the weights (1.41: unrelated). "
        "first difference: the first step at which a trace differs from the baseline's, and what differs."
    )
    if {"data_order", "split"} & set(measured.freed):
        notes.append(
            "Where data order or split is freed, losses are also measured on other examples: their SD does "
            "not come from the models alone."
        )
    if "kernels" in measured.freed:
        first, other = measured.of(BASELINE)[0], measured.of("kernels")[0]
        notes.append(
            f"kernels and threads: {other.kernels} kernels with {_threads(other.threads)}, in training and "
            f"testing; the baseline has {first.kernels} kernels with {_threads(first.threads)}. There is "
            "only one other level, which is not drawn at random: the effect is the change between the two."
        )
    if "split" in measured.freed:
        notes.append(
            "Another split also tests on other examples: its spread comes from two samples, the training "
            "examples and the test examples."
        )
    if MAIN in found.decompositions:
        notes += _notes_on_shares(measured, found)
    if any(effect.diverged for effect in found.effects):
        counts = (f"{title(e.condition, measured)} {e.diverged}" for e in found.effects if e.diverged)
        notes.append(f"Trials with a loss that is not finite: {', '.join(counts)}.")
    return notes


def _notes_on_shares(measured: Measurements, found: Attribution) -> list[str]:
    decomposition = found.decompositions[MAIN]
    notes = [
        "total effect: mean square of the change, divided by the mean square with all sources freed "
        "(Jansen); it includes interactions in full. share: mean of total and first-order effect, which "
        "includes half of an interaction of two; shares and rest add up to 100 %. interactions: assumed to "
        "be of two sources; an interaction of three counts twice. Estimates may lie outside 0 to 100 %. "
        "Intervals: HC3 standard errors for shares, a jackknife of the logarithm for total effects. "
        + INTERVALS
    ]
    if measured.pairs:
        notes.append("A × B: both are freed; the total effect is the interaction of the two.")
    if (lost := measured.replicates - decomposition.replicates) > 0:
        notes.append(
            f"Total effects and shares come from {decomposition.replicates} replicates: {lost} others have a "
            "perplexity that is not finite and are left out."
        )
    notes.append(
        f"Sources: {decomposition.additive}. Additive: the whole interval of interactions is below "
        f"{percent(SMALL)} of the variance; not additive: it is not, and an F test distinguishes them from "
        f"disturbances (p at most {SIGNIFICANT:g})."
    )
    if decomposition.above_floor is not None:
        notes.append(
            f"Interactions have a root mean square of {number(decomposition.interaction_sd)}; a disturbance "
            f"of each trial, as large as the effect of the nudge, would give {number(decomposition.floor)} "
            f"(F test: p = {decomposition.above_floor:.2g})."
        )
    return notes


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def source_of_experiment(measured: Measurements) -> str:
    """Return where the rows of an attribution come from, as `source_of` does."""
    facts = {
        "Study": measured.study,
        "Device": "; ".join(distinct(outcome.device for outcome in measured.outcomes))
        + f", {_threads(measured.of(BASELINE)[0].threads)} where threads are pinned",
        "Steps": str(measured.steps),
        "Finished (UTC)": first_to_last_day(outcome.finished for outcome in measured.outcomes)[0],
        "Software": "; ".join(distinct(outcome.software for outcome in measured.outcomes)),
    }
    return source_text(facts)
