"""Made-up traces."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qlora_repeat.records.trace import Step


def trace(count: int, digest_every: int = 1) -> list[Step]:
    """Return step 0 and this number of training steps."""
    steps = [Step(0, adapter="digest 0")]
    for number in range(1, count + 1):
        steps.append(
            Step(
                number,
                epoch=number / 10,
                examples=[number * 7 % 10],
                tokens=20 + number,
                loss=3 / number,
                gradient_norm=1 / number,
                learning_rate=2e-4,
                adapter=f"digest {number}" if number % digest_every == 0 else None,
            )
        )
    return steps


def changed(steps: Sequence[Step], place: int, **changes: Any) -> list[Step]:
    """Return the steps with changes in one of them."""
    return [*steps[:place], replace(steps[place], **changes), *steps[place + 1 :]]
