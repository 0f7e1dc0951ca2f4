"""The trace of a fine-tuning: one line for the untrained adapter (step 0) and one per optimizer step.

Floats are hexadecimal (``float.fromhex``, C's ``%a``), ``nan``, ``inf`` or ``-inf``, so that equal lines mean
equal bits.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.system.files import parse_json, read_lines

CURVE_POINTS = 30
_FLOATS = ("loss", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class Step:
    """An optimizer step: its batch, what it computed, and the digest of the resulting adapter."""

    step: int
    """From 1; step 0 is the adapter before any update, and has only its digest."""
    epoch: float | None = None
    """Epochs completed after this step."""
    examples: list[int] | None = None
    """The indices, in the train part, of the rows in the batch."""
    tokens: int | None = None
    """Tokens in the batch, without padding."""
    loss: float | None = None
    """None if no row of the batch has a token to predict."""
    gradient_norm: float | None = None
    """Norm of the adapter's gradients, unscaled, before clipping."""
    learning_rate: float | None = None
    """The learning rate of this update."""
    skipped: bool = False
    """Whether the gradient scaler skipped the update because gradients overflowed."""
    empty: bool = False
    """Whether no row of the batch has a token to predict, as rows of one token."""
    adapter: str | None = None
    """The digest of the adapter after this step, if it was computed."""

    @property
    def diverged(self) -> bool:
        """Whether the loss is NaN or infinite."""
        return self.loss is not None and not math.isfinite(self.loss)


def trace_line(step: Step) -> str:
    """Return the step as a line of the trace, without fields that are None."""
    content: dict[str, Any] = {name: value for name, value in vars(step).items() if value is not None}
    for name in ("skipped", "empty"):
        if not content[name]:
            del content[name]
    content |= {name: float(content[name]).hex() for name in _FLOATS if name in content}
    return json.dumps(content) + "\n"


def read_trace(path: Path, *, unfinished: bool = False) -> list[Step]:
    """Return the steps of a trace; if `unfinished`, ignore a last line that is incomplete.

    Raises:
        MissingError: there is no such file.
        UsageError: a line is not a step, or is out of order.
    """
    try:
        text = read_lines(path)
    except FileNotFoundError:
        raise MissingError(f"{path}: no trace; the trial has not been fine-tuned") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: not a readable trace ({reason})") from None
    if unfinished:
        text = text[: text.rfind("\n") + 1]
    steps = []
    for place, line in enumerate(text.splitlines()):
        try:
            step = _parse(line)
            if step.step != place:
                raise ValueError(f"step {step.step}; expected {place}")
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{path}:{place + 1}: not a step of a trace ({error})") from None
        steps.append(step)
    return steps


def known_losses(steps: Sequence[Step]) -> list[float]:
    """Return the losses of the steps that have one."""
    return [step.loss for step in steps if step.loss is not None]


def loss_curve(steps: Sequence[Step]) -> list[list[float]]:
    """Return at most 30 points [epochs completed, mean loss of the steps since the last point]."""
    points = [(step.epoch, step.loss) for step in steps if step.epoch is not None and step.loss is not None]
    count = min(len(points), CURVE_POINTS)
    ends = [len(points) * (point + 1) // count for point in range(count)]
    parts = [points[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [[part[-1][0], sum(loss for _, loss in part) / len(part)] for part in parts]


def _parse(line: str) -> Step:
    content = parse_json(line.encode())
    if unknown := content.keys() - _VALID.keys():
        raise ValueError(f"unknown key {min(unknown)!r}")
    for name, value in content.items():
        if not _VALID[name](value):
            raise ValueError(f"{name} is {value!r}"[:100])
    return Step(**content | {name: float.fromhex(content[name]) for name in _FLOATS if name in content})


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 100 and value.isascii() and value.isprintable()


_VALID: dict[str, Callable[[Any], bool]] = {
    "step": _whole,
    "epoch": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "examples": lambda value: isinstance(value, list) and all(map(_whole, value)),
    "tokens": _whole,
    "loss": _short,
    "gradient_norm": _short,
    "learning_rate": _short,
    "skipped": lambda value: value is True,
    "empty": lambda value: value is True,
    "adapter": _short,
}
"""A check of each value of a line; floats are strings."""
