"""The verdict on a trial that was run again: how far the re-run agrees with what was recorded.

A pure function of two traces, two sets of records and the perplexities of the recorded trial's arm. Nothing
that a file claims counts for agreement but what the re-run gives as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from qlora_repeat.analysis.adapter_distance import Distance
from qlora_repeat.analysis.trial_diff import Difference, Divergence, TrialDiff
from qlora_repeat.analysis.verify.causes import Cause, expectation, explained, may_matter, noisy_kernels
from qlora_repeat.records.trace import Step
from qlora_repeat.results.statistical_methods import FEWEST, prediction_interval
from qlora_repeat.study.optimizers import Optimizer
from qlora_repeat.study.study import Study, Tolerance

VerdictKind = Literal["bitwise", "within tolerance", "statistically consistent", "different", "inconclusive"]
Scope = Literal["whole", "first steps", "evaluation"]

DEFAULT_TOLERANCES: dict[int | None, Tolerance] = {
    8: Tolerance(first_loss=1e-6, loss=1.3e-4, adapter=6.5e-2, perplexity=3e-4),
    32: Tolerance(first_loss=1e-6, loss=5e-5, adapter=5e-3, perplexity=4e-5),
}
"""By the precision of optimizer state; measured with AdamW. Noise has no largest value: some trials amplify
any. These hold for most; see docs/reference/verdicts.md."""
LEVEL = 0.998
"""Of the prediction interval, in which two perplexities must lie, the recorded and the re-run's.

At 99 %, more than one in a hundred re-runs with other seeds were outside (benchmarks/verify_calibration.py).
"""

_RATES_AGREE = 1e-9
"""Relative; rates are a few operations on floats."""


@dataclass(frozen=True)
class Deviations:
    """How far the re-run is from the recorded trial; relative to the recorded values."""

    first_loss: float | None = None
    loss: float | None = None
    """The mean over the steps that were compared."""
    worst_loss: float | None = None
    worst_step: int | None = None
    """Where that is."""
    adapter: float | None = None
    """The norm of the difference."""
    perplexity: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What `verify` says of a trial, and why."""

    kind: VerdictKind
    scope: Scope
    why: list[str]
    """Sentences."""
    bits_expected: bool
    """Whether the two fingerprints let the same bits be expected."""
    expectation: str
    """Why, in a sentence."""
    steps: int
    """How many were compared."""
    measured: Deviations
    tolerance: Tolerance
    interval: tuple[float, float] | None = None
    """For the perplexity of one further trial of the arm, where it was worked out."""
    arm_trials: int = 0
    """The recorded perplexities of other trials that it is worked out from."""
    divergence: Divergence | None = None
    explanations: list[Difference] = field(default_factory=list)
    """The differences that most likely explain where the two part."""
    cannot_tell: list[str] = field(default_factory=list)
    settle: list[str] = field(default_factory=list)
    """What would settle it, where it is inconclusive."""


@dataclass(frozen=True)
class _Departure:
    """Something in which the re-run departs from the recorded trial by more than its tolerance."""

    cause: Cause
    text: str


def judge_rerun(
    diff: TrialDiff,
    others: Sequence[float],
    tolerance: Tolerance,
    *,
    scope: Scope = "whole",
    unlike_tests: bool = False,
) -> Verdict:
    """The verdict on `diff.second`, a re-run of `diff.first`.

    `others` are the perplexities of the other recorded trials of its arm; `unlike_tests` says that tests of
    the same merged model gave other numbers.
    """
    differing = [each for each in diff.differences if may_matter(each)]
    noisy = noisy_kernels(diff, "evaluate" if scope == "evaluation" else "finetune")
    bits_expected, why_expected = expectation(differing, noisy)
    steps = diff.compared_steps if scope != "evaluation" else 0
    verdict = Verdict(
        kind="different",
        scope=scope,
        why=[],
        bits_expected=bits_expected,
        expectation=why_expected,
        steps=steps,
        measured=_measure(diff, steps),
        tolerance=tolerance,
        interval=prediction_interval(others, LEVEL),
        arm_trials=len(others),
        divergence=diff.divergence,
        cannot_tell=_cannot_tell(diff, scope, steps),
    )
    measured = verdict.measured
    if not diff.divergence and not diff.unlike and not unlike_tests and measured.perplexity in (None, 0.0):
        return _with(verdict, "bitwise", _same(scope, steps, "evaluate" in diff.first.records))
    departures = _departures(diff, measured, tolerance, steps)
    departures += _other_optimizer(diff, differing, noisy)
    if unlike_tests and bits_expected:
        text = "The same merged model gave other losses of test examples, or other responses."
        departures.append(_Departure("perplexity", text))
    if not departures:
        unexpected = ["Bits were expected to be the same, and are not."] if bits_expected else []
        why = [_closeness(measured, tolerance), *unexpected]
        return replace(_with(verdict, "within tolerance", *why), explanations=differing + noisy)
    verdict = replace(verdict, why=[departure.text for departure in departures])
    reasons = explained((each.cause for each in departures), differing, noisy)
    if unexplained := [departure for departure in departures if not reasons[departure.cause]]:
        why = [f"Nothing in settings, seeds or fingerprints explains it: {_cause_names(unexplained)}."]
        return _with(verdict, "different", *why)
    likely: list[Difference] = []
    for departure in departures:  # a difference may be of lists, which cannot be hashed
        likely += [each for each in reasons[departure.cause] if each not in likely]
    return _by_explanations(verdict, diff, likely)


