"""Judge how well a re-run agrees with the recorded trial.

The verdict is a pure function of two traces, two sets of records and the perplexities of the recorded trial's
arm. Only what the re-run reproduces counts as agreement.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from typing import Any, Literal

from qlora_repeat.analysis.trial_diff import Difference, Divergence, TrialDiff
from qlora_repeat.analysis.verify.causes import (
    Cause,
    draws_alike,
    expectation,
    explained,
    is_code,
    is_like_a_thread,
    may_matter,
    named,
    noisy_kernels,
)
from qlora_repeat.analysis.verify.ceilings import beyond_arithmetic, loss_ceiling, relative
from qlora_repeat.analysis.verify.deviations import (
    NOISE_MARGIN,
    Deviations,
    adapter_deviation,
    beyond_noise,
    in_words,
    measure_deviations,
    widened,
)
from qlora_repeat.analysis.verify.pair_test import LARGEST_SHIFT, POWER, PairTest, make_pair_test
from qlora_repeat.records.trace import Step
from qlora_repeat.results.statistical_methods import FEWEST
from qlora_repeat.study.optimizers import Optimizer
from qlora_repeat.study.study import Study, Tolerance

VerdictKind = Literal["bitwise", "within tolerance", "statistically consistent", "different", "inconclusive"]
Scope = Literal["whole", "first steps", "evaluation"]

DEFAULT_TOLERANCE = Tolerance(first_loss=1e-6, loss=1e-5, adapter=1e-3, perplexity=3e-5)
"""About five times the median noise of a trial (docs/reference/verdicts.md); beyond it, noise is measured."""
_NOISY: tuple[Cause, ...] = ("arithmetic", "update", "perplexity")
"""The causes that one more thread can have too."""
MISSES: dict[VerdictKind, str] = {
    "statistically consistent": (
        "In a calibration, 295 of 301 re-runs with new seeds and a learning rate 1 % higher got this verdict "
        "too, and 6 of 301 with another number of threads and 8-bit instead of 32-bit state."
    ),
    "different": (
        "In a calibration, 11 of 301 honest re-runs of outliers with another number of threads got this "
        "verdict too."
    ),
}
"""What a verdict gets wrong in at least 1 % of cases (docs/explanation/calibration.md)."""
_RATES_AGREE = 1e-9
"""Relative difference that rounding alone can cause."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of `verify` on a trial, and the reasons."""

    kind: VerdictKind
    scope: Scope
    why: list[str]
    """Sentences."""
    bits_expected: bool
    """Whether seeds and fingerprints lead one to expect the same bits."""
    expectation: str
    """Why, in a sentence."""
    steps: int
    """Number of compared steps."""
    measured: Deviations
    tolerance: Tolerance
    pair_test: PairTest | None = None
    """The test of both perplexities with the spread of the arm's other trials, if there is one."""
    divergence: Divergence | None = None
    explanations: list[Difference] = field(default_factory=list)
    """The differences that most likely explain the disagreement."""
    cannot_tell: list[str] = field(default_factory=list)
    settle: list[str] = field(default_factory=list)
    """What would settle an inconclusive verdict."""
    reruns: int = 1
    """How many re-runs the verdict is on."""
    noise: Deviations | None = None
    """How far one more thread moves the re-run; None if that was not measured."""
    by_arithmetic: bool = False
    """Whether only other arithmetic may explain the differences, so that measured noise would help."""
    weak: bool = False
    """Whether *different* is shown by statistics alone, which a rare outlier can cause too."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what the recorded files ask for and `verify` ignores."""
    self_tests: list[str] = field(default_factory=list)
    """The self-tests of the recorded machine and of this one, in words, where there are any."""

    @property
    def is_open(self) -> bool:
        """Whether another re-run with new seeds could decide: statistics apply, but would miss too much."""
        return self.kind == "inconclusive" and self.pair_test is not None


@dataclass(frozen=True)
class Retest:
    """How the recorded merge and test of the recorded adapter differ from those made here."""

    unlike: Sequence[str] = ()
    """Outputs that differ."""
    example_loss: float | None = None
    """The largest relative difference of the losses of an example; infinite if the examples differ."""
    bits_expected: bool = True
    """Whether the fingerprints of both tests lead one to expect the same bits."""
    benchmarked: bool = False
    """Whether all recorded benchmarks were compared."""


NOTHING_UNLIKE = Retest()
BENCHMARKS = "outcomes of benchmarks"


