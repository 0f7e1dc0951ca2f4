"""Intervals of wrong verdicts take account of arms, whose re-runs are judged by the same trials."""

import math
from collections import Counter
from statistics import stdev

import numpy as np
import pytest
from scipy import stats
from verify_calibration import ARM, EXPECTED, SAME_RUN, STUDY_TRIALS, interval

from qlora_repeat.analysis.verify.pair_test import make_pair_test

ARMS = 43
JUDGED = Counter(dict.fromkeys(range(ARMS), ARM))


def test_without_a_wrong_verdict_or_without_a_right_one_the_interval_is_that_of_single_reruns() -> None:
    for wrong, count in ((Counter[int](), 0), (JUDGED, 301)):
        expected = stats.binomtest(count, 301).proportion_ci(method="wilson")
        assert interval(wrong, JUDGED) == pytest.approx((expected.low, expected.high))


def test_wrong_verdicts_in_whole_arms_count_as_one_each() -> None:
    low, high = interval(Counter(dict.fromkeys(range(10), ARM)), JUDGED)
    expected = stats.binomtest(10, ARMS).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=3e-3)


@pytest.mark.parametrize("spread", [0.001, 0.3, 1.0])
def test_intervals_cover_the_true_share_whether_or_not_arms_differ(spread: float) -> None:
    generator, truth, studies = np.random.default_rng(20261130), 0.3, 2_000
    rates = generator.beta(truth / spread, (1 - truth) / spread, size=(studies, ARMS))
    covered = 0
    for wrong in generator.binomial(ARM, rates).tolist():
        low, high = interval(Counter(dict(enumerate(wrong))), JUDGED)
        covered += low <= truth <= high
    assert covered / studies == pytest.approx(0.95, abs=0.02)


def test_rows_that_share_a_rerun_name_rows_that_exist() -> None:
    assert {*SAME_RUN, *SAME_RUN.values()} <= EXPECTED.keys()


def test_false_alarms_of_the_pair_test_are_almost_independent_in_an_arm() -> None:
    others = [100.0, 101.0, 99.0, 102.0, 98.0, 100.5]
    test = make_pair_test(100.0, others, STUDY_TRIALS)
    assert test is not None
    limit = math.log(test.interval[1] / 100) / stdev(map(math.log, others))  # in SD of the others
    generator = np.random.default_rng(20261130)
    recorded, rerun = generator.normal(size=(2, 1_000_000, ARM))
    rest = recorded.sum(axis=1, keepdims=True) - recorded
    squares = (recorded**2).sum(axis=1, keepdims=True) - recorded**2
    spread = np.sqrt((squares - rest**2 / (ARM - 1)) / (ARM - 2))
    alarms = np.abs(rerun - recorded) > limit * spread
    share = alarms.mean()
    assert share == pytest.approx(0.05 / STUDY_TRIALS, rel=0.1)
    assert 0.9 < alarms.sum(axis=1).var() / (ARM * share * (1 - share)) < 1.2
