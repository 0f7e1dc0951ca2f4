"""`qlora-repeat collect`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from qlora_repeat.cli.options import workspace_argument
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.printable import say

if TYPE_CHECKING:
    from qlora_repeat.api.results import Results


@click.command("collect")
@workspace_argument
@click.option(
    "--include-stale", is_flag=True, help="Also stale trials; each table names them, and what changed."
)
def command(workspace: Workspace, include_stale: bool) -> None:
    """Collect all records of a study in runs/STUDY/results.jsonl, one row per trial.

    statistics.json, next to it, has the statistics of each arm, and compares 8-bit with 32-bit arms. Stale
    trials, whose settings, data, code or packages have changed, are left out.

    \b
    Example:
      qlora-repeat collect pocket
    """
    from qlora_repeat.api.studies import collect
    from qlora_repeat.records.trial_state import base_damages, explanations, trial_state

    results = collect(workspace, include_stale=include_stale)
    for line in summary(results, include_stale):
        say(line)
    rows = zip(workspace.trials(), results, strict=True)
    damaged = [trial for trial, row in rows if row.status == "damaged"]
    for line in base_damages(workspace) + explanations(map(trial_state, damaged)):
        say(line, error=True)


def summary(results: "Results", include_stale: bool = False) -> Iterator[str]:
    """Yield how many trials of a study are done, whether it is cut short, and how many are stale."""
    from qlora_repeat.results.scope import banner

    done = sum(row.status == "done" for row in results)
    assert results.study is not None, "they were collected from its records"
    yield f"{results.study.results}: {done} of {len(results)} trials done"
    if stale := [row for row in results if row.status == "stale"]:
        kept, status = sum(row.measured for row in stale), results.study.command("status")
        yield (
            f"{len(stale)} stale, {kept} of them with values; tables will name them"
            if include_stale
            else f"{len(stale)} stale: `{status}` says why; --include-stale also collects them"
        )
    if above := banner(results.arms()):
        yield above
