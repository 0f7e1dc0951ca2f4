"""How far a re-run is from the recorded trial, and how far arithmetic alone moves this trial.

Trials differ in how far they amplify noise, by orders of magnitude. So where the tolerances do not suffice,
the noise of the trial itself is measured, by a re-run with one more thread.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qlora_repeat.analysis.adapter_distance import Distance
from qlora_repeat.analysis.trial_diff import TrialDiff
from qlora_repeat.analysis.verify.ceilings import relative
from qlora_repeat.study.study import Tolerance

NOISE_MARGIN = 10.0
"""Differences up to this many times the measured noise are noise too."""
NOISE_CEILING = 30.0
"""Differences of more than this many times the measured noise have another reason."""
_MOST_NOISE = Tolerance(first_loss=1e-4, loss=1e-2, adapter=1e-1, perplexity=1e-2)
"""The largest tolerances; agreement within larger ones would say too little."""
_IN_WORDS = {
    "first_loss": "the loss of step 1",
    "loss": "the mean loss over the steps",
    "adapter": "the adapter",
    "perplexity": "the perplexity",
}
"""The fields of `Deviations` that have a tolerance."""


@dataclass(frozen=True)
class Deviations:
    """Deviations of a re-run, relative to the values of the other run."""

    first_loss: float | None = None
    loss: float | None = None
    """The mean over the compared steps."""
    worst_loss: float | None = None
    worst_step: int | None = None
    """The step that has it."""
    adapter: float | None = None
    """The norm of the difference."""
    perplexity: float | None = None


def measure_deviations(diff: TrialDiff, steps: int) -> Deviations:
    """Return how far the second run is from the first, over this number of steps."""
    pairs = zip(diff.first.steps[1 : steps + 1], diff.second.steps[1 : steps + 1], strict=True)
    apart = [relative(recorded.loss, rerun.loss) for recorded, rerun in pairs]
    known = [value for value in apart if value is not None]
    worst = max(known, default=None)
    return Deviations(
        first_loss=apart[0] if apart else None,
        loss=sum(known) / len(known) if known else None,
        worst_loss=worst,
        worst_step=None if worst is None else 1 + apart.index(worst),
        adapter=adapter_deviation(diff.distances) if diff.distances else None,
        perplexity=relative(diff.first.perplexity, diff.second.perplexity),
    )


def adapter_deviation(distances: dict[str, Distance]) -> float:
    """Return the larger relative distance of A and B; infinite if it is undefined although values differ."""
    found = [
        0.0 if each.values == each.equal else math.inf if each.relative is None else each.relative
        for part, each in distances.items()
        if part != "all" or len(distances) == 1
    ]
    return math.nan if any(map(math.isnan, found)) else max(found)


def in_words(measured: Deviations, tolerance: Tolerance) -> dict[str, tuple[str, bool]]:
    """Return the deviations that are known, in words, and whether each exceeds its tolerance."""
    found = {}
    for name, words in _IN_WORDS.items():
        apart, most = getattr(measured, name), getattr(tolerance, name)
        if apart is not None:
            text = f"{words} differs by a relative {apart:.1e} ({most:.1e} is allowed)"
            found[name] = text, not apart <= most  # NaN exceeds it
    return found


def widened(tolerance: Tolerance, noise: Deviations | None) -> Tolerance:
    """Return tolerances that allow the measured noise of the trial, NOISE_MARGIN times, up to `_MOST_NOISE`.

    The perplexity may by chance be almost the same, so it is allowed what the losses are.
    """
    if noise is None:
        return tolerance
    moved = {name: getattr(noise, name) or 0.0 for name in _IN_WORDS}
    moved["perplexity"] = max(moved["perplexity"], moved["loss"])
    allowed = {
        name: max(getattr(tolerance, name), min(NOISE_MARGIN * value, getattr(_MOST_NOISE, name)))
        for name, value in moved.items()
        if math.isfinite(value)
    }
    return Tolerance(**vars(tolerance) | allowed)


def beyond_noise(measured: Deviations, noise: Deviations | None, tolerance: Tolerance) -> Iterator[str]:
    """Yield a sentence for each deviation that is far larger than the measured noise, and than its tolerance.

    Only means over many values count: a single loss, or the perplexity, may by chance be almost the same.
    """
    for name in ("loss", "adapter") if noise else ():
        apart, own = getattr(measured, name), getattr(noise, name)
        if apart is None or own is None or not math.isfinite(own):
            continue
        if not apart <= max(NOISE_CEILING * own, getattr(tolerance, name)):
            yield (
                f"One more thread changes {_IN_WORDS[name]} by a relative {own:.1e} here, so other "
                f"arithmetic does not explain {apart:.1e}."
            )
