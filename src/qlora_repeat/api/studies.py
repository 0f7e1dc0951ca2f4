"""Find a study, fetch what it needs, run its trials, and collect their results."""

from collections.abc import Collection, Sequence
from pathlib import Path

from qlora_repeat.api.results import Results
from qlora_repeat.errors import UsageError
from qlora_repeat.results.trial_result import write_results
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.selection import select
from qlora_repeat.study.trial import ALL_STAGES, Stage
from qlora_repeat.study.workspace import Workspace


def load_study(
    study: str | Path, *, runs: str | Path | None = None, cache: str | Path | None = None
) -> Workspace:
    """Load a study, and find its results and what was fetched for it.

    Args:
        study: a name such as ``pocket``, or the path of a TOML file; a profile of randomness and more may
            follow after @, as in ``pocket@bitwise``.
        runs: the folder of results; by default $QLORA_REPEAT_RUNS or ``runs``.
        cache: the folder of models and data; by default $QLORA_REPEAT_CACHE or the user's cache folder.

    Raises:
        MissingError: there is no such study; names those that there are.
        UsageError: the file is not a study; names the key.
    """
    return open_workspace(str(study), runs=Path(runs) if runs else None, cache=Path(cache) if cache else None)


def opened(study: Workspace | str | Path) -> Workspace:
    """Return a study that was loaded already, or load it."""
    return study if isinstance(study, Workspace) else load_study(study)


def fetch(study: Workspace | str, *, models: Collection[str] = (), quiet: bool = False) -> None:
    """Fetch the models and data of a study, or of some of its models, and verify their checksums.

    Raises:
        MissingError: something cannot be fetched, or has other bytes than expected.
        UsageError: the study has no such model.
    """
    from qlora_repeat.assets.fetch import fetch

    fetch(opened(study), (lambda line: None) if quiet else print, models)


def run(
    study: Workspace | str,
    *,
    jobs: int | None = None,
    stages: Sequence[Stage] | None = None,
    only: Collection[str] = (),
    trials: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Results:
    """Run every trial that is not done, each in its own process, and collect the results.

    What is missing is fetched first. Interrupt it whenever you like: the same call resumes.

    Args:
        jobs: how many trials run at a time; by default one on each GPU or, without GPUs, as many as there
            are cores for.
        stages: only these; the results are then returned, and not written to the results file.
        only: models, or arms as ``model/optimizer``; the others can be run later.
        trials: only the first trials of each arm; the others can be run later.
        force: also run the stages that are done.
        quiet: show nothing.

    Raises:
        UsageError: there is no such stage or arm, or an arm has fewer trials.
        NoGpuError: the study asks for a GPU, and there is none to use; nothing was fetched.
        StageError: some trials failed; the others are done, and `collect` returns their results.
        BusyError: all are done, except those that another process works on.
        StoppedError, KeyboardInterrupt: this process was asked to stop; what is done is kept.
    """
    from qlora_repeat.api.progress import Terminal, console
    from qlora_repeat.execution.run_study import run_study
    from qlora_repeat.system.signals import stop_on_signals

    if unknown := [stage for stage in stages or () if stage not in ALL_STAGES]:
        raise UsageError(f"{unknown[0]!r} is not a stage; expected {', '.join(ALL_STAGES)}")
    workspace = opened(study)
    chosen = [stage for stage in ALL_STAGES if stages is None or stage in stages]
    selected = select(workspace, only, trials)
    with stop_on_signals(keyboard=True):
        run_study(workspace, chosen, Terminal(console(quiet)), jobs=jobs, force=force, chosen=selected)
    if chosen == [*ALL_STAGES]:
        return collect(workspace)
    return _gathered(workspace)


def collect(study: Workspace | str, *, include_stale: bool = False) -> Results:
    """Gather the records of a study into its results file, a row for each trial, and its statistics.

    Args:
        include_stale: also take the values of trials whose settings, data, code or packages have changed.
    """
    from qlora_repeat.results.study_statistics import write_statistics

    workspace = opened(study)
    results = _gathered(workspace, include_stale)
    write_results(results.items, workspace.results)
    write_statistics(results.arms(), workspace.statistics)
    return results


def _gathered(workspace: Workspace, include_stale: bool = False) -> Results:
    from qlora_repeat.results.collect import collect

    rows = collect(workspace, include_stale=include_stale)
    return Results(rows, workspace.study.label, workspace)
