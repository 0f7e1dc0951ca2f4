"""The uncertainty that comes from seeds, and from the test examples."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.made_results import trial

from qlora_repeat.results.arms import Arm, group_arms
from qlora_repeat.results.seeds_and_examples import (
    agreement,
    agreement_on_improvement,
    decomposed,
    of_log_perplexity,
)
from qlora_repeat.results.trial_result import ExampleLosses


def outcomes(
    seeds: float, examples: float, both: float, shape: tuple[int, int], seed: int = 0
) -> list[list[float]]:
    """Return outcomes with these standard deviations: (trials, examples)."""
    draw = np.random.default_rng(seed).normal
    parts = (seeds * draw(size=(shape[0], 1)), examples * draw(size=(1, shape[1])), both * draw(size=shape))
    found: list[list[float]] = (3 + sum(parts)).tolist()
    return found


def arm_of(losses: list[list[float]], tokens: list[int], better: list[list[bool]]) -> Arm:
    rows = list(range(len(tokens)))
    trials = [
        replace(
            trial(trial=number),
            perplexity=math.exp(sum(own) / sum(tokens)),
            example_losses=ExampleLosses(rows, tokens, own, better[number - 1]),
        )
        for number, own in enumerate(losses, 1)
    ]
    (found,) = group_arms(trials)
    return found


def test_components_are_those_of_the_outcomes() -> None:
    """With many trials and examples, each is close to the variance that the outcomes were made with."""
    found = decomposed(outcomes(0.5, 2.0, 1.0, (400, 400)))
    assert found is not None
    assert found.of_seeds == pytest.approx(0.25, rel=0.2)
    assert found.of_examples == pytest.approx(4.0, rel=0.2)
    assert found.of_both == pytest.approx(1.0, rel=0.05)
    assert sum(found.parts) == pytest.approx((0.25 + 4.0) / 400, rel=0.3)


def test_components_are_unbiased_with_seven_trials() -> None:
    found = [decomposed(outcomes(0.5, 1.0, 1.0, (7, 20), seed)) for seed in range(400)]
    assert np.mean([each.of_seeds for each in found if each]) == pytest.approx(0.25, rel=0.15)
    assert np.mean([each.of_examples for each in found if each]) == pytest.approx(1.0, rel=0.15)


def test_what_varies_more_is_what_to_buy() -> None:
    many, few = decomposed(outcomes(1.0, 1.0, 0.1, (7, 500))), decomposed(outcomes(0.01, 1.0, 0.1, (7, 20)))
    assert many is not None and few is not None
    assert (many.more_of, few.more_of) == ("trials", "examples")
    assert many.share_of_seeds is not None and many.share_of_seeds > 0.9
    assert few.share_of_seeds is not None and few.share_of_seeds < 0.01


def test_equal_trials_have_no_variance_of_seeds() -> None:
    found = decomposed([[1.0, 2.0, 4.0]] * 7)
    assert found is not None
    assert (found.of_seeds, found.of_both, found.share_of_seeds) == (0, 0, 0)
    assert found.error_of_examples == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    constant = decomposed([[2.0, 2.0]] * 2)
    assert constant is not None and constant.share_of_seeds is None


@pytest.mark.parametrize(
    "wrong", [[], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, math.nan], [1.0, 2.0]], [[1e308] * 3] * 2]
)
def test_nothing_is_made_of_what_cannot_be_decomposed(wrong: list[list[float]]) -> None:
    assert decomposed(wrong) is None


def test_log_perplexity_counts_tokens_and_not_examples() -> None:
    """Its error is that of a ratio of sums: as in a bootstrap of the examples."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(5, 60, 300)
    level = generator.normal(3, 0.5, 300)
    losses = [(tokens * (level + shift)).tolist() for shift in (-0.02, 0.0, 0.03)]
    found = of_log_perplexity(arm_of(losses, tokens.tolist(), [[]] * 3))
    assert found is not None
    assert found.mean == pytest.approx(np.sum(losses) / (3 * tokens.sum()))
    assert found.of_seeds == pytest.approx(np.var([-0.02, 0.0, 0.03], ddof=1), rel=0.01)
    drawn = generator.integers(300, size=(4000, 300))
    bootstrap = np.std(np.array(losses[1])[drawn].sum(1) / tokens[drawn].sum(1))
    assert found.error_of_examples == pytest.approx(bootstrap, rel=0.05)


def test_trials_with_other_examples_are_not_decomposed() -> None:
    arm = arm_of([[3.0, 4.0], [3.5, 4.0]], [1, 2], [[True, False]] * 2)
    assert of_log_perplexity(arm) is not None
    other = replace(arm.trials[1], example_losses=ExampleLosses([0, 5], [1, 2], [3.5, 4.0], [True, False]))
    mixed = replace(arm, trials=[arm.trials[0], other])
    assert of_log_perplexity(mixed) is None
    assert agreement_on_improvement(mixed) is None
    assert (
        of_log_perplexity(replace(arm, trials=[arm.trials[0], replace(other, example_losses=None)])) is None
    )


def test_agreement_is_the_mean_over_pairs_of_trials() -> None:
    assert agreement([[1, 1, 0], [1, 0, 0], [1, 1, 0]]) == pytest.approx((2 + 3 + 2) / 9)
    assert agreement([[1, 2]]) is None
    arm = arm_of([[3.0, 4.0], [3.5, 4.0]], [1, 2], [[True, False], [True, True]])
    assert agreement_on_improvement(arm) == 0.5


def test_a_row_has_as_many_losses_as_examples() -> None:
    with pytest.raises(ValueError, match="as many tokens and losses as rows"):
        ExampleLosses([1, 2], [3, 4], [0.5])