def _by_explanations(verdict: Verdict, diff: TrialDiff, likely: list[Difference]) -> Verdict:
    """The verdict where each departure has something in the records that may be its reason."""
    keys = ", ".join(dict.fromkeys(each.key for each in likely))
    verdict = replace(
        verdict, explanations=likely, why=[*verdict.why, f"It may come from what differs: {keys}."]
    )
    if all(each.key == "code" for each in likely):
        commit = diff.first.records["finetune"].fingerprint.get("commit")
        reason = "The code of the kit is not the recorded one, which can explain anything."
        return _inconclusive(verdict, reason, f"the same with the kit at commit {commit}")
    recorded, rerun = diff.first.perplexity, diff.second.perplexity
    if (undecided := _undecided(verdict, recorded, rerun)) is not None:
        return _inconclusive(verdict, *undecided)
    assert verdict.interval is not None and recorded is not None and rerun is not None, "or it is undecided"
    # A known difference has led further than noise: are both trials of the same arm?
    low, high = verdict.interval
    outside = [
        f"the {name} perplexity, {value:.6g}, is outside"
        for name, value in (("recorded", recorded), ("re-run's", rerun))
        if not low <= value <= high
    ]
    place = " and ".join(outside) or f"both perplexities, {recorded:.6g} and {rerun:.6g}, are in"
    interval = (
        f"{_sentence(place)} the {LEVEL:.1%} prediction interval from the {verdict.arm_trials} other "
        f"recorded trials of the arm, {low:.6g} to {high:.6g}."
    )
    return _with(verdict, "different" if outside else "statistically consistent", interval)


def _inconclusive(verdict: Verdict, reason: str, settle: str) -> Verdict:
    return replace(_with(verdict, "inconclusive", reason), settle=[settle])


def _other_optimizer(
    diff: TrialDiff, differing: Sequence[Difference], noisy: list[Difference]
) -> list[_Departure]:
    """Whether an update differs first, and nothing in the records can be why, however near the adapters are.

    An optimizer works on each value alone, so that what it does has no noise of its own; its kind or the
    precision of its state is then another.
    """
    first = diff.divergence
    if first is None or first.kind != "update" or explained(["update"], differing, noisy)["update"]:
        return []
    before = first.unwatched
    steps = f"One of steps {before[0]} to {first.step}" if before else f"Step {first.step}"
    return [_Departure("update", f"{steps} had the same loss and gradient norm, and gave another adapter.")]


def _with(verdict: Verdict, kind: VerdictKind, *why: str) -> Verdict:
    return replace(verdict, kind=kind, why=[*verdict.why, *why])


def tolerance_of(study: Study, optimizer: str) -> Tolerance:
    """What the study allows for an optimizer; an old map of 8-bit state has the tolerance of today's."""
    kind = Optimizer.parse(optimizer).with_todays_qmap
    own = {str(name): tolerance for name, tolerance in study.tolerance.items()}
    return own.get(optimizer) or own.get(kind.name) or DEFAULT_TOLERANCES[kind.bits]


