"""Tables S4 and S4b: the verdict on each of the paper's claims, and what each arm says of it."""

from collections.abc import Sequence

from qlora_repeat.analysis.claims.claims import DEFINITIONS, JudgedClaim
from qlora_repeat.render.footnotes import missing, source_of, stale, stale_bases
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import Arm, distinct


def claims_table(arms: list[Arm], claims: Sequence[JudgedClaim]) -> Table:
    """Make Table S4: verdicts; claims that the results cannot decide are untested."""
    return Table(
        number="S4",
        caption="The paper's claims, in other words, and what the runs say of them.",
        source=source_of(arms),
        stub="No.",
        columns=[("Claim",), ("Verdict",), ("Evidence",)],
        rows=[
            [str(place), f"{judged.claim.words} ({judged.claim.where})", judged.verdict, judged.line]
            for place, judged in enumerate(claims, 1)
        ],
        notes=[
            f"Models: {', '.join(distinct(arm.title for arm in arms))}.",
            *DEFINITIONS,
            "The report has the rule of each claim, and the command that tests it.",
            *missing(arms, begin="Not in these verdicts:"),
            *stale(arms),
            *stale_bases(arms),
        ],
        prose=True,
    )


def findings_table(arms: list[Arm], claims: Sequence[JudgedClaim]) -> Table:
    """Make Table S4b: what was found in each arm, model or comparison."""
    words = {True: "holds", False: "contradicts", None: "cannot tell"}
    return Table(
        number="S4b",
        caption="What each arm, model or comparison says of the paper's claims of Table S4.",
        source=source_of(arms),
        stub="No.",
        columns=[("Of",), ("Says",), ("Found",)],
        rows=[
            [
                str(place),
                found.of,
                "leaves it open" if found.is_open and not found.holds else words[found.holds],
                found.words,
            ]
            for place, judged in enumerate(claims, 1)
            for found in judged.findings
        ],
        notes=[],
        prose=True,
    )
