"""What the paper claims, in our words; the rule by which collected results support it; and what they say.

Every verdict is computed from results alone, by a rule that can be followed with the tables at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from qlora_repeat.analysis.claims import arm_tests, optimizer_tests
from qlora_repeat.analysis.claims.arm_tests import LOW, RUN, RUN_PAPER, Finding
from qlora_repeat.analysis.claims.optimizer_tests import ALPHA, SLIGHTLY
from qlora_repeat.results.arms import Arm, distinct, group_arms
from qlora_repeat.results.statistics import FEWEST
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.study import PUBLISHED

Verdict = Literal["supported", "not supported", "untested"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how results test it."""

    key: str
    words: str
    """The claim, in our words."""
    where: str
    """Where the paper makes it: sections, tables."""
    rule: str
    """When results support it."""
    command: str
    """What tests it, with a place for the name of a study, and where that shows what the rule looks at."""
    judges: Callable[[Sequence[Arm]], list[Finding]]
    """What each arm, model or comparison says of it."""
    subject: str = "arm"
    """What has a say: ``arm``, ``model``, or ``comparison`` of a model's 8-bit runs with its 32-bit runs."""


@dataclass(frozen=True)
class Judged:
    """What results say of a claim."""

    claim: Claim
    verdict: Verdict
    evidence: str
    """One sentence with the numbers; for what is untested, with what to run."""
    command: str
    """The claim's, for these results' study."""


_TESTED = f"the rank-sum test has p of at most {ALPHA:g} after Holm"
_SLOWER = (
    "In every model, the median of the 32-bit runs is above that of the 8-bit runs, by a factor of at most "
    f"{SLIGHTLY:g}, and {_TESTED}."
)

