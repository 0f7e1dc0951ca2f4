"""Compare two trials: the first step at which they differ, and in what."""

from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.analysis.trial_diff import Side, TrialDiff, compare_trials, read_side
from qlora_repeat.errors import MissingError
from qlora_repeat.render.text.diff import diff_json, diff_text
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import Trial


@dataclass(frozen=True, repr=False)
class Diff:
    """How two trials compare."""

    found: TrialDiff

    @property
    def verdict(self) -> str:
        """``alike``, ``alike as far as compared`` or ``different``."""
        return self.found.verdict

    def to_json(self) -> str:
        """Return all of the comparison."""
        return diff_json(self.found)

    def __str__(self) -> str:
        return diff_text(self.found)

    __repr__ = __str__


def diff(
    first: Trial | str | Path,
    second: Trial | str | Path,
    *,
    study: str = "pocket",
    runs: str | Path | None = None,
) -> Diff:
    """Find the first step at which two trials differ, and what else differs between them.

    Args:
        first, second: a trial; its folder; its name in `study`; or with another study or profile, as in
            ``pocket@bitwise:smollm2-135m/adamw-8bit/1``.
        runs: the folder of results, for trials by name.

    Raises:
        MissingError: a folder, a record or a trace is missing or damaged.
        UsageError: there is no trial of that name.
    """
    return Diff(compare_trials(*(_side(each, study, runs) for each in (first, second))))


def _side(given: Trial | str | Path, study: str, runs: str | Path | None) -> Side:
    if not isinstance(given, Trial):
        if Path(given).is_dir():
            return read_side(str(given), Path(given))
        label, _, name = str(given).rpartition(":")
        if Path(name).name.startswith("trial-"):
            raise MissingError(
                f"{given}: no such folder; give that of a trial, or its name: model/optimizer/number"
            )
        given = open_workspace(label or study, runs=Path(runs) if runs else None).trial(name)
    return read_side(f"{given.study.label}:{given.name}", given.folder)
