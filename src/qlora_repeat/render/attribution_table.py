"""Table S2: what each source of randomness does alone, and what share it has when all vary together."""

from qlora_repeat.attribution import MAIN, SMALL, Attribution, Effect
from qlora_repeat.outcomes import BASELINE, JOINT, JOINT_OTHER, NUDGE, Measured
from qlora_repeat.paired import Estimate
from qlora_repeat.render.arms import distinct
from qlora_repeat.render.attribution_text import INTERVALS, in_percent, percent, title, with_interval
from qlora_repeat.render.summary import DASH, number
from qlora_repeat.render.table import Table

NUMBER = "S2"


def attribution_table(measured: Measured, found: Attribution) -> Table:
    """A row for each condition: its spread, its adapters, where it first differs, its share."""
    shares = found.decompositions.get(MAIN)
    blank = [DASH] * 8
    summary = []
    if shares is not None:
        summary = [
            ["only together", *blank, DASH, in_percent(shares.interactions)],
            ["sum of alone", *blank, in_percent(shares.sum_alone), DASH],
        ]
    return Table(
        number=NUMBER,
        caption=f"What makes runs of {measured.model_title} with {measured.optimizer} differ: each source "
        "freed alone, all freed together, and disturbances.",
        source=source_of_experiment(measured),
        stub="Freed or changed",
        columns=[
            ("trials", "n"),
            ("trials", "distinct"),
            ("log perplexity", "shift"),
            ("log perplexity", "SD"),
            ("loss SD", "late"),
            ("loss SD", "final"),
            ("adapters", "distance"),
            ("adapters", "parted at"),
            ("variance of log perplexity", "alone"),
            ("variance of log perplexity", "share of joint"),
        ],
        rows=[_row(measured, found, effect) for effect in found.effects],
        summary=summary,
        notes=_notes(measured, found),
    )


def _row(measured: Measured, found: Attribution, effect: Effect) -> list[str]:
    shares = found.decompositions.get(MAIN)
    name, spread = effect.condition, effect.spreads[MAIN]
    alone = share = DASH
    if shares is not None and name in shares.alone:
        alone = in_percent(shares.alone[name])
    if shares is not None and name in shares.shares:
        share = in_percent(shares.shares[name])
    if name == JOINT:
        alone = share = "100 %"
    if name == NUDGE and found.amplification and found.amplification.of_joint is not None:
        alone = percent(found.amplification.of_joint**2)
    if name == JOINT_OTHER and found.precision and found.precision.spread.value is not None:
        alone = in_percent(found.precision.spread)
    return [
        title(name, measured),
        str(effect.trials),
        str(effect.distinct),
        number(spread.shift) or DASH,
        with_interval(Estimate(spread.sd, spread.sd_low, spread.sd_high)),
        *(number(effect.spreads[measure].sd) or DASH for measure in ("late loss", "final loss")),
        number(effect.apart) or DASH,
        f"{effect.first_step}, {effect.first_kind}" if effect.first_step is not None else "never",
        alone,
        share,
    ]


def _notes(measured: Measured, found: Attribution) -> list[str]:
    notes = [f"Not to be interpreted: {problem}" for problem in found.problems]
    notes.append(
        "SD: sample standard deviation (n-1; its interval is Bonett's); shift: mean difference from the "
        "baseline, in which every source is pinned and kernels are deterministic; late: of the mean loss of "
        "the last quarter of the steps. Differences of log perplexity are about relative differences of "
        "perplexity."
    )
    if {"data_order", "split"} & set(measured.freed):
        notes.append(
            "Where data order or split is freed, losses are those of other examples too: their spread is not "
            "that of the models alone."
        )
    notes.append(
        "distance: median over pairs of adapters of the difference of what they add to the weights (BA), "
        "relative to its size (1.41: unrelated). parted at: the first step at which a trace is not "
        "that of its reference, and in what; the reference is the baseline, or with the other optimizer the "
        "trial of the same seeds."
    )
    notes.append(
        "alone: variance relative to that of all together (Pitman and Morgan's interval for paired values). "
        "share of joint: covariance with the joint outcome of the same levels, relative to its variance (t "
        "interval of a slope); shares and what sources do only together sum up to 100 %. An estimate may "
        f"lie outside of 0 to 100 %. sum of alone: percentile bootstrap over replicates. {INTERVALS}"
    )
    if measured.pairs:
        notes.append("A × B: both freed; its share is of what the two do only together.")
    if "split" in measured.freed:
        notes.append(
            "Another split also tests on other examples: its spread is that of two samples, of what a model "
            "learns from and of what it is asked."
        )
    if "kernels" in measured.freed:
        ways = distinct(
            f"{each.kernels} with {each.threads} thread{'s' if each.threads > 1 else ''}"
            for each in measured.of("kernels")
        )
        notes.append(f"kernels and threads, in training and in testing: {', '.join(ways)}.")
    shares = found.decompositions.get(MAIN)
    if shares is not None:
        notes.append(
            f"Verdict: {shares.additive} (additive: what sources do only together has certainly less than "
            f"{percent(SMALL)} of the variance)."
        )
        if shares.above_floor is not None:
            notes.append(
                f"What they do only together has an SD of {number(shares.interaction_sd)}; disturbances such "
                f"as the nudge's in each trial would give {number(shares.floor)} (F test: p = "
                f"{shares.above_floor:.2g})."
            )
    if any(effect.diverged for effect in found.effects):
        told = (f"{title(e.condition, measured)} {e.diverged}" for e in found.effects if e.diverged)
        notes.append(f"Trials with a loss that was not finite: {', '.join(told)}.")
    return notes


def source_of_experiment(measured: Measured) -> str:
    days = sorted(distinct(outcome.finished[:10] for outcome in measured.outcomes))
    threads = measured.of(BASELINE)[0].threads
    facts = {
        "Study": measured.study,
        "Device": "; ".join(distinct(outcome.device for outcome in measured.outcomes))
        + f", {threads} thread{'s' if threads > 1 else ''} where they are pinned",
        "Steps": str(measured.steps),
        "Finished (UTC)": " to ".join(distinct([days[0], days[-1]])),
        "Software": "; ".join(distinct(outcome.software for outcome in measured.outcomes)),
    }
    return " ".join(f"{name}: {value}." for name, value in facts.items())