def without_rerun(
    lacking: Sequence[str], contradictions: Sequence[str], tolerance: Tolerance, scope: Scope
) -> Verdict:
    """The verdict where the trial is not run again: it contradicts itself, or something is `lacking` here."""
    return Verdict(
        kind="different" if contradictions else "inconclusive",
        scope=scope,
        why=[
            *contradictions,
            *(f"{_sentence(each)}." for each in lacking),
            *(["What was recorded contradicts itself."] if contradictions else []),
            "It was not run again.",
        ],
        bits_expected=False,
        expectation="",
        steps=0,
        measured=Deviations(),
        tolerance=tolerance,
        cannot_tell=["what a re-run gives"],
        settle=[] if contradictions else ["the base model and data that the records name by digest"],
    )


def _measure(diff: TrialDiff, steps: int) -> Deviations:
    recorded, rerun = diff.first, diff.second
    pairs = zip(recorded.steps[1 : steps + 1], rerun.steps[1 : steps + 1], strict=True)
    apart = [_relative(ours.loss, theirs.loss) for ours, theirs in pairs]
    known = [value for value in apart if value is not None]
    worst = max(known, default=None)
    return Deviations(
        first_loss=apart[0] if apart else None,
        loss=sum(known) / len(known) if known else None,
        worst_loss=worst,
        worst_step=None if worst is None else 1 + apart.index(worst),
        adapter=_apart(diff.distances) if diff.distances else None,
        perplexity=_relative(recorded.perplexity, rerun.perplexity),
    )


def _apart(distances: dict[str, Distance]) -> float:
    """The larger of the relative distances of A and B; infinite where there is none, but a difference."""
    found = [
        0.0 if each.values == each.equal else math.inf if each.relative is None else each.relative
        for part, each in distances.items()
        if part != "all" or len(distances) == 1
    ]
    return math.nan if any(map(math.isnan, found)) else max(found)


def _relative(recorded: float | None, rerun: float | None) -> float | None:
    """The difference relative to the recorded value; 0 where both are nan or the same infinity."""
    if recorded is None or rerun is None:
        return None
    if recorded == rerun or (math.isnan(recorded) and math.isnan(rerun)):
        return 0.0
    if not math.isfinite(recorded) or not math.isfinite(rerun) or recorded == 0:
        return math.inf
    return abs(rerun - recorded) / abs(recorded)


def _departures(diff: TrialDiff, measured: Deviations, tolerance: Tolerance, steps: int) -> list[_Departure]:
    """What is further apart than noise: rows and learning rates follow from the settings, and have none."""
    found = []
    pairs = list(zip(diff.first.steps[1 : steps + 1], diff.second.steps[1 : steps + 1], strict=True))
    ends = sorted((diff.first.last_step, diff.second.last_step))
    if steps and diff.first.finished and diff.second.finished and ends[0] != ends[1]:
        found.append(_Departure("data", f"One has {ends[0]} steps, the other {ends[1]}."))
    if step := _first(pairs, lambda one, other: (one.examples, one.tokens) != (other.examples, other.tokens)):
        found.append(_Departure("data", f"Step {step} was on other examples."))
    if step := _first(pairs, _other_rate):
        found.append(_Departure("learning rate", f"Step {step} had another learning rate."))
    far = [
        f"{name} differs by {apart:.1e} of its value, where {most:.1e} is allowed"
        for name, apart, most in (
            ("the loss of step 1", measured.first_loss, tolerance.first_loss),
            ("the loss, in the mean over the steps,", measured.loss, tolerance.loss),
            ("the adapter", measured.adapter, tolerance.adapter),
        )
        if apart is not None and not apart <= most  # nan is not
    ]
    if step := _first(pairs, lambda one, other: one.skipped != other.skipped):
        far.append(f"step {step} was skipped by one alone")
    if steps and diff.first.finished and diff.second.finished and diff.distances is None:
        far += diff.unlike  # adapters of other tensors have no distance
    begun = [side.steps[0].adapter for side in (diff.first, diff.second)]
    trained: Cause = "init" if steps and begun[0] != begun[1] else "arithmetic"
    if far:
        found.append(_Departure(trained, f"{_sentence('; '.join(far))}."))
    if measured.perplexity is not None and not measured.perplexity <= tolerance.perplexity:
        text = f"The perplexity differs by {measured.perplexity:.1e} of its value"
        allowed = f"{tolerance.perplexity:.1e} is allowed"
        found.append(_Departure(trained if steps else "perplexity", f"{text}, where {allowed}."))
    return found