@dataclass(frozen=True)
class _Departure:
    """A difference between the re-run and the recorded trial that exceeds the tolerance."""

    cause: Cause
    text: str


def judge_rerun(
    diff: TrialDiff,
    others: Sequence[float],
    tolerance: Tolerance,
    *,
    scope: Scope = "whole",
    retest: Retest = NOTHING_UNLIKE,
    noise: Deviations | None = None,
    trials: int = 1,
    earlier: Sequence[float] = (),
    looks: int = 1,
    reproducibility: float | None = None,
) -> Verdict:
    """Return the verdict on `diff.second`, a re-run of `diff.first`.

    Args:
        others: perplexities of the other recorded trials of the arm.
        retest: how a test of the recorded adapter, here, differs from the recorded test.
        noise: how far one more thread moves the re-run, where that was measured.
        trials, earlier, looks, reproducibility: as `make_pair_test`.
    """
    differing = [each for each in diff.differences if may_matter(each)]
    noisy = noisy_kernels(diff.first, diff.second, "evaluate" if scope == "evaluation" else "finetune")
    bits_expected, why_expected = expectation(differing, noisy)
    steps = diff.compared_steps if scope != "evaluation" else 0
    measured = measure_deviations(diff, steps)
    own = tolerance
    tolerance = widened(tolerance, noise)
    verdict = Verdict(
        kind="different",
        scope=scope,
        why=[],
        bits_expected=bits_expected,
        expectation=why_expected,
        steps=steps,
        measured=measured,
        tolerance=tolerance,
        divergence=diff.divergence,
        cannot_tell=_cannot_tell(diff, scope, steps, retest),
        noise=noise,
    )
    if not diff.divergence and not diff.unlike and not retest.unlike and measured.perplexity in (None, 0.0):
        return _with(verdict, "bitwise", [_same(scope, steps, "evaluate" in diff.first.records)])
    departures = _departures(diff, measured, tolerance, steps, differing)
    departures += _other_optimizer(diff, differing, noisy)
    precision = diff.first.records["finetune"].inputs.get("settings", {}).get("compute", "float32")
    departures += (wrong_tests := list(_wrong_tests(retest)))
    departures += (far_tests := list(_far_tests(retest, precision)))
    departures += (far_losses := list(_far_losses(diff, steps, differing, precision)))
    beyond = [_Departure("arithmetic", text) for text in beyond_noise(measured, noise, own)]
    departures += beyond
    if not departures:
        why = _closeness(verdict, widened=tolerance != own)
        return _with(verdict, "within tolerance", why, explanations=differing + noisy)
    verdict = _with(verdict, "different", [departure.text for departure in departures])
    reasons = explained((each.cause for each in departures), differing, noisy)
    code = {each.stage for each in differing if is_code(each)}
    if wrong_tests or (far_losses and "finetune" not in code) or (far_tests and not code):
        return verdict
    if unexplained := [each.cause for each in departures if not reasons[each.cause]]:
        names = named(unexplained)
        why = [f"Nothing in settings, seeds or fingerprints explains the difference in {names}."]
        return _with(verdict, "different", why)
    if beyond and "finetune" not in code:
        return _with(verdict, "different", [MISSES["different"]])
    likely: list[Difference] = []
    for departure in departures:  # a difference may contain lists, which cannot be hashed
        likely += [each for each in reasons[departure.cause] if each not in likely]
    like_noise = all(each.what != "seed" and is_like_a_thread(each.key) for each in likely)
    noisy_causes = scope != "evaluation" and all(each.cause in _NOISY for each in departures)
    verdict = replace(verdict, by_arithmetic=like_noise and noisy_causes)
    make_test = partial(
        make_pair_test,
        others=others,
        trials=trials,
        earlier=earlier,
        looks=looks,
        reproducibility=reproducibility,
    )
    return _by_explanations(verdict, diff, likely, others, make_test)


def _closeness(verdict: Verdict, *, widened: bool) -> list[str]:
    """Return sentences on how close the re-run is."""
    measured = "; ".join(text for text, _ in in_words(verdict.measured, verdict.tolerance).values())
    why = [f"{_sentence(measured)}." if measured else "Only digests differ."]
    if verdict.bits_expected:
        why.append("The same bits were expected, but they differ.")
    if widened:
        why.append(f"This allows {NOISE_MARGIN:g} times what one more thread changes in this re-run.")
    return why


