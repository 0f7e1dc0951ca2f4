"""Intervals of wrong verdicts take account of arms, whose re-runs are judged by the same trials."""

from collections import Counter

import numpy as np
import pytest
from verify_calibration import ARM, EXPECTED, SAME_RUN, interval

from qlora_repeat.results.statistical_methods import share

ARMS = 43
JUDGED = Counter(dict.fromkeys(range(ARMS), ARM))


def test_without_a_wrong_verdict_or_without_a_right_one_the_interval_is_that_of_single_reruns() -> None:
    for wrong, count in ((Counter[int](), 0), (JUDGED, 301)):
        expected = share(count, 301)
        assert expected is not None
        assert interval(wrong, JUDGED) == pytest.approx((expected.low, expected.high))


def test_wrong_verdicts_in_whole_arms_count_as_one_each() -> None:
    low, high = interval(Counter(dict.fromkeys(range(10), ARM)), JUDGED)
    expected = share(10, ARMS)
    assert expected is not None
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
