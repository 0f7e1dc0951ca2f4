"""What several subcommands share: options, and looking up what they name."""

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from qlora_repeat.api.places import BUILD
from qlora_repeat.errors import UsageError
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.study.trial import STAGES, Stage

if TYPE_CHECKING:
    from qlora_repeat.api.results import Results


def study_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """STUDY: a name in studies/, or the path of a TOML file; with --randomness."""
    argument = click.argument("study_file", metavar="[STUDY]", default="pocket", envvar="STUDY")
    return argument(_randomness_option(command))


def _randomness_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--randomness: the same as @PROFILE after the study's name, which is how the command gets it."""

    @functools.wraps(command)
    def named(*args: Any, study_file: str, randomness: str | None, **kwargs: Any) -> Any:
        return command(*args, study_file=f"{study_file}@{randomness}" if randomness else study_file, **kwargs)

    return click.option(
        "--randomness",
        metavar="PROFILE",
        envvar="RANDOMNESS",
        help="Another of the study's profiles, such as bitwise; as STUDY@PROFILE.  [default: the study's]",
    )(named)


def study_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--study, for subcommands whose argument is a trial; with --randomness."""
    command = _randomness_option(command)
    return click.option(
        "--study",
        "study_file",
        default="pocket",
        envvar="STUDY",
        show_default=True,
        help="Name, or path of a TOML file.",
    )(command)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--runs: where results go."""
    return click.option(
        "--runs",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="QLORA_REPEAT_RUNS",
        help="Folder of results.  [default: runs]",
    )(command)


def cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--cache: where models and data are kept."""
    return click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of models and data.  [default: $QLORA_REPEAT_CACHE or ~/.cache/qlora-repeat]",
    )(command)


def workspace_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """STUDY, --randomness, --runs and --cache: the command gets a `workspace`."""
    return study_argument(_opened(command))


def workspace_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--study, --randomness, --runs and --cache: the command gets a `workspace`."""
    return study_option(_opened(command))


def _opened(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def opened(*args: Any, study_file: str, runs: Path | None, cache: Path | None, **kwargs: Any) -> Any:
        return command(*args, workspace=open_workspace(study_file, runs=runs, cache=cache), **kwargs)

    return runs_option(cache_option(opened))


def out_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--out: where tables and figures are."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help=f"Folder.  [default: {BUILD}/STUDY]",
    )(command)


def compare_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--compare: other results that tables also compare with."""
    return click.option(
        "--compare",
        metavar="NAME",
        help="Also compare with: `published` (the paper's numbers), another study, or a results file "
        "(.jsonl).",
    )(command)


def results_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--runs and --results: what tables and figures are made of; and --out."""
    command = click.option(
        "--results",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Collected results.  [default: of the study]",
    )(out_option(command))
    return runs_option(command)


def chosen_results(study_file: str, runs: Path | None, file: Path | None) -> "Results":
    """Return the collected results of a study, those of a file, or the paper's numbers.

    Raises:
        UsageError: a results file is given for the paper's numbers.
    """
    from qlora_repeat.api.results import read_results, results_of

    if file is None:
        return results_of(study_file, runs)
    if study_file == PUBLISHED:
        raise UsageError(f"{PUBLISHED} has its own numbers; leave out --results, or name a study")
    return read_results(file, label=Path(study_file).stem)


class _Stages(click.ParamType[list[Stage]]):
    """Stages by name, in a list with commas; in the order of a trial."""

    name = "STAGE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Stage]:
        named = {name.strip() for name in value.split(",")} if isinstance(value, str) else set(value)
        if unknown := sorted(named - {*STAGES}):
            self.fail(f"{unknown[0]!r} is not a stage; there are {', '.join(STAGES)}", param, ctx)
        return [stage for stage in STAGES if stage in named]


def stages_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--stages: those to run."""
    return click.option(
        "--stages",
        type=_Stages(),
        default=",".join(STAGES),
        show_default=True,
        help="Only these. What one of them needs must be done.",
    )(command)


def jobs_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--jobs: how many of these run at a time."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        help=f"{what} at a time.  [default: one a GPU, or cores / threads]",
    )


def verbosity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--quiet and --verbose."""
    command = click.option("-v", "--verbose", is_flag=True, help="Also show what the libraries print.")(
        command
    )
    return click.option("-q", "--quiet", is_flag=True, help="Show errors only.")(command)


def output() -> Console:
    """Standard output, where words are in colors if it is a terminal; lines are never wrapped or cut."""
    return Console(soft_wrap=True, markup=False, emoji=False, highlight=False)


@contextlib.contextmanager
def byte_progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes for the block, where a person watches; yields what is told how many of how many."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from qlora_repeat.api.progress import console

    out = console(quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_interactive) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def silence_libraries(verbose: bool, *, downloads: bool = False) -> None:
    """Keeps warnings, logs and progress bars of libraries off the terminal, unless they are asked for.

    With `downloads`, the bars of a hub's downloads stay where a person watches.
    """
    os.environ["MPLBACKEND"] = "agg"  # matplotlib refuses to start with a backend that it does not know
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it logs, as an error, what it then raises
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not (downloads and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