def _far_losses(
    diff: TrialDiff, steps: int, differing: Sequence[Difference], precision: str
) -> Iterator[_Departure]:
    """Yield a departure for the first loss of a step that differs by more than other arithmetic can cause."""
    pairs = list(zip(diff.first.steps[1 : steps + 1], diff.second.steps[1 : steps + 1], strict=True))
    seeds = any(each.what == "seed" and each.key == "dropout" for each in differing)
    same_start = _same_start(diff, differing) and not seeds
    same_end = bool(diff.distances) and adapter_deviation(diff.distances or {}) == 0
    for text in beyond_arithmetic(pairs, precision, same_start=same_start, same_end=same_end):
        yield _Departure("arithmetic", text)


def _same_start(diff: TrialDiff, differing: Sequence[Difference]) -> bool:
    """Return whether the initial adapters are equal, except for the rounding of another processor."""
    return diff.first.steps[0].adapter == diff.second.steps[0].adapter or draws_alike(differing)


def _wrong_tests(retest: Retest) -> Iterator[_Departure]:
    """Yield a departure if tests of the same adapter have other bits, where the same are expected."""
    if retest.unlike and retest.bits_expected:
        text = f"The same adapter gave other {_names(retest.unlike)}, although the same bits are expected."
        yield _Departure("perplexity", text)


def _far_tests(retest: Retest, precision: str) -> Iterator[_Departure]:
    """Yield a departure if tests of the same adapter differ by more than other arithmetic can cause."""
    most = loss_ceiling(0, precision)
    if retest.example_loss is not None and not retest.example_loss <= most:
        text = (
            f"Tests of the same adapter differ by a relative {retest.example_loss:.1e} in an example's loss"
        )
        text += f"; other arithmetic in {precision} changes it by at most {most:.1e}."
        yield _Departure("perplexity", text)


def _by_explanations(
    verdict: Verdict,
    diff: TrialDiff,
    likely: list[Difference],
    others: Sequence[float],
    make_test: "partial[PairTest | None]",
) -> Verdict:
    """Return the verdict where recorded differences may explain each departure."""
    keys = dict.fromkeys(each.key for each in likely)
    why = [f"These may explain it: {', '.join(keys)}."]
    verdict = _with(verdict, "different", why, explanations=likely)
    same_machine = "the recorded machine and packages"
    values = {"recorded": diff.first.perplexity, "re-run's": diff.second.perplexity}
    known = {name: value for name, value in values.items() if value and 0 < value < math.inf}
    if "code" in keys:
        commit = diff.first.records["finetune"].fingerprint.get("commit")
        reason = "The kit's code is not the recorded code, which can explain any difference."
        settle = f"the same command with the kit at commit {commit}"
    elif verdict.scope == "first steps":
        reason = "The first steps cannot tell whether the end is consistent."
        settle = "a re-run of all steps"
    elif verdict.scope == "evaluation":
        reason = "Statistics over trials do not apply, because the adapter is the same."
        settle = same_machine
    elif len(known) < len(values):
        reason = "One or both perplexities are missing or not finite."
        settle = "a finite perplexity of both trials"
    elif (test := make_test(known["recorded"])) is None:
        finite = sum(map(math.isfinite, others))
        reason = (
            "The arm's other trials have equal perplexities, which do not show how much trials vary."
            if finite >= FEWEST
            else f"The arm has {finite} other recorded perplexities that are finite, too few for a test."
        )
        settle = f"at least {FEWEST} other trials of the arm with fresh seeds, or {same_machine}"
    else:
        seeds = [each.key for each in likely if each.what == "seed"]
        reruns = [*make_test.keywords["earlier"], known["re-run's"]]
        both = known["recorded"], math.exp(fmean(map(math.log, reruns)))
        verdict = replace(verdict, pair_test=test, reruns=len(reruns))
        return _by_statistics(verdict, test, both, others, seeds)
    return _with(verdict, "inconclusive", [reason], settle=[settle])