CLAIMS = [
    Claim(
        key="runs-differ",
        words="Fine-tuning is not repeatable: runs with the same settings end with different perplexities.",
        where="abstract, sections VIII and XI, Tables 1 and 2",
        rule="In every arm, not all runs have the same perplexity.",
        command=f"{RUN}: Tables 1 and 2",
        judges=partial(arm_tests.runs_differ, measure=lambda trial: trial.perplexity, noun="perplexities"),
    ),
    Claim(
        key="no-two-agree",
        words="Each run has a perplexity of its own.",
        where="section VIII, on Table 1",
        rule="In every arm, no two runs have the same perplexity, in all digits that there are.",
        command=f"{RUN}: Tables 1 and 2",
        judges=partial(
            arm_tests.runs_differ, measure=lambda trial: trial.perplexity, noun="perplexities", each=True
        ),
    ),
    Claim(
        key="weights-differ",
        words="The fine-tuned weights vary from run to run.",
        where="section IX",
        rule="In every arm, no two runs have the same adapter, by its digest.",
        command=f"{RUN}: a line for each arm, by collect",
        judges=partial(
            arm_tests.runs_differ, measure=lambda trial: trial.adapter_digest, noun="adapters", each=True
        ),
    ),
    Claim(
        key="8-bit-higher",
        words="Perplexity is higher after 8-bit than after 32-bit AdamW.",
        where="section VIII, on Tables 1 and 2",
        rule=f"In every model, the median of the 8-bit runs is above that of the 32-bit runs, and {_TESTED}.",
        command=f"{RUN}: Tables 1 and 2, medians in Table S1",
        judges=optimizer_tests.perplexity_higher,
        subject="comparison",
    ),
    Claim(
        key="8-bit-wider",
        words="Runs with 8-bit AdamW repeat less well: they lie further apart.",
        where="section VIII, on Table 2",
        rule="In every model, the spread of perplexity of the 8-bit runs is above that of the 32-bit runs, "
        f"with p of at most {ALPHA:g} after Holm.",
        command=f"{RUN}: Table S1b",
        judges=optimizer_tests.spread_wider,
        subject="comparison",
    ),
    Claim(
        key="8-bit-collapse",
        words="8-bit runs often end worse than the model was before fine-tuning.",
        where="Tables 1 and 2 beside section IX; not said in words",
        rule="In every 8-bit arm, more than half of the runs have a perplexity above the base's, or one that "
        "is not finite.",
        command=f"{RUN}: Tables 1 and 2, counts in Table S1",
        judges=arm_tests.worse_than_base,
    ),
    Claim(
        key="32-bit-improve",
        words="32-bit runs improve on the model.",
        where="Tables 1 and 2 beside section IX; not said in words",
        rule="In every 32-bit arm, every run has a perplexity below the base's.",
        command=f"{RUN}: Tables 1 and 2",
        judges=arm_tests.better_than_base,
    ),
    Claim(
        key="bases-repeat",
        words="A model that was not fine-tuned has the same perplexity in every test.",
        where="section IX",
        rule="In every model, all tests of its base, two or more, have the same perplexity.",
        command=f"{RUN}: Table S0",
        judges=arm_tests.bases_repeat,
        subject="model",
    ),
    Claim(
        key="losses-differ",
        words="Runs end with different losses.",
        where="section VIII, Figure 4",
        rule="In every arm, not all runs have the same final loss.",
        command=f"{RUN}: Figure 4, ranges in Table S1",
        judges=partial(arm_tests.runs_differ, measure=lambda trial: trial.final_loss, noun="final losses"),
    ),
    Claim(
        key="8-bit-losses-higher",
        words="Losses end higher with 8-bit than with 32-bit AdamW.",
        where="Figure 4, as Tables 1 and 2 let expect; not said in words",
        rule="In every model, the median final loss of the 8-bit runs is above that of the 32-bit runs, and "
        f"{_TESTED}.",
        command=f"{RUN}: Figure 4, medians in Table S1",
        judges=optimizer_tests.loss_higher,
        subject="comparison",
    ),
    Claim(
        key="responses-differ",
        words="Runs respond differently to the same prompt, at a low temperature too.",
        where="section VIII, Tables 4 to 7; section IX",
        rule="In every arm, for each prompt, not all runs give the same response, both at a low temperature "
        "and at a higher one.",
        command=f"{RUN}: Tables 4 to 9; responses at the low one in results.jsonl",
        judges=arm_tests.responses_differ,
    ),
    Claim(
        key="answers-differ",
        words="Runs answer the same question differently.",
        where="section VIII, Tables 8 and 9",
        rule="In every arm of a question-answering model, for each instruction, not all runs give the same "
        "answer: a letter, or else a text.",
        command=f"{RUN}: Tables 8 and 9",
        judges=arm_tests.answers_differ,
    ),
    Claim(
        key="accuracy-differs",
        words="Runs differ in how many of the test questions they answer right.",
        where="abstract, on the test set; no accuracy is printed",
        rule="In every arm of a question-answering model, not all runs have the same accuracy. Where it is 0 "
        "in all, or 1, an arm cannot tell.",
        command=f"{RUN}: accuracy in results.jsonl",
        judges=arm_tests.accuracies_differ,
    ),
    Claim(
        key="32-bit-answers",
        words="Answers are more sensible with 32-bit AdamW.",
        where="section VIII, on Tables 8 and 9",
        rule="In every question-answering model, the 32-bit runs answer more of the instructions with a "
        f"letter than the 8-bit runs, in the median, and {_TESTED}.",
        command=f"{RUN}: Tables 8 and 9",
        judges=optimizer_tests.more_letters,
        subject="comparison",
    ),
    Claim(
        key="asked-again",
        words="One fine-tuned model that is asked again says the same at a low temperature, but not at 1.",
        where="sections VII and IX",
        rule="In every arm, for each prompt that a model was asked again and again, all responses are the "
        "same at a low temperature, and not all at a higher one.",
        command=f"{RUN}: Table S0",
        judges=arm_tests.asked_again,
    ),
    Claim(
        key="slower-training",
        words="Fine-tuning takes slightly longer with 32-bit AdamW.",
        where="section VIII, on Tables 10 and 11",
        rule=_SLOWER,
        command=f"{RUN}: train in Tables 10 and 11, medians in Table S1",
        judges=optimizer_tests.training_slower,
        subject="comparison",
    ),
    Claim(
        key="slower-test",
        words="The test takes slightly longer after 32-bit AdamW.",
        where="section VIII, on Tables 10 and 11",
        rule=_SLOWER,
        command=f"{RUN}: test in Tables 10 and 11, medians in Table S1",
        judges=optimizer_tests.testing_slower,
        subject="comparison",
    ),
    Claim(
        key="more-memory",
        words="Fine-tuning takes slightly more GPU memory with 32-bit AdamW.",
        where="section VIII, Table 3",
        rule="In every model, the mean of the 32-bit runs is above that of the 8-bit runs, by a factor of at "
        f"most {SLIGHTLY:g}. There is no test, since Table 3 has one value for each arm.",
        command=f"{RUN}, on a GPU: Table 3",
        judges=optimizer_tests.memory_higher,
        subject="comparison",
    ),
]
"""In the order of the paper's evaluation."""

