"""Table S4: the paper's claims, each with its rule and its verdict."""

from qlora_repeat.analysis.claims.claims import DEFINITIONS, judge_claims
from qlora_repeat.render.footnotes import missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, distinct


def claims_table(arms: list[Arm]) -> Table:
    """Make Table S4; claims that the results cannot decide are untested."""
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
            for place, judged in enumerate(judge_claims(arms), 1)
        ],
        notes=[
            f"Models: {', '.join(distinct(arm.title for arm in arms))}.",
            *DEFINITIONS,
            *missing(arms, begin="Not in these verdicts:"),
            *stale(arms),
            *stale_bases(arms),
        ],
        prose=True,
    )
