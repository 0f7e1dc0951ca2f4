"""`qlora-repeat collect`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import cache_option, runs_option, study_argument


@click.command("collect")
@study_argument
@runs_option
@cache_option
@click.option(
    "--include-stale", is_flag=True, help="Also what is stale; each table names it, and what has changed."
)
def command(study_file: str, runs: Path, cache: Path, include_stale: bool) -> None:
    """Gather all records of a study into runs/STUDY/results.jsonl, a row per trial.

    Beside it, statistics.json has the statistics of each arm, and of 8-bit arms beside 32-bit ones.
    What is stale is left out: numbers of other settings, data, code or packages than today's.

    \b
    Example:
      qlora-repeat collect pocket
    """
    from qlora_repeat.records.status import base_damages, explanations, standings
    from qlora_repeat.results.arm_statistics import write_statistics
    from qlora_repeat.results.arms import group_arms
    from qlora_repeat.results.collect import collect
    from qlora_repeat.results.trial_result import write_results
    from qlora_repeat.study.loading import load_study
    from qlora_repeat.study.trial import all_trials, results_path, statistics_path

    study = load_study(study_file)
    results = collect(study, runs, cache, include_stale=include_stale)
    path = results_path(study, runs)
    write_results(results, path)
    write_statistics(group_arms(results), statistics_path(study, runs))
    done = sum(row.status == "done" for row in results)
    click.echo(f"{path}: {done} of {len(results)} trials done")
    if stale := [row for row in results if row.status == "stale"]:
        kept = sum(row.measured for row in stale)
        click.echo(
            f"{len(stale)} stale, {kept} of them with values, which tables then say"
            if include_stale
            else f"{len(stale)} stale: `qlora-repeat status` says why, --include-stale takes their values too"
        )
    rows = zip(all_trials(study, runs), results, strict=True)
    damaged = [trial for trial, row in rows if row.status == "damaged"]
    for line in base_damages(study, runs, cache) + explanations(standings(damaged, cache)):
        click.echo(line, err=True)
