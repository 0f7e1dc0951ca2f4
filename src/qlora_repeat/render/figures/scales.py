"""The axis for a set of losses: linear or logarithmic, its limits and its ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_repeat.results.statistical_methods import spans_a_decade

_SQUEEZED = 0.2
"""An arm that would fill less than this share of the common scale has its own scale."""
_MARGIN = 0.06
_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """An axis of losses."""

    log: bool
    low: float
    high: float
    ticks: list[tuple[float, str]]

    @property
    def length(self) -> float:
        """Return the length, in logarithms on a logarithmic scale."""
        return math.log(self.high / self.low) if self.log else self.high - self.low

    def clip(self, loss: float) -> float:
        """Return where a loss is drawn: a loss of 0 is on the lower edge of a logarithmic scale."""
        return max(loss, self.low) if self.log else loss


def common_scales(arms: Sequence[Sequence[float]], bar_share: float | None = None) -> list[Scale]:
    """Return a scale for each arm's losses: the same for all, unless that would squeeze an arm's differences.

    `bar_share` is for bars, which begin at zero or at a power of ten: the longest has this share of the axis.
    """
    every = [loss for losses in arms for loss in losses]
    own = [_scale(losses or every, bar_share) for losses in arms]
    common = _scale(every, bar_share)
    fits = all(scale.log == common.log and scale.length >= _SQUEEZED * common.length for scale in own)
    return [common] * len(arms) if fits else own


def _scale(losses: Sequence[float], bar_share: float | None) -> Scale:
    if not losses:
        return Scale(False, 0.0, 1.0, [])
    positive = [loss for loss in losses if loss > 0]
    if spans_a_decade(positive):
        low, high = math.log10(min(positive)), math.log10(max(positive))
        if bar_share is None:
            margin = _MARGIN * (high - low)
            low, high = low - margin, high + margin
        else:
            low = math.floor(low - 0.1)  # otherwise a loss just above a power of ten has no visible bar
            high = low + (high - low) / bar_share
        return Scale(True, 10**low, 10**high, _log_ticks(low, high))
    low, high = min(losses), max(losses)
    if bar_share is not None:
        low, high = min(low, 0), max(high, 0)
        high = low + ((high - low) / bar_share or 1)
    else:
        flat = high - low <= 1e-6 * max(abs(low), abs(high))
        margin = (abs(low) * _MARGIN or 1) if flat else _MARGIN * (high - low)
        low, high = low - margin, high + margin
    return Scale(False, low, high, linear_ticks(low, high))


def linear_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five multiples of 1, 2 or 5 times a power of ten, with their labels."""
    exponent = math.floor(math.log10((high - low) / _TICKS))
    sizes = [size * 10.0**exponent for size in (1, 2, 5, 10)]
    step = next((size for size in sizes if size * _TICKS >= high - low), sizes[-1])
    exponent = math.floor(math.log10(step) + 1e-9)
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    largest = max(abs(low), abs(high))
    if 1e-3 <= largest < 1e6:
        layout = f".{max(-exponent, 0)}f"
    else:
        layout = f".{math.floor(math.log10(largest)) - exponent}e"
    return [(number * step, format(number * step, layout)) for number in multiples]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return powers of ten between these exponents; if there are few, also 2 and 5 times those."""
    powers = range(math.floor(low), math.floor(high) + 1)
    few = high - low < 2.5
    every = 1 if few else math.ceil(len(powers) / _TICKS)
    return [
        (size * 10.0**power, f"{size * 10.0**power:g}" if -4 <= power < 5 else f"{size}e{power}")
        for power in powers
        for size in ((1, 2, 5) if few else (1,))
        if power % every == 0 and low - 1e-9 <= math.log10(size) + power <= high + 1e-9
    ]