def _by_statistics(
    verdict: Verdict,
    test: PairTest,
    perplexities: tuple[float, float],
    others: Sequence[float],
    seeds: Sequence[str],
) -> Verdict:
    """Return the verdict on both perplexities, given the spread of the arm's other trials.

    `seeds` are the sources whose seeds differ, so that the re-run is another trial of the arm.
    """
    (recorded, rerun), (low, high) = perplexities, test.interval
    allowed = f"{low:.6g} to {high:.6g}, from {test.source} (level {test.level:.2%})"
    what = "The re-run's perplexity" if verdict.reruns == 1 else f"The mean of {verdict.reruns} re-runs"
    diverged = len(others) - sum(map(math.isfinite, others))
    why = [f"{diverged} of {len(others)} other trials have no finite perplexity."] if diverged else []
    if not test.contains(rerun):
        why.append(f"{what}, {rerun:.6g}, is not in {allowed}; {recorded:.6g} is recorded.")
        noise = verdict.noise and max(verdict.noise.perplexity or 0.0, verdict.noise.loss or 0.0)
        if noise and not abs(rerun - recorded) / recorded > NOISE_MARGIN * noise:
            why.append(f"But one more thread alone changes it by a relative {noise:.1e} here.")
            return _with(verdict, "inconclusive", why, settle=["the recorded machine and packages"])
        usual = make_pair_test(rerun, others, 1)
        if seeds and usual is not None and usual.contains(median(filter(math.isfinite, others))):
            why.append("But the re-run is like the other trials, so the recorded one may be an outlier.")
            settle = [f"a re-run with the recorded seeds of {', '.join(seeds)}"]
            return _with(verdict, "inconclusive", why, settle=settle)
        misses = "One of twenty honest pairs is further apart." if test.is_given else MISSES["different"]
        return _with(verdict, "different", [*why, misses], weak=True)
    why.append(f"{what}, {rerun:.6g}, is in {allowed}; {recorded:.6g} is recorded.")
    shift = f"{test.found_shift:.0%}" if test.found_shift < 100 else "a hundredfold"
    power = f"A difference of {shift} or more would be found with a probability of {POWER:.0%}"
    if test.found_shift > LARGEST_SHIFT:
        why.append(f"{power}, and agreement says too little where that exceeds {LARGEST_SHIFT:.0%}.")
        settle = ["the recorded machine and packages", "an arm whose trials vary less, or more trials"]
        return _with(verdict, "inconclusive", why, settle=settle)
    known = [] if test.is_given else [MISSES["statistically consistent"]]
    return _with(verdict, "statistically consistent", [*why, f"{power}.", *known])


def _other_optimizer(
    diff: TrialDiff, differing: Sequence[Difference], noisy: list[Difference]
) -> list[_Departure]:
    """Return a departure if an update differs first without an explanation, however close the adapters are.

    An optimizer updates each value on its own, without noise; so its kind or the precision of its state
    must differ.
    """
    first = diff.divergence
    if first is None or first.kind != "update" or explained(["update"], differing, noisy)["update"]:
        return []
    before = first.unwatched
    steps = f"One of steps {before[0]} to {first.step}" if before else f"Step {first.step}"
    return [_Departure("update", f"{steps} had the same loss and gradient norm but gave another adapter.")]


def _with(verdict: Verdict, kind: VerdictKind, why: list[str], **changes: Any) -> Verdict:
    return replace(verdict, kind=kind, why=[*verdict.why, *why], **changes)


def tolerance_of(study: Study, optimizer: str, *, trusted: bool = True) -> tuple[Tolerance, list[str]]:
    """Return the study's tolerance for an optimizer; an old map of 8-bit state has today's tolerance.

    Whoever sets the tolerances decides the verdict. So those of a study file that is not `trusted`, because
    it came with the trial, are ignored; the returned sentences then say so.
    """
    kind = Optimizer.parse(optimizer).with_todays_qmap
    given = {str(name): tolerance for name, tolerance in study.tolerance.items()}
    own = given.get(optimizer) or given.get(kind.name) or DEFAULT_TOLERANCE
    if trusted or own == DEFAULT_TOLERANCE:
        return own, []
    numbers = ", ".join(f"{value:g}" for value in dataclasses.astuple(own))
    note = f"The study file in the archive has tolerances of its own ({numbers}), which are ignored"
    return DEFAULT_TOLERANCE, [f"{note}; --study takes those of your own study file."]


def without_rerun(
    lacking: Sequence[str], contradictions: Sequence[str], tolerance: Tolerance, scope: Scope
) -> Verdict:
    """Return the verdict if the trial cannot be run again: its files disagree, or something is `lacking`."""
    return Verdict(
        kind="different" if contradictions else "inconclusive",
        scope=scope,
        why=[
            *contradictions,
            *(f"{_sentence(each)}." for each in lacking),
            *(["The recorded files contradict each other."] if contradictions else []),
            "It was not run again.",
        ],
        bits_expected=False,
        expectation="",
        steps=0,
        measured=Deviations(),
        tolerance=tolerance,
        cannot_tell=["what a re-run would give"],
        settle=[] if contradictions else ["base model and data with the recorded digests"],
    )


