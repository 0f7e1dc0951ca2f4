"""Format numbers for tables, and summarize several: mean, SD, median, range, n."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from qlora_repeat.results.statistical_methods import Share

DASH = "—"
"""The text for a missing value."""
_LARGEST = 1e150
_FINE, _GREAT = 0.01, 1e7
"""Below and from here, numbers have significant digits instead of decimals."""
_SPREAD_DIGITS = 3
"""Significant digits of a spread; from a few trials, more would be noise."""
_MOST_DECIMALS = 3
_LEAST_DIGITS, _MOST_DIGITS = 4, 7
"""Significant digits of the values themselves."""
DEVIATION_NOTE = "SD: sample standard deviation (n-1), of at least two runs."


class Printed(float):
    """A number of the paper, which tables show with the digits that the paper prints."""

    text: str

    def __new__(cls, text: Any) -> Any:
        """Return a number with its text; of what is no text, a plain number, as `statistics` asks for."""
        if not isinstance(text, str):
            return float(text)
        found = super().__new__(cls, text)
        found.text = text
        return found


def computable(value: float) -> float:
    """Return a number of any origin to compute with: infinity beyond 1e150, and 0 nearer to 0 than 1e-150.

    So squares and ratios neither overflow nor divide by zero.
    """
    if abs(value) > _LARGEST:
        return math.copysign(math.inf, value)
    return 0.0 if abs(value) < 1 / _LARGEST else value


def number(value: float | None, decimals: int = 0) -> str | None:
    """Format a number with its own decimals, but at most 3 below 1,000 and at most 2 above.

    3.47 and 21,024 stay, 3.5671 becomes 3.567, 233812.794 becomes 233,812.79, 0.000214 becomes 0.00021,
    1.2e30 becomes 1.200e+30; other texts are ``nan`` and ``inf``. With `decimals`, zeros follow: 237.00. A
    `Printed` number keeps its digits.
    """
    if value is None:
        return None
    if isinstance(value, Printed):
        return value.text
    size = abs(value)
    if size == 0:
        return "0"
    if size < _FINE:
        return f"{value:.2g}"
    if not math.isfinite(size):
        return f"{value}"
    if size >= _GREAT:
        return f"{value:.3e}"
    own = max(len(repr(float(value)).partition(".")[2].rstrip("0")), decimals)
    return f"{value:,.{min(own, _MOST_DECIMALS if round(size, 3) < 1000 else 2)}f}"


def decimals_of(values: Sequence[float]) -> int:
    """Return the most decimals that `number` gives one of these values, for all in a column or range."""
    usual = [value for value in values if _FINE <= abs(value) < _GREAT]
    return max((len((number(value) or "").partition(".")[2]) for value in usual), default=0)


def cell(value: float | None) -> str:
    """Return the number for a table; a dash for None."""
    return number(value) or DASH


def rounded(value: float | None, digits: int = 3) -> str:
    """Return the number with this many significant digits, without trailing zeros; a dash for None."""
    return cell(None if value is None else float(f"{value:.{digits}g}"))


def percent(share: float | None) -> str:
    """Return a share in percent: without decimals from 9.5 %, with two significant digits below."""
    if share is None:
        return DASH
    return f"{100 * share:.0f} %" if abs(share) >= 0.095 else f"{100 * share:.2g} %"


def share_text(share: Share | None) -> str:
    """Return a count for a table: ``5 of 7``; a dash for None."""
    return f"{share.count} of {share.of}" if share else DASH


def share_interval(share: Share | None) -> str:
    """Return the interval of a share, in percent."""
    return f"{100 * share.low:.0f}–{100 * share.high:.0f} %" if share else DASH


def spread_text(value: float | None) -> str:
    """Return a spread with three significant digits, including trailing zeros; with two below 0.1."""
    if value is None or not _FINE <= value < _GREAT:
        return number(value) or DASH
    shortened = float(f"{value:.{_SPREAD_DIGITS}g}")
    decimals = _SPREAD_DIGITS - 1 - math.floor(math.log10(shortened))
    return f"{shortened:,.{min(max(decimals, 0), _SPREAD_DIGITS)}f}"


def value_text(value: float | None, sd: float | None, of_sd: int = 2, *, as_printed: bool = False) -> str:
    """Return a value with four significant digits, or with `of_sd` digits of its SD if that is finer.

    `as_printed` is for numbers of the paper: no zeros are added to those that it prints.
    """
    if value is None:
        return DASH
    shortened, decimals = _shortened(value, sd, of_sd)
    return number(shortened, 0 if as_printed else decimals) or DASH


def value_range(low: float | None, high: float | None, sd: float | None, *, as_printed: bool = False) -> str:
    """Return a range of values as `value_text`; with equal decimals, unless it spans a decade."""
    if not as_printed and low is not None and high is not None and 0 < low <= high < min(10 * low, _GREAT):
        decimals = max(_shortened(value, sd, 1)[1] for value in (low, high))
        if decimals:
            return interval_text(*(number(round(value, decimals), decimals) or DASH for value in (low, high)))
    return interval_text(*(value_text(value, sd, of_sd=1, as_printed=as_printed) for value in (low, high)))


def _shortened(value: float, sd: float | None, of_sd: int) -> tuple[float, int]:
    """Return a value with the significant digits of `value_text`, and its decimals."""
    digits = _LEAST_DIGITS
    if value and sd and math.isfinite(value) and math.isfinite(sd):
        digits = max(digits, math.floor(math.log10(abs(value))) - math.floor(math.log10(sd)) + of_sd)
    digits = min(digits, _MOST_DIGITS)
    shortened = float(f"{value:.{digits}g}")
    if not _FINE <= abs(shortened) < _GREAT:
        return shortened, 0
    decimals = digits - 1 - math.floor(math.log10(abs(shortened)))
    return shortened, min(max(decimals, 0), _MOST_DECIMALS)


def interval_text(low: str, high: str) -> str:
    """Return the interval; a single text if both ends are the same."""
    return "–".join(dict.fromkeys((low, high)))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; not finite if a value is not."""
    return statistics.mean(values) if values else None


def median(values: Sequence[float]) -> float | None:
    """Return the median; NaN if a value is NaN."""
    if not values:
        return None
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1)."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def span(values: Sequence[float], decimals: int = 0) -> str | None:
    """Return the range from the smallest to the largest value, as text; `decimals` as in `number`."""
    if not values:
        return None
    if any(map(math.isnan, values)):
        return "nan"
    return interval_text(*(number(value, decimals) or DASH for value in (min(values), max(values))))


STATISTICS: dict[str, Callable[[Sequence[float], int], str | None]] = {
    "mean": lambda values, decimals: number(mean(values), decimals),
    "SD": lambda values, decimals: number(deviation(values), decimals),
    "median": lambda values, decimals: number(median(values), decimals),
    "range": span,
    "n": lambda values, decimals: str(len(values)),
}
"""The statistics that tables show, by name, with `decimals` as in `number`."""


def statistic(name: str, values: Sequence[float], decimals: int = 0) -> str:
    """Return one of `STATISTICS`; a dash if there are too few values."""
    return STATISTICS[name](values, decimals) or DASH


def summary_rows(names: Sequence[str], measured: list[list[float]], decimals: list[int]) -> list[list[str]]:
    """Return a row for each of these statistics, with a cell for each list of values and its decimals."""
    columns = list(zip(measured, decimals, strict=True))
    return [[name, *(statistic(name, values, least) for values, least in columns)] for name in names]
