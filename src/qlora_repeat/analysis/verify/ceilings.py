"""How far other arithmetic can move a loss: what no processor, kernel, thread or package explains.

A forger can claim another processor. So a recorded difference explains only what it can cause.
"""

import math
from collections.abc import Iterator, Sequence

from qlora_repeat.records.trace import Step

FORWARD = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""The largest relative difference of a loss after one forward pass of the same weights on the same tokens.

By precision of the computation. Measured for float32, on CPUs (docs/reference/verdicts.md): at most 6e-7 for
a training step, 3.2e-5 for an example in another batch. Estimated for half precision, from the ratio of the
units in the last place, because no GPU has been measured.
"""
GROWTH = 7.0
"""The factor by which the ceiling grows with each update.

From FORWARD on, 5.4 would cover 301 trials with a learning rate 30 times too high, in float32
(docs/explanation/calibration.md). No GPU has been measured.
"""


def loss_ceiling(updates: int, precision: str) -> float:
    """Return the largest relative difference of a loss that arithmetic explains.

    Where it reaches 1, it is infinite: noise may then have grown to any size, or a trial have diverged.

    Args:
        updates: how many updates were made since the adapters were last known to be equal.
        precision: the format of the computation, such as ``float32``.
    """
    forward = FORWARD.get(precision, max(FORWARD.values()))
    most = forward * GROWTH ** min(updates, 100)
    return most if most < 1 else math.inf


def beyond_arithmetic(
    pairs: Sequence[tuple[Step, Step]], precision: str, *, same_start: bool, same_end: bool = False
) -> Iterator[str]:
    """Yield a sentence for the first loss that differs by more than other arithmetic can cause.

    Only steps before the first one with different rows count. If the adapters do not start equal, or dropout
    differs, only step 1 counts: LoRA's B is zero until the first update, so neither changes its loss.

    The difference grows only while the adapters differ. Noise does not vanish, so adapters that end equal
    were always equal, whatever the digests between say.

    Args:
        pairs: the recorded and the re-run's steps, from step 1.
        precision: the format of the computation, such as ``float32``.
        same_start: whether the initial adapters and the seeds of dropout are equal.
        same_end: whether the final adapters are equal in every bit.
    """
    equal_after = 0
    for recorded, rerun in pairs if same_start else pairs[:1]:
        if (recorded.examples, recorded.tokens) != (rerun.examples, rerun.tokens):
            return
        updates = 0 if same_end else recorded.step - 1 - equal_after
        if recorded.adapter is not None and recorded.adapter == rerun.adapter:
            equal_after = recorded.step
        apart, most = relative(recorded.loss, rerun.loss), loss_ceiling(updates, precision)
        if apart is not None and not apart <= most:
            yield (
                f"The loss of step {recorded.step} differs by a relative {apart:.1e}; other arithmetic in "
                f"{precision} changes it by at most {most:.1e}."
            )
            return


def relative(recorded: float | None, rerun: float | None) -> float | None:
    """Return the difference relative to the recorded value; 0 if both are NaN or the same infinity."""
    if recorded is None or rerun is None:
        return None
    if recorded == rerun or (math.isnan(recorded) and math.isnan(rerun)):
        return 0.0
    if not math.isfinite(recorded) or not math.isfinite(rerun) or recorded == 0:
        return math.inf
    return abs(rerun - recorded) / abs(recorded)
