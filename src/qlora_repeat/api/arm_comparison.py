"""Compare two arms of any studies or tidy files, and judge their difference by a margin."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.api.results import Results, results_of
from qlora_repeat.errors import UsageError
from qlora_repeat.render.text.arm_comparison import comparison_text
from qlora_repeat.results.study_statistics import MEASURES, SCORE_TITLES, score
from qlora_repeat.results.tidy_file import FORMATS, Values, read_tidy
from qlora_repeat.results.two_arms import Comparison, Decision, compare_arms, decide, in_pairs
from qlora_repeat.system.files import json_text, read_lines, strict


@dataclass(frozen=True, repr=False)
class ArmComparison:
    """How a second arm compares with a first, and the decision if there is a margin."""

    first: Values
    second: Values
    found: Comparison
    of: Literal["shift", "spread"] = "shift"
    margin: float | None = None

    @property
    def decision(self) -> Decision | None:
        """*equivalent*, *different* or *undecided*; None without a margin."""
        return None if self.margin is None else decide(self.found, self.margin, self.of)

    def to_json(self) -> str:
        """Return all numbers."""
        arms = {name: asdict(own) for name, own in (("first", self.first), ("second", self.second))}
        decision = self.decision
        content: dict[str, Any] = {**arms, "comparison": asdict(self.found)}
        content |= {"of": self.of, "margin": self.margin, "decision": asdict(decision) if decision else None}
        return json_text(strict(content))

    def __str__(self) -> str:
        return comparison_text(self.first, self.second, self.found, self.decision, self.of, self.margin)

    __repr__ = __str__


def compare(
    first: str | Path | Results,
    second: str | Path | Results,
    *,
    metric: str | None = None,
    margin: float | None = None,
    of: Literal["shift", "spread"] = "shift",
    runs: str | Path | None = None,
) -> ArmComparison:
    """Compare two arms: their shift, the probability of superiority and the ratio of their spreads.

    Args:
        first, second: a tidy file (CSV, JSON Lines or Parquet with a column for each metric, and `arm` and
            `seed` if there are several arms and seeds), results, a study's name, or ``published``. With
            several arms, ``SOURCE:ARM``; an arm of a study is ``MODEL/OPTIMIZER``.
        metric: a column of a tidy file, or a measure of a study; by default perplexity, or the only column.
        margin: for a decision: the largest shift, or with `of` ``spread`` the largest factor, that counts as
            no difference.
        runs: the folder of results, where a study is named.

    Raises:
        MissingError: there is no such file or study.
        UsageError: there is no such arm or metric, several arms and none is named, or no values.
    """
    if margin is not None and not (margin > 1 if of == "spread" else margin > 0):
        raise UsageError(f"margin {margin:g}: expected {'a factor above 1' if of == 'spread' else 'above 0'}")
    folder = Path(runs) if runs is not None else None
    one, two = (read_arm(given, metric, folder) for given in (first, second))
    by_seed = (dict(zip(own.seeds or [], own.values, strict=False)) for own in (one, two))
    pairs = in_pairs(*by_seed)
    found = compare_arms(*(pairs or (one.values, two.values)), paired=pairs is not None)
    return ArmComparison(one, two, found, of, margin)


def read_arm(given: str | Path | Results, metric: str | None, runs: Path | None) -> Values:
    """Return the values of an arm in a metric, as `compare` reads them; raises as `compare`."""
    source, name = given, None
    if isinstance(given, str) and ":" in given and not Path(given).exists():
        source, _, name = given.rpartition(":")
    arms = _arms(source, metric, runs)
    listed = ", ".join(arms)[:500]
    if name is not None and name not in arms:
        raise UsageError(f"{given}: no arm {name} with this metric; it has {listed or 'none'}")
    if name is None and len(arms) != 1:
        raise UsageError(f"{given}: {len(arms)} arms; choose one, such as {given}:{next(iter(arms), 'ARM')}")
    return arms[name] if name is not None else next(iter(arms.values()))


def _arms(source: str | Path | Results, metric: str | None, runs: Path | None) -> dict[str, Values]:
    if not isinstance(source, Results) and Path(source).suffix.lower() in FORMATS and not _is_results(source):
        return read_tidy(Path(source), metric)
    name = metric or "perplexity"
    measures = MEASURES | {each: score(each) for each in SCORE_TITLES}
    if name not in measures:
        raise UsageError(f"metric {name}: of a study, expected one of {', '.join(measures)}")
    found = dict[str, Values]()
    for arm in results_of(source, runs).arms():
        values = arm.values(measures[name])
        if values:
            seeds = list(arm.by_seed(measures[name])) or None
            found["/".join(arm.key)] = Values("/".join(arm.key), name, values, seeds)
    return found


def _is_results(path: str | Path) -> bool:
    """Return whether a file of JSON Lines has rows of a study's results."""
    if Path(path).suffix.lower() != ".jsonl":
        return False
    try:
        row = json.loads(read_lines(Path(path), follow=True).partition("\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"study", "model", "optimizer", "trial"} <= row.keys()
