"""Judge the paper's claims from collected results.

``claims.toml`` has the claims, in our words, and the rule for each. Every verdict is computed from results
alone, and readers can check it with the tables.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from qlora_repeat.analysis.claims import arm_rules, optimizer_rules
from qlora_repeat.analysis.claims.arm_rules import LOW, RUN, RUN_PAPER, ClaimFinding
from qlora_repeat.analysis.claims.optimizer_rules import ALPHA, SLIGHTLY
from qlora_repeat.results.arms import Arm, by_model, distinct
from qlora_repeat.results.scope import cut_short, whole_name
from qlora_repeat.results.statistical_methods import FEWEST
from qlora_repeat.study.study import PUBLISHED

ClaimVerdict = Literal["supported", "contradicted", "not shown", "untested"]


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
    """The name of the function that applies the rule, to one arm, to a model's arms, or to all arms."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The parameters of that function."""
    task: str | None = None
    """The task of the arms that the rule applies to; None for all."""
    bits: int | None = None
    """The optimizer's precision in these arms; None for all."""

    def findings(self, arms: Sequence[Arm]) -> list[ClaimFinding]:
        """Return a finding for each arm, model or comparison; what is cut short cannot tell."""
        rule: Callable[..., Any] = getattr(
            optimizer_rules if self.subject == "comparison" else arm_rules, self.function
        )
        arms = [
            arm for arm in arms if self.task in (None, arm.task) and self.bits in (None, arm.optimizer.bits)
        ]
        groups = [[arm] for arm in arms] if self.subject == "arm" else list(by_model(arms).values())
        whole = [own for own in groups if not cut_short(own)]
        found = [ClaimFinding(self._name(own), None, why, RUN) for own in groups if (why := cut_short(own))]
        if self.subject == "comparison":
            return [*rule([arm for own in whole for arm in own], **self.parameters), *found]
        return [
            *(rule(own if self.subject == "model" else own[0], **self.parameters) for own in whole),
            *found,
        ]

    def _name(self, own: list[Arm]) -> str:
        """Return the name of what the rule applies to."""
        return own[0].name if self.subject == "arm" else own[0].title


@dataclass(frozen=True)
class JudgedClaim:
    """The verdict of results on a claim."""

    claim: Claim
    verdict: ClaimVerdict
    evidence: str
    """One sentence with the numbers; for an untested claim, with what to run."""
    line: str
    """The evidence in a few words: in how many arms, models or comparisons the rule holds."""
    findings: list[ClaimFinding]
    """What was found in each arm, model or comparison."""
    command: str
    """The command that tests the claim with these results' study."""


_FILE = tomllib.loads(
    (resources.files("qlora_repeat.analysis.claims") / "claims.toml").read_text(encoding="utf-8")
)
_NUMBERS = {"alpha": f"{ALPHA:g}", "slightly": f"{SLIGHTLY:g}", "fewest": FEWEST, "low": f"{LOW:g}"}
CLAIMS = [Claim(**claim | {"rule": claim["rule"].format(**_NUMBERS)}) for claim in _FILE["claims"]]
"""In the order of the paper's evaluation."""
DEFINITIONS: list[str] = [text.format(**_NUMBERS) for text in _FILE["definitions"]]
"""Definitions that the rules of all claims share."""

_NAMED = 2
"""Name at most this many findings with the same words; count more."""
_NAMES = {"study": "paper", "unpinned": "paper", "file": "paper"}
"""The placeholders of commands: a study, the same without its profile, and the name of its file."""


def judge_claims(arms: Sequence[Arm]) -> list[JudgedClaim]:
    """Return a verdict on each claim, from the arms of a study or of the paper."""
    names = _NAMES
    if arms and (row := arms[0].trials[0]).study != PUBLISHED:
        study = whole_name(row.study)
        name, *parts = study.split("@")
        unpinned = "@".join([name, *(part for part in parts if part != row.randomness)])
        names = {"study": study, "unpinned": unpinned, "file": name}
    return [_judged(claim, claim.findings(arms), names) for claim in CLAIMS]


def _judged(claim: Claim, found: list[ClaimFinding], names: dict[str, str]) -> JudgedClaim:
    against = [finding for finding in found if finding.holds is False and not finding.is_open]
    left_open = [finding for finding in found if finding.holds is False and finding.is_open]
    cannot = [finding for finding in found if finding.holds is None]
    failing = against or left_open
    held = len(found) - len(against) - len(left_open) - len(cannot)
    every = f"{len(found)} {claim.subject}{'' if len(found) == 1 else 's'}"
    verdict: ClaimVerdict
    if failing:
        verdict = "contradicted" if against else "not shown"
        begin = "Not" if against else "No difference was found"
        text = f"{begin} in {len(failing)} of {every}: {_listed(failing, claim.subject)}"
        text += f"; {len(left_open)} leave it open" if against and left_open else ""
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
    line = _line(len(against), len(left_open), held, len(cannot), every)
    return JudgedClaim(claim, verdict, f"{text}.", line, found, claim.command.format(**names))


def _line(against: int, left_open: int, held: int, cannot: int, every: str) -> str:
    """Return a few words: in how many of `every` arm, model or comparison a claim holds, and so on."""
    counts = {
        "contradicted in {}": against,
        "no difference found in {}": left_open,
        "holds in {}": held,
        "{} cannot tell": cannot,
    }
    first, *others = [(words, count) for words, count in counts.items() if count] or [("{}", 0)]
    parts = [first[0].format(f"{first[1]} of {every}"), *(words.format(count) for words, count in others)]
    return "; ".join(parts)


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
