"""Collected results: the rows of a study's trials, with its name, as a sequence and as a pandas table."""

import functools
import html
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from qlora_repeat.api.listed import Listed
from qlora_repeat.results import trial_result
from qlora_repeat.results.arms import Arm, group_arms
from qlora_repeat.results.published import read_published
from qlora_repeat.results.trial_result import TrialResult
from qlora_repeat.study.finding import portable_name
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.package_data import kit_path
from qlora_repeat.system.printable import one_line, printable, say

if TYPE_CHECKING:
    import pandas

    from qlora_repeat.analysis.attribution.measurements import Measurements

_SHOWN = [
    "model", "optimizer", "trial", "status", "perplexity", "final_loss", "train_seconds", "adapter_digest",
]  # fmt: skip
"""The columns that a notebook shows."""
_DTYPES = {int: "Int64", float: "float64", bool: "boolean"}
"""How pandas keeps these with a missing value; anything else is an object."""


@dataclass(frozen=True, repr=False)
class Results(Listed[TrialResult]):
    """The results of the trials of a study, one row for each."""

    label: str
    """The study with its profile, as the folder of its results is named; ``published`` for the paper."""
    study: Workspace | None = None
    """The study, where its records are at hand."""

    @property
    def name(self) -> str:
        """The study as others can name it in commands."""
        return portable_name(self.study.given) if self.study else self.label

    def arms(self) -> list[Arm]:
        """Group the rows by model and optimizer.

        Raises:
            UsageError: two rows are of the same trial.
        """
        return group_arms(self)

    def experiments(self) -> "list[Measurements]":
        """Read the study's attribution experiments; one that cannot be read is named on standard error."""
        from qlora_repeat.analysis.attribution.measurements import read_experiments

        if self.study is None:
            return []
        return read_experiments(self.label, self.study.runs, functools.partial(say, error=True))

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each trial; its columns are the fields of `TrialResult`."""
        import pandas

        columns = {}
        for name, hint in get_type_hints(TrialResult).items():
            kind = get_args(hint)[0] if get_origin(hint) in (Union, UnionType) else hint
            values = [getattr(row, name) for row in self]
            columns[name] = pandas.Series(values, dtype=_DTYPES.get(kind, "object"))
        return pandas.DataFrame(columns)

    def __repr__(self) -> str:
        done = sum(row.measured for row in self)
        return f"<Results of {one_line(self.label)}: {done} of {len(self)} trials with values>"

    def _repr_html_(self) -> str:
        shown: Any = self.to_pandas()[_SHOWN]
        table: str = shown.to_html(index=False, na_rep="–", max_rows=60)
        return printable(f"{table}<p>{html.escape(repr(self))}</p>")


def read_results(path: str | Path, *, label: str | None = None) -> Results:
    """Read a file of collected results, such as ``runs/pocket/results.jsonl``.

    Args:
        label: how to call the study; by default as the first row does.

    Raises:
        MissingError: there is no such file.
        UsageError: a line is not a row of collected results; names the line and the key.
    """
    rows = trial_result.read_results(Path(path))
    return Results(rows, label or (rows[0].study if rows else Path(path).stem))


def paper_results() -> Results:
    """Return the numbers that the paper prints: 56 trials."""
    return Results(read_published(kit_path("paper/published")), PUBLISHED)


def results_of(given: Results | Workspace | str | Path, runs: Path | None = None) -> Results:
    """Return results as they are, or read those that are named.

    Args:
        given: results; a study, whose collected results are read; its name; ``published`` for the numbers
            of the paper; or the path of a results file, which ends in ``.jsonl``.
        runs: the folder of results, where a study is named.

    Raises:
        MissingError: there is no such study, or it has no collected results.
        UsageError: the file is not a study, or not one of results.
    """
    if isinstance(given, Results):
        return given
    if isinstance(given, Workspace):
        rows = trial_result.read_results(given.results, given.command("collect"))
        return Results(rows, given.study.label, given)
    if str(given) == PUBLISHED:
        return paper_results()
    if str(given).endswith(".jsonl"):
        return read_results(given)
    return results_of(open_workspace(str(given), runs=runs))