def _departures(
    diff: TrialDiff, measured: Deviations, tolerance: Tolerance, steps: int, differing: Sequence[Difference]
) -> list[_Departure]:
    """Return what differs by more than noise; rows and learning rates have none."""
    found = []
    pairs = list(zip(diff.first.steps[1 : steps + 1], diff.second.steps[1 : steps + 1], strict=True))
    whole = steps > 0 and diff.first.finished and diff.second.finished
    ends = sorted((diff.first.last_step, diff.second.last_step))
    if whole and ends[0] != ends[1]:
        found.append(_Departure("data", f"One has {ends[0]} steps, the other {ends[1]}."))
    if step := _first(pairs, _other_rows):
        found.append(_Departure("data", f"Step {step} had different examples."))
    if step := _first(pairs, _other_rate):
        found.append(_Departure("learning rate", f"Step {step} had different learning rates."))
    exceeding = {name: text for name, (text, far) in in_words(measured, tolerance).items() if far}
    perplexity = exceeding.pop("perplexity", None)
    far = list(exceeding.values())
    if step := _first(pairs, lambda one, other: one.skipped != other.skipped):
        far.append(f"only one of the two skipped step {step}")
    if whole and diff.distances is None:
        far += diff.unlike  # adapters with different tensors have no distance
    trained: Cause = "arithmetic" if not steps or _same_start(diff, differing) else "init"
    if far:
        found.append(_Departure(trained, f"{_sentence('; '.join(far))}."))
    if perplexity is not None:
        found.append(_Departure(trained if far else "perplexity", f"{_sentence(perplexity)}."))
    return found


def _first(pairs: Sequence[tuple[Step, Step]], unlike: Callable[[Step, Step], bool]) -> int | None:
    return next((one.step for one, other in pairs if unlike(one, other)), None)


def _other_rows(one: Step, other: Step) -> bool:
    if None not in (one.epoch, other.epoch) and one.epoch != other.epoch:
        return True
    return (one.examples, one.tokens) != (other.examples, other.tokens)


def _other_rate(one: Step, other: Step) -> bool:
    apart = relative(one.learning_rate, other.learning_rate)
    return apart is not None and not apart <= _RATES_AGREE


def _same(scope: Scope, steps: int, tested: bool) -> str:
    parts = {
        "evaluation": "The merged model, its perplexity and its responses",
        "first steps": f"The first {steps} steps",
        "whole": f"All {steps} steps, the adapter and its test"
        if tested
        else f"All {steps} steps and the adapter",
    }
    return f"{parts[scope]} are bitwise the same."


def _names(outputs: Sequence[str]) -> str:
    return ", ".join(outputs).replace("merged_digest", "merged weights")


def _cannot_tell(diff: TrialDiff, scope: Scope, steps: int, retest: Retest) -> list[str]:
    loose = [name for name in retest.unlike if name in ("responses", "accuracy", BENCHMARKS)]
    unseen = [f"{_names(loose)}: other arithmetic may change what the model answers"] if loose else []
    if scope == "evaluation":
        return [*unseen, "whether fine-tuning gives this adapter, because it was not run again"]
    whole = diff.first.last_step
    if scope == "first steps":
        later = [f"steps {steps + 1} to {whole}"] if steps < whole else []
        unseen.append(f"{', '.join([*later, 'the adapter'])} and its perplexity: only {steps} steps were run")
        digests = [step.step for step in diff.first.steps[: steps + 1] if step.adapter is not None]
        if digests and digests[-1] < steps:
            unseen.append(f"the update of step {steps}: the last recorded digest is of step {digests[-1]}")
    elif "evaluate" not in diff.first.records:
        unseen.append("its perplexity: it was never evaluated")
    if "benchmark" in diff.first.records and scope != "first steps" and not retest.benchmarked:
        unseen.append("its benchmarks, or some: they could not be run again here with the same examples")
    first = diff.divergence
    if first is not None and first.kind in ("loss", "gradient") and first.unwatched:
        # Updates without a digest before the first difference of a loss may have caused it.
        begin, end = first.unwatched[0], first.unwatched[-1]
        these = f"step {begin}" if begin == end else f"steps {begin} to {end}"
        unseen.append(
            f"whether the recorded optimizer made the updates of {these}: not every step has a digest"
        )
    elif first is not None and first.kind in ("init", "loss", "gradient") and not first.alike_after:
        unseen.append("whether the recorded optimizer made the updates: an earlier difference hides them")
    return [*unseen, "seconds, memory, and sampled responses, each with a fresh seed: they differ each time"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
