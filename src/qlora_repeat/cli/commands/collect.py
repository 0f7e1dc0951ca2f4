"""`qlora-repeat collect`."""

import click

from qlora_repeat.cli.options import workspace_argument
from qlora_repeat.study.workspace import Workspace


@click.command("collect")
@workspace_argument
@click.option(
    "--include-stale", is_flag=True, help="Also what is stale; each table names it, and what has changed."
)
def command(workspace: Workspace, include_stale: bool) -> None:
    """Gather all records of a study into runs/STUDY/results.jsonl, a row per trial.

    Beside it, statistics.json has the statistics of each arm, and of 8-bit arms beside 32-bit ones.
    What is stale is left out: numbers of other settings, data, code or packages than today's.

    \b
    Example:
      qlora-repeat collect pocket
    """
    from qlora_repeat.records.trial_state import base_damages, explanations, trial_state
    from qlora_repeat.results.arms import group_arms
    from qlora_repeat.results.collect import collect
    from qlora_repeat.results.study_statistics import write_statistics
    from qlora_repeat.results.trial_result import write_results

    results, path = collect(workspace, include_stale=include_stale), workspace.results
    write_results(results, path)
    write_statistics(group_arms(results), workspace.statistics)
    done = sum(row.status == "done" for row in results)
    click.echo(f"{path}: {done} of {len(results)} trials done")
    if stale := [row for row in results if row.status == "stale"]:
        kept = sum(row.measured for row in stale)
        click.echo(
            f"{len(stale)} stale, {kept} of them with values, which tables then say"
            if include_stale
            else f"{len(stale)} stale: `qlora-repeat status` says why, --include-stale takes their values too"
        )
    rows = zip(workspace.trials(), results, strict=True)
    damaged = [trial for trial, row in rows if row.status == "damaged"]
    for line in base_damages(workspace) + explanations(map(trial_state, damaged)):
        click.echo(line, err=True)
