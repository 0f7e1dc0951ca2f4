"""Table S4: the paper's claims, each with its rule and what these results say of it."""

from qlora_repeat.analysis.claims.claims import RULES, judge
from qlora_repeat.render.tables.table import Column, Table, count_lacking
from qlora_repeat.results.arms import Arm, distinct, source_of, stale, stale_bases


def claims_table(arms: list[Arm]) -> Table:
    """Table S4, of any results: what they cannot tell is untested."""
    lacking = count_lacking([Column((), arm, lambda trial: trial.status) for arm in arms])
    return Table(
        number="S4",
        caption="The paper's claims, in other words, and whether the runs support them.",
        source=source_of(arms),
        stub="No.",
        columns=[("Claim",), ("Supported if",), ("Verdict",), ("To test it",)],
        rows=[
            [
                str(place),
                f"{judged.claim.words} ({judged.claim.where})",
                judged.claim.rule,
                f"{judged.verdict}. {judged.evidence}",
                judged.command,
            ]
            for place, judged in enumerate(judge([trial for arm in arms for trial in arm.trials]), 1)
        ],
        notes=[
            f"Models: {', '.join(distinct(arm.title for arm in arms))}.",
            *RULES,
            *([f"Not in these verdicts: {lacking}."] if lacking else []),
            *stale(arms),
            *stale_bases(arms),
        ],
        prose=True,
    )
