"""How much of a study could still be false after some of its trials were run again."""

import random
from collections.abc import Sequence

from qlora_repeat.errors import UsageError

CONFIDENCE = 0.95


def draw_trials(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return this many names, drawn without replacement and in their order; the same seed draws the same.

    Raises:
        UsageError: there are fewer names.
    """
    if not 1 <= count <= len(names):
        raise UsageError(f"--sample {count}: expected 1 to {len(names)}, the number of recorded trials")
    chosen = random.Random(seed).sample(range(len(names)), count)
    return [names[place] for place in sorted(chosen)]


def most_false(trials: int, drawn: int, wrong: int) -> int:
    """Return the largest number of false trials that a sample leaves possible, at 95 % confidence.

    It is the exact upper bound of the hypergeometric distribution: with more false trials, a sample of
    `drawn` among `trials` would have at most `wrong` of them with a probability of 5 % or less. Every false
    trial that is drawn is taken to be found.
    """
    from scipy.stats import hypergeom

    possible = range(wrong, trials - drawn + wrong + 1)
    return max(
        (false for false in possible if hypergeom.cdf(wrong, trials, false, drawn) > 1 - CONFIDENCE),
        default=wrong,
    )
