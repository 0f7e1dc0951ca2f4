"""Table S2: the effect of each source of randomness, and its share of the total variance."""

from qlora_repeat.analysis.attribution.decompose import (
    MAIN,
    REST,
    SIGNIFICANT,
    SMALL,
    Attribution,
    Decomposition,
    Effect,
)
from qlora_repeat.analysis.attribution.measurements import BASELINE, Measurements
from qlora_repeat.analysis.attribution.paired_statistics import Estimate
from qlora_repeat.render.footnotes import NOTES, first_to_last_day, source_text
from qlora_repeat.render.tables.table import Table
from qlora_repeat.render.text.attribution import in_percent, title
from qlora_repeat.results.arms import distinct
from qlora_repeat.results.number_format import DASH, cell, number, percent

NUMBER = "S2"


def attribution_table(measured: Measurements, found: Attribution) -> Table:
    """Make a row for each condition: what it changes, where it first differs, and its share."""
    decomposition = found.decompositions.get(MAIN)
    cells = [_cells(measured, decomposition, effect) for effect in found.effects]
    summary = []
    if decomposition is not None:
        blank = [DASH] * (len(cells[0]) - 2)
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
        columns=list(cells[0]),
        rows=[
            [title(effect.condition, measured), *own.values()]
            for effect, own in zip(found.effects, cells, strict=True)
        ],
        summary=summary,
        notes=_notes(measured, found),
    )


def _cells(
    measured: Measurements, decomposition: Decomposition | None, effect: Effect
) -> dict[tuple[str, ...], str]:
    """Return the cells of a condition by their headings."""
    name, change = effect.condition, effect.changes[MAIN]
    total = share = DASH
    if decomposition is not None and name == measured.together:
        total = share = "100 %"
    elif decomposition is not None:
        total = in_percent(decomposition.total.get(name, decomposition.pairs.get(name, Estimate(None))))
        share = in_percent(decomposition.shares.get(name, Estimate(None)))
    first = f"{effect.first_step}, {effect.first_kind}" if effect.first_step is not None else "never"
    return {
        ("trials", "n"): str(effect.trials),
        ("trials", "changed"): str(effect.changed),
        ("log perplexity", "median change"): cell(change.median),
        ("log perplexity", "SD"): cell(change.sd),
        ("loss SD", "late"): cell(effect.changes["late loss"].sd),
        ("loss SD", "final"): cell(effect.changes["final loss"].sd),
        ("adapters", "distance"): cell(effect.distance),
        ("adapters", "first difference"): first,
        ("variance of log perplexity", "total effect"): total,
        ("variance of log perplexity", "share"): share,
    }


def _notes(measured: Measurements, found: Attribution) -> list[str]:
    notes, freed = NOTES[NUMBER], measured.freed
    shown = [f"Do not interpret these results: {problem}" for problem in found.problems]
    shown += [notes["rows"].format(replicates=measured.replicates), notes["adapters"]]
    if {"data_order", "split"} & set(freed):
        shown.append(notes["other_examples"])
    if "kernels" in freed:
        first, other = (
            f"{one.kernels} kernels with {_threads(one.threads)}"
            for one in (measured.of(BASELINE)[0], measured.of("kernels")[0])
        )
        shown.append(notes["kernels"].format(first=first, other=other))
    if "split" in freed:
        shown.append(notes["split"])
    if MAIN in found.decompositions:
        shown += _notes_on_shares(measured, found.decompositions[MAIN])
    if diverged := {title(e.condition, measured): e.diverged for e in found.effects if e.diverged}:
        counts = ", ".join(f"{name} {count}" for name, count in diverged.items())
        shown.append(f"Trials with a loss that is not finite: {counts}.")
    return shown


def _notes_on_shares(measured: Measurements, found: Decomposition) -> list[str]:
    notes = NOTES[NUMBER]
    shown = [notes["shares"]]
    if measured.pairs:
        shown.append(notes["pairs"])
    if (lost := measured.replicates - found.replicates) > 0:
        shown.append(notes["lost"].format(replicates=found.replicates, lost=lost))
    largest = "not shown" if found.largest is None else title(found.largest, measured)
    shown.append(notes["largest"].format(largest=largest))
    shown.append(
        notes["additive"].format(additive=found.additive, small=percent(SMALL), significant=SIGNIFICANT)
    )
    if found.above_floor is not None:
        floor = {"interactions": number(found.interaction_sd), "floor": number(found.floor)}
        shown.append(notes["floor"].format(**floor, p=found.above_floor))
    return shown


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
