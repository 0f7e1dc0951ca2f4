"""Compare two trials: the first step at which they differ, and in what."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlora_repeat.analysis.operations import Operations
from qlora_repeat.analysis.trial_diff import Side, TrialDiff, compare_trials, read_side
from qlora_repeat.archive.unpack import study_of
from qlora_repeat.errors import MissingError
from qlora_repeat.render.text.diff import diff_json, diff_text
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import Trial
from qlora_repeat.study.workspace import Workspace


@dataclass(frozen=True, repr=False)
class Diff:
    """How two trials compare."""

    found: TrialDiff
    operations: Operations | None = None
    """The operator that made them differ, where it was asked for."""

    @property
    def verdict(self) -> str:
        """``alike``, ``alike as far as compared`` or ``different``."""
        return self.found.verdict

    def to_json(self) -> str:
        """Return all of the comparison."""
        return diff_json(self.found, self.operations)

    def __str__(self) -> str:
        return diff_text(self.found, self.operations)

    __repr__ = __str__


def diff(
    first: Trial | str | Path,
    second: Trial | str | Path,
    *,
    study: str = "pocket",
    runs: str | Path | None = None,
    cache: str | Path | None = None,
    operations: bool = False,
    quiet: bool = False,
) -> Diff:
    """Find the first step at which two trials differ, and what else differs between them.

    Args:
        first, second: a trial; its folder; its name in `study`; or with another study or profile, as in
            ``pocket@bitwise:smollm2-135m/adamw-8bit/1``.
        runs, cache: the folders of results, for trials by name, and of models and data.
        operations: also run both up to the first step that differs, and find the operator with equal inputs
            and unequal output.
        quiet: show no progress.

    Raises:
        MissingError: a folder, a record or a trace is missing or damaged.
        UsageError: there is no trial of that name.
        StageError, StoppedError: a re-run failed or was stopped.
    """
    open_study = functools.partial(
        open_workspace, runs=Path(runs) if runs else None, cache=Path(cache) if cache else None
    )
    sides = [_side(each, study, open_study) for each in (first, second)]
    found = compare_trials(*sides)
    if not operations:
        return Diff(found)
    from qlora_repeat.analysis.step_rerun import find_operations
    from qlora_repeat.api.progress import Terminal, console

    trials = [_trial(*each, study, open_study) for each in zip((first, second), sides, strict=True)]
    return Diff(found, find_operations(found, trials, Terminal(console(quiet)).watch_jobs))


_Open = Callable[[str], Workspace]


def _side(given: Trial | str | Path, study: str, open_study: _Open) -> Side:
    if not isinstance(given, Trial):
        if Path(given).is_dir():
            return read_side(str(given), Path(given))
        given = _named(str(given), study, open_study)
    return read_side(f"{given.study.label}:{given.name}", given.folder)


def _trial(given: Trial | str | Path, side: Side, study: str, open_study: _Open) -> Trial:
    """Return the trial of a side, with the study that knows where its model and data come from."""
    if isinstance(given, Trial):
        return given
    if not Path(given).is_dir():
        return _named(str(given), study, open_study)
    if (record := side.records.get("finetune")) is None:
        raise MissingError(f"{given}: no finetune.json there, and --operations needs its settings")
    return open_study(study_of(side.folder) or study).trial(record.trial)


def _named(given: str, study: str, open_study: _Open) -> Trial:
    label, _, name = given.rpartition(":")
    if Path(name).name.startswith("trial-"):
        raise MissingError(
            f"{given}: no such folder; give that of a trial, or its name: model/optimizer/number"
        )
    return open_study(label or study).trial(name)
