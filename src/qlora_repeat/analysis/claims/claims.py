"""Judge the paper's claims from collected results.

``claims.toml`` has the claims, in our words, and the rule for each. Every verdict is computed from results
alone, and readers can check it with the tables.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from qlora_repeat.analysis.claims.arm_rules import ARM_RULES, LOW, RUN_PAPER, ClaimFinding
from qlora_repeat.analysis.claims.optimizer_rules import ALPHA, OPTIMIZER_RULES, SLIGHTLY
from qlora_repeat.results.arms import Arm, distinct
from qlora_repeat.results.statistical_methods import FEWEST
from qlora_repeat.study.study import PUBLISHED

ClaimVerdict = Literal["supported", "not supported", "untested"]
_RULES = {test.__name__: test for test in (*ARM_RULES, *OPTIMIZER_RULES)}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how results test it."""

    key: str
    words: str
    """The claim, in our words."""
    where: str
    """The paper's sections and tables that make it."""
    rule: str
    """When results support it."""
    command: str
    """The command that tests it, with a placeholder for the study, and the table that shows the numbers."""
    subject: str
    """What the rule applies to: ``arm``, ``model``, or ``comparison`` of a model's 8-bit and 32-bit runs."""
    function: str
    """The name of the function that applies the rule to arms."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The parameters of that function."""

    def findings(self, arms: Sequence[Arm]) -> list[ClaimFinding]:
        """Return a finding for each arm, model or comparison."""
        return _RULES[self.function](arms, **self.parameters)


@dataclass(frozen=True)
class JudgedClaim:
    """The verdict of results on a claim."""

    claim: Claim
    verdict: ClaimVerdict
    evidence: str
    """One sentence with the numbers; for an untested claim, with what to run."""
    command: str
    """The command that tests the claim with these results' study."""


def _read_claims() -> list[Claim]:
    text = (resources.files("qlora_repeat.analysis.claims") / "claims.toml").read_text(encoding="utf-8")
    bounds = {"alpha": f"{ALPHA:g}", "slightly": f"{SLIGHTLY:g}"}
    return [
        Claim(**table | {"rule": table["rule"].format(**bounds)}) for table in tomllib.loads(text)["claims"]
    ]


CLAIMS = _read_claims()
"""In the order of the paper's evaluation."""

RULES = [
    "An arm is the trials (the paper's runs) of one model with one optimizer. supported: the rule "
    "holds for all arms, models or comparisons of a model's 8-bit and 32-bit trials. not supported: "
    "the rule fails for at least one of them, which does not prove the opposite. untested: some arms "
    "have too few runs; no other arm contradicts it.",
    f"An arm has too few runs, and cannot tell, if fewer than {FEWEST} of them have the value. Runs "
    "that share all seeds and agree count as one run repeated. Runs that each have their own split, "
    "or their own sampling seed where responses are compared, cannot tell either. Values that are not "
    "finite count as one value, above all others.",
    "The rank-sum test is Wilcoxon's, two-sided and exact. Holm: adjusted for all comparisons. "
    f"A low temperature is at most {LOW:g}.",
]
"""Definitions that the rules of all claims share."""

_NAMED = 2
"""Name at most this many findings with the same words; count more."""
_NAMES = {"study": "paper", "unpinned": "paper", "file": "paper"}
"""The placeholders of commands: a study, the same without its profile, and the name of its file."""


def judge_claims(arms: Sequence[Arm]) -> list[JudgedClaim]:
    """Return a verdict on each claim, from the arms of a study or of the paper."""
    names = _NAMES
    if arms and (row := arms[0].trials[0]).study != PUBLISHED:
        name, *parts = row.study.split("@")
        unpinned = "@".join([name, *(part for part in parts if part != row.randomness)])
        names = {"study": row.study, "unpinned": unpinned, "file": name}
    return [_judged(claim, claim.findings(arms), names) for claim in CLAIMS]


def _judged(claim: Claim, found: list[ClaimFinding], names: dict[str, str]) -> JudgedClaim:
    against = [finding for finding in found if finding.holds is False]
    cannot = [finding for finding in found if finding.holds is None]
    held = len(found) - len(against) - len(cannot)
    every = f"{len(found)} {claim.subject}{'' if len(found) == 1 else 's'}"
    verdict: ClaimVerdict
    if against:
        verdict = "not supported"
        text = f"Not in {len(against)} of {every}: {_listed(against, claim.subject)}"
        text += f"; it holds in {held}" if held else ""
        text += f"; {len(cannot)} cannot tell" if cannot else ""
    elif cannot or not found:
        verdict = "untested"
        text = f"{len(cannot)} of {every} cannot tell: {_listed(cannot, claim.subject)}"
        text = text if found else f"No such {claim.subject} in the results"
        remedies = distinct(finding.remedy for finding in cannot)
        # Remedies that name settings of a study do not help if there is no study.
        remedies = [RUN_PAPER] if not found or names is _NAMES else remedies
        text += f"; to test it: {'; '.join(remedies).format(**names)}"
    else:
        verdict = "supported"
        text = f"In {'all ' if held > 1 else ''}{every}: {_listed(found, claim.subject)}"
    return JudgedClaim(claim, verdict, f"{text}.", claim.command.format(**names))


def _listed(found: list[ClaimFinding], subject: str) -> str:
    """Return the words of findings, each once with the names that share them."""
    names: dict[str, list[str]] = {}
    for finding in found:
        names.setdefault(finding.words, []).append(finding.of)
    if len(names) == 1 and len(found) > _NAMED:
        return found[0].words
    return "; ".join(
        f"{' and '.join(own) if len(own) <= _NAMED else f'{len(own)} {subject}s'}, {words}"
        for words, own in names.items()
    )