RULES = [
    "An arm has the runs of one model with one optimizer. supported: the rule holds for all arms, models or "
    "comparisons of the 8-bit and the 32-bit runs of a model. not supported: it does not for one or more, "
    "which is no proof of the opposite. untested: one or more cannot tell, and it holds for the others.",
    f"An arm can tell if {FEWEST} of its runs have the value. Runs that share all seeds of fine-tuning, and "
    "are alike, are one run made again, and cannot tell; nor can runs of which each has its own split, or "
    "its own seed of sampling where responses are compared. Values that are not finite are one value, above "
    "all others.",
    "The rank-sum test is Wilcoxon's, two-sided and exact. Holm: adjusted for all comparisons. "
    f"A low temperature is at most {LOW:g}.",
]
"""What the rules of all claims rest on."""

_NAMED = 2
"""Up to so many that say the same are named, more are counted."""


def judge(results: Sequence[TrialResult]) -> list[Judged]:
    """A verdict on each claim, from the results of a study or those that the paper prints.

    Raises:
        UsageError: two rows are of the same trial.
    """
    arms = group_arms(results)
    names = _names(results[0]) if results else _NAMES
    return [_judged(claim, claim.judges(arms), names) for claim in CLAIMS]


_NAMES = {"study": "paper", "unpinned": "paper", "file": "paper"}
"""What is put into commands: a study, the same without its profile, and the name of its file."""


def _names(row: TrialResult) -> dict[str, str]:
    if row.study == PUBLISHED:
        return _NAMES
    name, *parts = row.study.split("@")
    unpinned = "@".join([name, *(part for part in parts if part != row.randomness)])
    return {"study": row.study, "unpinned": unpinned, "file": name}


def _judged(claim: Claim, found: list[Finding], names: dict[str, str]) -> Judged:
    against = [finding for finding in found if finding.holds is False]
    cannot = [finding for finding in found if finding.holds is None]
    held = len(found) - len(against) - len(cannot)
    every = f"{len(found)} {claim.subject}{'' if len(found) == 1 else 's'}"
    verdict: Verdict
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
        # Which settings a study needs is of no help where there is no study.
        remedies = [RUN_PAPER] if not found or names is _NAMES else remedies
        text += f"; to test it: {'; '.join(remedies).format(**names)}"
    else:
        verdict = "supported"
        text = f"In {'all ' if held > 1 else ''}{every}: {_listed(found, claim.subject)}"
    return Judged(claim, verdict, f"{text}.", claim.command.format(**names))


def _listed(found: list[Finding], subject: str) -> str:
    """What findings say, once for all that say the same."""
    names: dict[str, list[str]] = {}
    for finding in found:
        names.setdefault(finding.words, []).append(finding.of)
    if len(names) == 1 and len(found) > _NAMED:
        return found[0].words
    return "; ".join(
        f"{' and '.join(own) if len(own) <= _NAMED else f'{len(own)} {subject}s'}, {words}"
        for words, own in names.items()
    )
