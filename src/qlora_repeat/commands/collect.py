"""`qlora-repeat collect`."""

from pathlib import Path

import click

from qlora_repeat.commands.options import cache_option, runs_option, study_argument


@click.command("collect")
@study_argument
@runs_option
@cache_option
def command(study_file: str, runs: Path, cache: Path) -> None:
    """Gather all records of a study into runs/STUDY/results.jsonl, a row per trial.

    \b
    Example:
      qlora-repeat collect pocket
    """
    from qlora_repeat.collect import collect
    from qlora_repeat.results import write_results
    from qlora_repeat.status import base_damages, explanations
    from qlora_repeat.study import load_study
    from qlora_repeat.trial import all_trials, results_path

    study = load_study(study_file)
    results = collect(study, runs, cache)
    path = results_path(study, runs)
    write_results(results, path)
    done = sum(row.status == "done" for row in results)
    click.echo(f"{path}: {done} of {len(results)} trials done")
    damaged = {(row.model, row.optimizer, row.trial) for row in results if row.status == "damaged"}
    trials = [
        trial
        for trial in all_trials(study, runs)
        if (trial.model_name, trial.optimizer, trial.number) in damaged
    ]
    for line in base_damages(study, runs, cache) + explanations(trials, cache):
        click.echo(line, err=True)
