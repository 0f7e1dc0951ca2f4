"""Verdicts on re-runs with known differences from their records."""

import dataclasses
import json
import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from support.made_traces import changed, trace

from qlora_repeat.analysis.adapter_distance import Distance
from qlora_repeat.analysis.trial_diff import (
    Difference,
    Side,
    TrialDiff,
    first_divergence,
    record_differences,
)
from qlora_repeat.analysis.verify.deviations import Deviations
from qlora_repeat.analysis.verify.pair_test import LARGEST_SHIFT, make_pair_test
from qlora_repeat.analysis.verify.rerun import compared_tests
from qlora_repeat.analysis.verify.verdict import (
    MISSES,
    Retest,
    Verdict,
    VerdictKind,
    judge_rerun,
    without_rerun,
)
from qlora_repeat.records.record import Record
from qlora_repeat.records.trace import Step
from qlora_repeat.render.text.verdict import EXIT_CODES, exit_code, verdict_json, verdict_text
from qlora_repeat.study.study import Tolerance

TOLERANCE = Tolerance(first_loss=1e-6, loss=1e-4, adapter=1e-2, perplexity=1e-4)
ARM = [10.0, 10.2, 9.9, 10.1, 10.3, 9.8, 10.05]
THREADS = Difference("setting", "finetune", "threads", 1, 2)
SEED = Difference("seed", "finetune", "adapter_init", 1, 2)
RATE = Difference("setting", "finetune", "training.learning_rate", 2e-4, 2.02e-4)
ATTENTION = Difference("fingerprint", "finetune", "kernels.attention", ["flash", "math"], ["math"])
CODE = Difference("input", "finetune", "code", "a", "b")
ORDER = Difference("seed", "finetune", "data_order", 1, 2)
VISIBLE = Difference("fingerprint", "finetune", "environment.CUDA_VISIBLE_DEVICES", "0", None)
TESTED_ELSEWHERE = Difference("fingerprint", "evaluate", "threads", 1, 2)
SETTING = Difference("setting", "finetune", "cpu", "A", None)
INPUT = Difference("input", "finetune", "threads", 2, None)
TEST_CODE = Difference("input", "evaluate", "code", "a", "b")
CPU = Difference("fingerprint", "finetune", "cpu", "A", "B")
TORCH = Difference("fingerprint", "finetune", "packages.torch", "1", "2")
TABLES = Difference("fingerprint", "finetune", "packages.tabulate", "1", "2")
PAPER_COLLAPSED = [165687.93, 12.471, 109585.75, 14.766, 185572.82, 13.541, 233812.79]
"""Llama-2-7B with 8-bit AdamW (Table 1)."""
COMMIT = Difference("fingerprint", "finetune", "commit", "a", "b")


