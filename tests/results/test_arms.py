"""Collected results are grouped in arms, and an arm's adapters are counted."""

import pytest
from support.made_results import trial

from qlora_repeat.errors import UsageError
from qlora_repeat.results.arms import distinct_adapters, group_arms


@pytest.mark.parametrize(
    ("digests", "words"),
    [
        (["a", "a", "a"], "one adapter in all 3 trials"),
        (["a", "b", "c"], "3 different adapters in 3 trials"),
        (["a", "b", "a"], "2 different adapters in 3 trials; 2 are the same"),
        (["a"], "one adapter"),
        ([None], "no adapter"),
    ],
)
def test_the_adapters_of_an_arm_are_counted_by_digest(digests: list[str | None], words: str) -> None:
    rows = [trial(trial=number, adapter_digest=digest) for number, digest in enumerate(digests, 1)]
    assert distinct_adapters(group_arms(rows)) == [f"gpt-neox-20b/adamw-8bit: {words}"]


def test_a_trial_with_two_rows_is_an_error_that_names_their_origin() -> None:
    with pytest.raises(UsageError, match="Oslo: trial gpt-neox-20b/adamw-8bit/1 has 2 rows"):
        group_arms([trial(), trial()], where="Oslo")


def test_more_trials_and_more_arms_than_a_study_can_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"collected results: \S+ has 1001 trials; at most 1000"):
        group_arms([trial(trial=number) for number in range(1001)])
    with pytest.raises(UsageError, match="collected results: 1001 models and optimizers; at most 1000"):
        group_arms([trial(model=f"m{number}") for number in range(1001)])