def _first(pairs: Sequence[tuple[Step, Step]], unlike: Callable[[Step, Step], bool]) -> int | None:
    return next((one.step for one, other in pairs if unlike(one, other)), None)


def _other_rate(one: Step, other: Step) -> bool:
    apart = _relative(one.learning_rate, other.learning_rate)
    return apart is not None and not apart <= _RATES_AGREE


def _undecided(verdict: Verdict, recorded: float | None, rerun: float | None) -> tuple[str, str] | None:
    """Why statistics cannot decide, and what would; None if they can."""
    same_machine = "the recorded machine and packages"
    if verdict.scope == "first steps":
        return "Whether the end is consistent, its first steps cannot tell.", "a re-run of all steps"
    if verdict.scope == "evaluation":
        return "One adapter has one perplexity: statistics of several do not apply.", same_machine
    if not all(value is not None and math.isfinite(value) for value in (recorded, rerun)):
        return (
            "There are no two finite perplexities to compare.",
            "a trial that is evaluated and does not diverge",
        )
    if verdict.interval is None:
        return (
            f"The arm has {verdict.arm_trials} other recorded perplexities, too few for an interval.",
            f"at least {FEWEST} other recorded trials of the arm, or {same_machine}",
        )
    if verdict.interval[0] == verdict.interval[1]:
        return (
            "The arm's other trials are all the same: they say nothing of how far another may be.",
            f"{same_machine}, or an arm whose seeds are fresh",
        )
    return None


def _same(scope: Scope, steps: int, tested: bool) -> str:
    if scope == "evaluation":
        return "The merged model, its perplexity and its responses are the same, bit for bit."
    if scope == "first steps":
        return f"The first {steps} steps are the same, bit for bit."
    return (
        f"All {steps} steps and the adapter{', and its test,' if tested else ''} are the same, bit for bit."
    )


def _closeness(measured: Deviations, tolerance: Tolerance) -> str:
    facts = [
        f"{name} by {apart:.1e} of its value ({most:.1e} is allowed)"
        for name, apart, most in (
            ("losses differ in the mean", measured.loss, tolerance.loss),
            ("the adapters differ", measured.adapter, tolerance.adapter),
            ("the perplexity differs", measured.perplexity, tolerance.perplexity),
        )
        if apart is not None
    ]
    return f"{_sentence(', '.join(facts))}." if facts else "Only digests differ."


def _cannot_tell(diff: TrialDiff, scope: Scope, steps: int) -> list[str]:
    if scope == "evaluation":
        return ["whether fine-tuning gives this adapter: it was taken as recorded"]
    whole, unseen = diff.first.last_step, []
    if scope == "first steps":
        later = [f"steps {steps + 1} to {whole}"] if steps < whole else []
        unseen = [f"{', '.join([*later, 'the adapter'])} and its perplexity: only {steps} steps were run"]
        digests = [step.step for step in diff.first.steps[: steps + 1] if step.adapter is not None]
        if digests and digests[-1] < steps:
            unseen.append(
                f"the update of step {steps}: the last recorded digest is that of step {digests[-1]}"
            )
    elif "evaluate" not in diff.first.records:
        unseen = ["its perplexity: it was never evaluated"]
    unseen += _unseen_updates(diff)
    return [*unseen, "seconds, memory, and sampled responses, each with a fresh seed: they differ each time"]


def _unseen_updates(diff: TrialDiff) -> list[str]:
    """The updates before a first difference in a loss, which may be its cause, if no digest tells."""
    first = diff.divergence
    if first is None or first.kind not in ("loss", "gradient") or not first.unwatched:
        return []
    begin, end = first.unwatched[0], first.unwatched[-1]
    steps = f"step {begin}" if begin == end else f"steps {begin} to {end}"
    return [f"whether the updates of {steps} were the recorded optimizer's: there is no digest after each"]


def _cause_names(departures: Sequence[_Departure]) -> str:
    names: dict[Cause, str] = {
        "data": "the rows",
        "learning rate": "the learning rate",
        "init": "the initial adapter",
        "arithmetic": "what a step computes",
        "update": "what the optimizer does",
        "perplexity": "the test",
    }
    return ", ".join(dict.fromkeys(names[departure.cause] for departure in departures))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