def side(steps: list[Step], perplexity: float | None) -> Side:
    def record(stage: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Record:
        found = {"gpu": None, "kernels": {"deterministic": False}}
        return Record(stage, "m/o/1", {"settings": {}} | inputs, outputs, {}, found, "", "", 1.0)

    return Side(
        "side",
        Path(),
        steps,
        True,
        {
            "finetune": record("finetune", {}, {"adapter_digest": "a"}),
            "merge": record("merge", {"adapter_digest": "a"}, {"merged_digest": "m"}),
            "evaluate": record("evaluate", {"merged_digest": "m"}, {"perplexity": perplexity}),
        },
    )


def diff(
    rerun: list[Step],
    *differences: Difference,
    perplexity: float | None = 10.0,
    claimed: float = 10.0,
    recorded: list[Step] | None = None,
) -> TrialDiff:
    recorded = recorded or trace(10)
    return TrialDiff(
        side(recorded, claimed), side(rerun, perplexity), first_divergence(recorded, rerun), None,
        list(differences), [], [],
    )  # fmt: skip


def ends_equal(found: TrialDiff) -> TrialDiff:
    return dataclasses.replace(found, distances={"all": Distance(8, 8, 0.0, 0.0, 0.0)})


def gpu(found: TrialDiff) -> TrialDiff:
    """Return the comparison as if both trials ran on a GPU with default kernels."""
    for side in (found.first, found.second):
        for record in side.records.values():
            record.fingerprint["gpu"] = "A100"
    return found


def noisy(size: float) -> list[Step]:
    """Return a trace whose losses from step 6 differ by this relative size, after adapters that differ."""
    return [
        dataclasses.replace(
            step,
            loss=step.loss * (1 + size) if step.step > 5 else step.loss,
            gradient_norm=step.gradient_norm * (1 + 1e-7),
            adapter=f"other {step.step}",
        )
        if step.loss and step.gradient_norm
        else step
        for step in trace(10)
    ]


def losses_off(*, digests: bool) -> list[Step]:
    """Return a trace whose losses from step 5 are 50 % higher, with equal digests of adapters, or none."""
    return [
        dataclasses.replace(
            step,
            loss=step.loss * 1.5 if step.step > 4 and step.loss else step.loss,
            adapter=step.adapter if digests or step.step in (0, 10) else None,
        )
        for step in trace(10)
    ]


def off(factor: float) -> list[Step]:
    """Return a trace whose losses are all multiplied by this factor."""
    return [dataclasses.replace(step, loss=step.loss and step.loss * factor) for step in trace(10)]


def other_init(size: float) -> list[Step]:
    return changed(noisy(size), 0, adapter="another")


LATE = diff(losses_off(digests=False), CPU)
CASES: dict[str, tuple[TrialDiff, VerdictKind]] = {
    "the same": (diff(trace(10)), "bitwise"),
    "the same, another commit": (diff(trace(10), COMMIT), "bitwise"),
    "noise": (diff(noisy(1e-5), perplexity=10.0001), "within tolerance"),
    "noise, other threads": (diff(noisy(1e-5), THREADS), "within tolerance"),
    "another last digit of the perplexity": (diff(trace(10), perplexity=10.000001), "within tolerance"),
    "one weight by one ulp": (diff(other_init(1e-6)), "within tolerance"),
    "an update that nothing explains": (diff(changed(trace(10), 10, adapter="another")), "different"),
    "an update, and another commit alone": (diff(changed(trace(10), 1, adapter="x"), COMMIT), "different"),
    "an update that a seed does not explain": (diff(changed(trace(10), 1, adapter="x"), SEED), "different"),
    "an update, which other threads of the test do not explain": (
        diff(changed(trace(10), 1, adapter="x"), TESTED_ELSEWHERE),
        "different",
    ),
    "only the perplexity, tested elsewhere": (
        diff(trace(10), TESTED_ELSEWHERE, perplexity=10.1),
        "statistically consistent",
    ),
    "an update, other threads": (diff(changed(trace(10), 1, adapter="x"), THREADS), "within tolerance"),
    "an update, a GPU's default kernels": (gpu(diff(changed(trace(10), 1, adapter="x"))), "within tolerance"),
    "far, for no reason": (diff(noisy(1e-2)), "different"),
    "far, and another commit alone": (diff(noisy(1e-2), COMMIT), "different"),
    "far, other threads, in the interval": (
        diff(noisy(1e-2), THREADS, perplexity=10.1),
        "statistically consistent",
    ),
    "far, other threads, out of the interval": (diff(noisy(1e-2), THREADS, perplexity=14.0), "different"),
    "another initial adapter for no reason": (diff(other_init(1e-2), perplexity=10.1), "different"),
    "another seed": (diff(other_init(1e-2), SEED, perplexity=10.1), "statistically consistent"),
    "another seed, out of the interval": (diff(other_init(1e-2), SEED, perplexity=14.0), "different"),
    "another seed does not explain arithmetic": (diff(noisy(1e-2), SEED, perplexity=10.1), "different"),
    "other rows": (diff(changed(trace(10), 4, examples=[9])), "different"),
    "other rows, though threads differ": (diff(changed(trace(10), 4, examples=[9]), THREADS), "different"),
    "another learning rate": (diff(changed(trace(10), 1, learning_rate=3e-4), RATE), "different"),
    "another learning rate, which threads do not explain": (
        diff(changed(trace(10), 1, learning_rate=3e-4), THREADS),
        "different",
    ),
    "another seed of the order explains all that follows": (
        diff(changed(noisy(1e-2), 1, examples=[9]), ORDER, perplexity=10.1),
        "statistically consistent",
    ),
    "other kernels": (diff(noisy(1e-2), ATTENTION, perplexity=10.1), "statistically consistent"),
    "a package that does not compute": (diff(noisy(1e-2), TABLES, perplexity=10.1), "different"),
    "every loss 50 % off, other threads": (diff(off(1.5), THREADS, perplexity=10.1), "different"),
    "every loss 50 % off, another processor": (diff(off(1.5), CPU, perplexity=10.1), "different"),
    "every loss a hundred times as large, other torch": (diff(off(100), TORCH, perplexity=10.1), "different"),
    "every loss 50 % off, another seed of the adapter": (
        diff(changed(off(1.5), 0, adapter="another"), SEED, perplexity=10.1),
        "different",
    ),
    "every loss 50 % off, a GPU's default kernels": (gpu(diff(off(1.5), perplexity=10.1)), "different"),
    "a loss that jumps at step 2": (diff(changed(trace(10), 2, loss=1.6), THREADS), "different"),
    "a loss that jumps late": (diff(changed(noisy(1e-6), 9, loss=0.35), THREADS), "statistically consistent"),
    "a jump at step 3 after an initial adapter of another processor": (
        diff(changed(other_init(1e-6), 3, loss=1.5), CPU),
        "different",
    ),
    "a jump at step 3 after an initial adapter of another seed": (
        diff(changed(other_init(1e-6), 3, loss=1.5), SEED, perplexity=10.1),
        "statistically consistent",
    ),
    "other losses of equal adapters": (diff(losses_off(digests=True), CPU), "different"),
    "other losses of adapters that end equal": (
        ends_equal(diff(losses_off(digests=False), CPU)),
        "different",
    ),
    "other losses than an adapter's that another processor rounds": (
        diff(changed(losses_off(digests=False), 0, adapter="rounded"), CPU, perplexity=10.1),
        "different",
    ),
    "one late loss, too little for the mean": (diff(changed(trace(10), 10, loss=0.3 * 1.0005)), "different"),
    "another epoch": (diff(changed(trace(10), 5, epoch=9.0)), "different"),
    "losses, which other threads of the test do not explain": (
        diff(noisy(1e-2), TESTED_ELSEWHERE, perplexity=10.1),
        "different",
    ),
    "a setting that is called like a processor": (diff(noisy(1e-2), SETTING, perplexity=10.1), "different"),
    "an input that is called like threads": (diff(noisy(1e-2), INPUT, perplexity=10.1), "different"),
    "every loss 50 % off, another code and other threads": (
        diff(off(1.5), CODE, THREADS, perplexity=10.1),
        "inconclusive",
    ),
    "every loss 50 % off, another code of the test": (
        diff(off(1.5), TEST_CODE, THREADS, perplexity=10.1),
        "different",
    ),
    "other rows, another code and other threads": (
        diff(changed(noisy(1e-2), 4, examples=[9]), CODE, THREADS, perplexity=10.1),
        "inconclusive",
    ),
    "another code of the kit": (diff(noisy(1e-2), CODE, perplexity=10.1), "inconclusive"),
    "a GPU's default kernels": (gpu(diff(noisy(1e-2), perplexity=10.1)), "statistically consistent"),
    "other GPUs to choose from explain nothing": (diff(noisy(1e-2), VISIBLE, perplexity=10.1), "different"),
    "a recorded perplexity that no other trial has": (
        diff(noisy(1e-2), THREADS, perplexity=10.1, claimed=3.0),
        "different",
    ),
    "the first loss alone": (diff(changed(trace(10), 1, loss=3.0001)), "different"),
    "only the perplexity": (diff(trace(10), perplexity=10.5), "different"),
    "a step skipped": (diff(changed(trace(10), 5, skipped=True)), "different"),
    "it diverged": (
        diff(changed(noisy(1e-6), 9, loss=math.nan), THREADS, perplexity=math.nan),
        "inconclusive",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_known_difference_gives_its_verdict(case: str) -> None:
    compared, kind = CASES[case]
    verdict = judge_rerun(compared, ARM, TOLERANCE)
    assert verdict.kind == kind, verdict.why
    assert json.loads(verdict_json("study:m/o/1", verdict, []))["verdict"] == kind
    text = verdict_text("study:m/o/1", verdict)
    weak = ", by weak evidence" if verdict.weak else ""
    assert text.startswith(f"study:m/o/1: {kind}{weak}\n")
    assert verdict.weak == ("interval" in case or case == "a recorded perplexity that no other trial has") * (
        kind == "different"
    )
    assert exit_code(verdict, "bitwise") == EXIT_CODES[kind]


@pytest.mark.parametrize(
    ("relative", "kind"),
    [(1e-3, "within tolerance"), (0.5, "different"), (None, "different"), (math.nan, "different")],
)
def test_the_adapter_must_be_within_tolerance_too(relative: float | None, kind: VerdictKind) -> None:
    """Change only the last update, which no loss shows."""
    rerun = changed(trace(10), 10, adapter="another")
    apart = Distance(values=8, equal=0, largest=0.1, l2=0.1, relative=relative)
    compared = dataclasses.replace(diff(rerun, THREADS, perplexity=14.0), distances={"all": apart})
    looser = dataclasses.replace(TOLERANCE, perplexity=1.0)
    assert judge_rerun(compared, ARM, looser).kind == kind


def test_adapters_with_different_tensors_are_different() -> None:
    unlike = dataclasses.replace(
        diff(trace(10)), unlike=["the adapters have different tensors: only one has x"]
    )
    assert judge_rerun(unlike, ARM, TOLERANCE).kind == "different"


def test_other_responses_of_the_same_model_are_different() -> None:
    unlike = Retest(["responses"])
    assert judge_rerun(diff(trace(10)), ARM, TOLERANCE, retest=unlike).kind == "different"
    elsewhere = dataclasses.replace(unlike, bits_expected=False)
    threads = judge_rerun(diff(trace(10), THREADS), ARM, TOLERANCE, retest=elsewhere)
    assert threads.kind == "within tolerance"
    assert threads.cannot_tell[0] == "responses: other arithmetic may change what the model answers"


@pytest.mark.parametrize(
    ("apart", "kind"), [(5e-5, "within tolerance"), (1e-2, "different"), (math.inf, "different")]
)
def test_tests_of_an_equal_adapter_have_a_ceiling(apart: float, kind: VerdictKind) -> None:
    """Move loss between examples, which keeps the perplexity, and claim other threads."""
    retest = Retest(["examples"], apart, bits_expected=False)
    assert judge_rerun(diff(trace(10), THREADS), ARM, TOLERANCE, retest=retest).kind == kind
    code = judge_rerun(diff(trace(10), CODE), ARM, TOLERANCE, retest=retest)
    assert code.kind == ("within tolerance" if apart < 1e-3 else "inconclusive")


@pytest.mark.parametrize(
    ("spread", "perplexity", "kind"),
    [
        (0.01, 10.027, "statistically consistent"),
        (0.01, 10.029, "different"),
        (0.01, 9.971, "different"),
        (0.7, 11.0, "inconclusive"),  # finds only a shift by 28 % or more
    ],
)
def test_a_given_reproducibility_decides_without_other_trials(
    spread: float, perplexity: float, kind: VerdictKind
) -> None:
    """Two single trials in different laboratories may differ by 2.8 s_R (ISO 5725-6)."""
    compared = diff(noisy(1e-3), THREADS, perplexity=perplexity)
    verdict = judge_rerun(compared, [], TOLERANCE, reproducibility=spread)
    assert verdict.kind == kind, verdict.why
    assert any(
        f"the reproducibility limit of ISO 5725-6, 2.8 s_R with s_R = {spread}" in why for why in verdict.why
    )
    assert not any("calibration" in why for why in verdict.why)
    without = judge_rerun(compared, [], TOLERANCE)
    assert without.kind == "inconclusive", "too few other trials"


def test_measured_noise_widens_tolerances_and_bounds_what_arithmetic_explains() -> None:
    compared = diff(noisy(1e-3), THREADS, perplexity=10.02)
    assert judge_rerun(compared, ARM, TOLERANCE).by_arithmetic
    for noise, kind in (
        (Deviations(loss=2e-4, perplexity=1e-3), "within tolerance"),
        (Deviations(loss=2e-5, perplexity=1e-5), "statistically consistent"),
        (Deviations(loss=1e-6, perplexity=1e-3), "different"),
        (Deviations(loss=math.inf, perplexity=math.nan), "statistically consistent"),
    ):
        verdict = judge_rerun(compared, ARM, TOLERANCE, noise=noise)
        assert verdict.kind == kind, (noise, verdict.why)
    assert not judge_rerun(diff(noisy(1e-3), CODE), ARM, TOLERANCE).by_arithmetic
    assert not judge_rerun(diff(other_init(1e-3), SEED), ARM, TOLERANCE).by_arithmetic


def test_a_trial_that_amplifies_noise_is_not_different_by_statistics() -> None:
    compared = diff(noisy(1e-2), THREADS, perplexity=14.0)
    assert judge_rerun(compared, ARM, TOLERANCE).kind == "different"
    verdict = judge_rerun(compared, ARM, TOLERANCE, noise=Deviations(loss=1e-3, perplexity=0.1))
    assert verdict.kind == "inconclusive"
    assert verdict.why[-1] == "But one more thread alone changes it by a relative 1.0e-01 here."


def test_losses_that_are_not_finite_agree_with_themselves() -> None:
    steps = changed(trace(10), 9, loss=math.nan)
    later = changed(steps, 10, adapter="another")
    assert judge_rerun(diff(later, THREADS, recorded=steps), ARM, TOLERANCE).kind == "within tolerance"


@pytest.mark.parametrize(
    ("arm", "settle"), [(ARM[:4], "at least 5 other trials of the arm"), ([10.0] * 7, "fresh seeds")]
)
def test_without_a_spread_the_verdict_is_inconclusive_and_says_what_would_settle_it(
    arm: list[float], settle: str
) -> None:
    verdict = judge_rerun(diff(noisy(1e-2), THREADS, perplexity=10.1), arm, TOLERANCE)
    assert verdict.kind == "inconclusive"
    assert settle in verdict.settle[0]


def test_first_steps_do_not_replace_statistics() -> None:
    verdict = judge_rerun(diff(noisy(1e-2), THREADS, perplexity=None), ARM, TOLERANCE, scope="first steps")
    assert verdict.kind == "inconclusive"
    assert "only 10 steps were run" in verdict.cannot_tell[0]


def judged(
    recorded: float, rerun: float, arm: list[float], *reasons: Difference, trials: int = 56
) -> Verdict:
    """Return the verdict on a pair of perplexities that other threads, or these reasons, may explain."""
    compared = diff(noisy(1e-2), *(reasons or [THREADS]), perplexity=rerun, claimed=recorded)
    if SEED in reasons:
        compared = diff(other_init(1e-2), *reasons, perplexity=rerun, claimed=recorded)
    return judge_rerun(compared, arm, TOLERANCE, trials=56)


def test_agreement_says_what_it_would_have_found() -> None:
    """Compare the power with simulated pairs."""
    why = judged(10.0, 10.1, ARM).why
    assert why[-2] == "A difference of 20% or more would be found with a probability of 80%."
    assert why[-1] == MISSES["statistically consistent"]
    test = make_pair_test(10.0, ARM, 56)
    assert test is not None
    generator, spread = random.Random(1), stdev(map(math.log, ARM))
    found, shift = 0, math.log1p(test.found_shift)
    for _ in range(5_000):
        others = [10 * math.exp(generator.gauss(0, spread)) for _ in ARM]
        rerun = 10 * math.exp(shift + generator.gauss(0, spread) - generator.gauss(0, spread))
        again = make_pair_test(10.0, others, 56)
        found += again is not None and not again.contains(rerun)
    assert found / 5_000 == pytest.approx(0.8, abs=0.02)


def test_a_study_has_one_error_rate() -> None:
    """Simulate 200 studies of eight arms of seven trials that are all run again with other seeds."""
    generator, alarms = random.Random(2), 0
    for _ in range(200):
        alarm = False
        for _ in range(8):
            arm = [generator.lognormvariate(2, 0.02) for _ in range(7)]
            for place, recorded in enumerate(arm):
                test = make_pair_test(recorded, arm[:place] + arm[place + 1 :], 56)
                alarm |= test is not None and not test.contains(generator.lognormvariate(2, 0.02))
        alarms += alarm
    assert 0.01 < alarms / 200 < 0.1


def test_re_runs_are_judged_together_at_one_error_rate() -> None:
    """Simulate honest trials that are run again until the test decides, up to eight times."""
    generator, alarms, decided, shifted = random.Random(3), 0, 0, 0
    for shift in (0.0, 0.4):
        for _ in range(1_000):
            recorded, *arm = [generator.lognormvariate(2, 0.04) for _ in range(7)]
            reruns: list[float] = []
            for _ in range(8):
                rerun = generator.lognormvariate(2 + shift, 0.04)
                test = make_pair_test(recorded, arm, 1, earlier=reruns, looks=8)
                assert test is not None
                reruns.append(rerun)
                if not test.contains(math.exp(fmean(map(math.log, reruns)))):
                    alarms += not shift
                    shifted += bool(shift)
                    break
                if test.found_shift <= LARGEST_SHIFT:
                    decided += not shift
                    break
    assert alarms / 1_000 < 0.05
    assert decided / 1_000 > 0.8
    assert shifted / 1_000 > 0.9


def test_an_outlier_that_repeats_agrees_with_itself() -> None:
    arm = [70.555, 69.125, 70.140, 72.239, 70.518, 71.3]
    assert judged(135.163, 135.2, arm).kind == "statistically consistent"
    assert judged(135.163, 70.1, arm).kind == "different"


def test_new_seeds_do_not_repeat_an_outlier() -> None:
    verdict = judged(14.0, 10.1, ARM, SEED)
    assert verdict.kind == "inconclusive"
    assert verdict.settle == ["a re-run with the recorded seeds of adapter_init"]
    assert judged(10.0, 14.0, ARM, SEED).kind == "different"


def test_trials_that_diverged_widen_nothing() -> None:
    for diverged in (math.nan, math.inf):
        verdict = judged(10.0, 1e12, [*ARM, diverged])
        assert verdict.kind == "different"
        assert "1 of 8 other trials have no finite perplexity." in verdict.why
        assert judged(10.0, 10.1, [*ARM, diverged]).kind == "statistically consistent"


@pytest.mark.parametrize("recorded", PAPER_COLLAPSED)
def test_an_arm_that_collapsed_decides_nothing(recorded: float) -> None:
    """Leave one out of an arm of the paper: no shift of less than a hundredfold would be found."""
    arm = [value for value in PAPER_COLLAPSED if value != recorded]
    verdict = judged(recorded, 20.0, arm)
    assert verdict.kind == "inconclusive"
    assert "a hundredfold or more" in verdict.why[-1]
    assert verdict.pair_test is not None
    assert verdict.pair_test.interval[0] >= 1


def test_a_difference_between_two_digests_names_all_possible_steps() -> None:
    sparse = [dataclasses.replace(step, adapter=None) if step.step in (2, 3) else step for step in trace(10)]
    verdict = judge_rerun(diff(changed(sparse, 4, adapter="x"), recorded=sparse), ARM, TOLERANCE)
    assert verdict.why[0].startswith("One of steps 2 to 4 had the same loss")


def test_updates_without_a_digest_are_listed() -> None:
    sparse = [dataclasses.replace(step, adapter=None) if step.step in (2, 3) else step for step in trace(10)]
    late = dataclasses.replace(sparse[4], loss=sparse[4].loss * (1 + 1e-6))
    verdict = judge_rerun(diff([*sparse[:4], late, *sparse[5:]], recorded=sparse), ARM, TOLERANCE)
    assert verdict.kind == "within tolerance"
    assert verdict.cannot_tell[0].startswith(
        "whether the recorded optimizer made the updates of steps 2 to 3"
    )


def test_an_optimizer_that_an_earlier_difference_hides_is_listed() -> None:
    """Let 8-bit state pass for 32-bit state by a false digit of the first gradient norm."""
    hidden = changed(trace(10), 1, adapter="x", gradient_norm=1.0000001)
    verdict = judge_rerun(diff(hidden), ARM, TOLERANCE)
    assert verdict.kind == "within tolerance"
    words = "whether the recorded optimizer made the updates: an earlier difference hides them"
    assert words in verdict.cannot_tell
    late = changed(trace(10), 5, adapter="x", gradient_norm=0.2000001)
    assert words not in judge_rerun(diff(late), ARM, TOLERANCE).cannot_tell


def test_other_packages_need_the_noise_of_the_trial() -> None:
    """Name the package as records do, in the inputs and in the fingerprint."""
    records = [side(trace(1), 10.0).records for _ in range(2)]
    for found, version in zip(records, "12", strict=True):
        found["finetune"].inputs["packages"] = found["finetune"].fingerprint["packages"] = {"torch": version}
    differences = record_differences(records[0], records[1])
    assert [each.key for each in differences] == ["packages.torch"]
    assert judge_rerun(diff(noisy(1e-2), *differences, perplexity=10.1), ARM, TOLERANCE).by_arithmetic


def test_only_the_seeds_of_a_fine_tuning_are_compared() -> None:
    """Forge seeds in the record of a test, which would explain other losses."""
    first, second = side(trace(1), 10.0), side(trace(1), 10.0)
    first.records["evaluate"].outputs["seeds"] = {"dropout": 1}
    first.records["merge"].outputs["seeds"] = [1]
    assert record_differences(first.records, second.records, ("finetune", "merge", "evaluate")) == []


@pytest.mark.parametrize("kernels", [None, [], "deterministic", {"deterministic": "no"}])
def test_unknown_kernels_of_a_gpu_are_not_deterministic(kernels: object) -> None:
    compared = gpu(diff(noisy(1e-2), perplexity=10.1))
    compared.first.records["finetune"].fingerprint["kernels"] = kernels
    assert judge_rerun(compared, ARM, TOLERANCE).kind == "statistically consistent"


def test_an_answer_to_an_example_without_one_is_another_example() -> None:
    """Invent an accuracy for a test of texts, on a claimed other processor."""
    sides = []
    for answered in (True, None):
        found = side(trace(1), 10.0)
        example = {"row": 1, "tokens": 3, "loss": 1.0, "answered": answered}
        found.records["evaluate"].outputs["examples"] = [example]
        sides.append(found)
    assert compared_tests(*sides).example_loss == math.inf


def test_contradicting_files_are_different_without_a_re_run() -> None:
    verdict = without_rerun([], ["The adapter has another digest."], TOLERANCE, "whole")
    assert verdict.kind == "different"
    assert verdict.why[0] == "The adapter has another digest."


def test_the_verdict_says_whether_the_same_bits_are_expected() -> None:
    same, other = (
        judge_rerun(diff(noisy(1e-5)), ARM, TOLERANCE),
        judge_rerun(diff(noisy(1e-5), THREADS), ARM, TOLERANCE),
    )
    assert same.bits_expected
    assert "The same bits were expected, but they differ." in same.why
    assert not other.bits_expected
    assert other.expectation == "The same bits are not expected, because these differ: threads."


def test_a_weaker_verdict_can_be_accepted() -> None:
    verdict = judge_rerun(diff(noisy(1e-5)), ARM, TOLERANCE)
    assert exit_code(verdict, "bitwise") == 8
    assert exit_code(verdict, "within tolerance") == exit_code(verdict, "statistically consistent") == 0
    different = judge_rerun(diff(noisy(1e-2)), ARM, TOLERANCE)
    assert exit_code(different, "statistically consistent") == 7
