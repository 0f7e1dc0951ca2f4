"""How much of an outcome's uncertainty comes from the seeds of trials, and how much from the test examples.

Each trial i gives each example j an outcome y_ij. In the model with two random factors (crossed, without
replication), y_ij = mean + a_i + b_j + e_ij. Its components follow from the mean squares (ANOVA). The mean of
m trials on n examples then has the variance

    var(a) / m  +  var(b) / n  +  var(e) / (m n).

Log perplexity is a ratio of sums over examples, loss / tokens. Its linear approximation has the outcomes
y_ij = mean + (loss_ij - mean tokens_j) n / (all tokens), whose mean over j is the trial's log perplexity
(Cochran, Sampling Techniques, 1977, section 6.4).
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_repeat.results.arms import Arm


@dataclass(frozen=True)
class SeedsAndExamples:
    """The components of the variance of an outcome over trials and test examples."""

    trials: int
    examples: int
    mean: float
    of_seeds: float
    """var(a): between trials, on all possible examples."""
    of_examples: float
    """var(b): between examples, over all possible trials."""
    of_both: float
    """var(e): of single outcomes, which neither explains."""

    @property
    def parts(self) -> tuple[float, float, float]:
        """The parts of the variance of the mean over trials: seeds, examples, and both together."""
        both = self.trials * self.examples
        return self.of_seeds / self.trials, self.of_examples / self.examples, self.of_both / both

    @property
    def share_of_seeds(self) -> float | None:
        """The share of the variance of the mean that is due to seeds; None if nothing varies."""
        total = sum(self.parts)
        return self.parts[0] / total if total else None

    @property
    def error_of_examples(self) -> float:
        """The standard error of one trial's outcome because other examples could have been drawn."""
        return math.sqrt((self.of_examples + self.of_both) / self.examples)

    @property
    def more_of(self) -> str:
        """What to double for the smaller standard error of the mean: ``trials`` or ``examples``."""
        return "trials" if self.parts[0] > self.parts[1] else "examples"


def decomposed(outcomes: Sequence[Sequence[float]]) -> SeedsAndExamples | None:
    """Return the components of outcomes: a row for each trial, a column for each example.

    Components below 0 become 0. None for fewer than two trials or examples, or outcomes that are not finite.
    """
    import numpy as np

    y = np.asarray(outcomes, dtype=np.float64)
    if y.ndim != 2 or min(y.shape) < 2 or not np.isfinite(y).all():
        return None
    trials, examples = y.shape
    with np.errstate(over="ignore", invalid="ignore"):
        rows, columns, mean = y.mean(axis=1), y.mean(axis=0), float(y.mean())
        rest = y - rows[:, None] - columns[None, :] + mean
        both = float((rest**2).sum()) / ((trials - 1) * (examples - 1))
    if not math.isfinite(both):
        return None
    return SeedsAndExamples(
        trials=trials,
        examples=examples,
        mean=mean,
        of_seeds=max(0.0, float(rows.var(ddof=1)) - both / examples),
        of_examples=max(0.0, float(columns.var(ddof=1)) - both / trials),
        of_both=both,
    )


def of_log_perplexity(arm: Arm) -> SeedsAndExamples | None:
    """Return the components of an arm's log perplexity; None if its trials were tested on other examples."""
    import numpy as np

    tested = [trial.example_losses for trial in arm.done if trial.example_losses is not None]
    if len(tested) < max(2, len(arm.done)) or len({(*each.rows, *each.tokens) for each in tested}) > 1:
        return None
    losses = np.array([each.losses for each in tested])
    tokens = np.array(tested[0].tokens, dtype=np.float64)
    if not np.isfinite(losses).all() or not tokens.sum():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        mean = losses.sum() / (len(tested) * tokens.sum())
    return decomposed(mean + (losses - mean * tokens) * (len(tokens) / tokens.sum()))


def agreement(outcomes: Sequence[Sequence[object]]) -> float | None:
    """Return the mean over pairs of trials of the share of examples with equal outcomes, if any."""
    if len(outcomes) < 2 or not outcomes[0]:
        return None
    # The pairs that agree on an example are those within each group of trials with one outcome.
    pairs = sum(
        math.comb(count, 2) for each in zip(*outcomes, strict=True) for count in Counter(each).values()
    )
    return pairs / (math.comb(len(outcomes), 2) * len(outcomes[0]))


def agreement_on_improvement(arm: Arm) -> float | None:
    """Return the share of examples that two trials both made better than the base, or both worse."""
    found = [
        trial.example_losses
        for trial in arm.done
        if trial.example_losses is not None and trial.example_losses.better_than_base
    ]
    same = all(one.rows == other.rows for one, other in itertools.pairwise(found))
    return agreement([each.better_than_base for each in found]) if same else None
