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

from qlora_repeat.api.console import PrintableConsole
from qlora_repeat.api.places import BUILD
from qlora_repeat.errors import UsageError
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import PUBLISHED
from qlora_repeat.study.trial import ALL_STAGES, Stage

if TYPE_CHECKING:
    from qlora_repeat.api.results import Results


Decorator = Callable[[Any], Any]
_FOLDER = click.Path(file_okay=False, path_type=Path)

runs_option: Decorator = click.option(
    "--runs", type=_FOLDER, envvar="QLORA_REPEAT_RUNS", help="Folder of results.  [default: runs]"
)
cache_option: Decorator = click.option(
    "--cache",
    type=_FOLDER,
    help="Folder of models and data.  [default: $QLORA_REPEAT_CACHE or ~/.cache/qlora-repeat]",
)
out_option: Decorator = click.option("--out", type=_FOLDER, help=f"Folder.  [default: {BUILD}/STUDY]")
compare_option: Decorator = click.option(
    "--compare",
    metavar="NAME",
    help="Also compare with: `published` (the paper's numbers), another study, or a results file (.jsonl).",
)
results_option: Decorator = click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Collected results.  [default: of the study]",
)
quiet_option: Decorator = click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
_verbose_option: Decorator = click.option(
    "-v", "--verbose", is_flag=True, help="Also show what the libraries print."
)
_randomness_option: Decorator = click.option(
    "--randomness",
    metavar="PROFILE",
    envvar="RANDOMNESS",
    help="Another of the study's profiles, such as bitwise; the same as STUDY@PROFILE."
    "  [default: the study's]",
)
_study_argument: Decorator = click.argument("study_file", metavar="[STUDY]", default="pocket", envvar="STUDY")
_study_option: Decorator = click.option(
    "--study",
    "study_file",
    default="pocket",
    envvar="STUDY",
    show_default=True,
    help="Name, or path of a TOML file.",
)


def _with(*decorators: Decorator) -> Decorator:
    """Return one decorator that applies these, the first outermost."""
    return lambda command: functools.reduce(lambda inner, each: each(inner), reversed(decorators), command)


def _named(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass --randomness to a command as @PROFILE after the name of the study."""

    @functools.wraps(command)
    def named(*args: Any, study_file: str, randomness: str | None, **kwargs: Any) -> Any:
        return command(*args, study_file=f"{study_file}@{randomness}" if randomness else study_file, **kwargs)

    return named


def _opened(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a study, --runs and --cache to a command as a `workspace`."""

    @functools.wraps(command)
    def opened(*args: Any, study_file: str, runs: Path | None, cache: Path | None, **kwargs: Any) -> Any:
        return command(*args, workspace=open_workspace(study_file, runs=runs, cache=cache), **kwargs)

    return opened


study_argument = _with(_study_argument, _randomness_option, _named)
"""STUDY, a name or the path of a TOML file, and --randomness."""
study_option = _with(_study_option, _randomness_option, _named)
"""--study and --randomness, for subcommands whose argument is a trial."""
workspace_argument = _with(study_argument, runs_option, cache_option, _opened)
"""STUDY, --randomness, --runs and --cache: the command gets a `workspace`."""
workspace_option = _with(study_option, runs_option, cache_option, _opened)
"""--study, --randomness, --runs and --cache: the command gets a `workspace`."""
results_options = _with(runs_option, results_option, out_option)
"""--runs and --results, from which tables and figures are made; and --out."""
verbosity_options = _with(quiet_option, _verbose_option)
"""--quiet and --verbose."""


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
    """Stages by name, separated by commas; returned in the order of a trial."""

    name = "STAGE,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Stage]:
        named = {name.strip() for name in value.split(",")} if isinstance(value, str) else set(value)
        if unknown := sorted(named - {*ALL_STAGES}):
            self.fail(f"{unknown[0]!r} is not a stage; expected {', '.join(ALL_STAGES)}", param, ctx)
        return [stage for stage in ALL_STAGES if stage in named]


stages_option: Decorator = click.option(
    "--stages",
    type=_Stages(),
    default=",".join(ALL_STAGES),
    show_default=True,
    help="Run only these stages. Those that they need must be done.",
)


def _choose_cpu(context: click.Context, option: click.Parameter, chosen: bool) -> None:
    from qlora_repeat.system.gpus import choose_cpu, cpu_is_chosen

    if chosen or cpu_is_chosen():
        choose_cpu()


cpu_option: Decorator = click.option(
    "--cpu",
    is_flag=True,
    expose_value=False,
    callback=_choose_cpu,
    help="Run on the CPU, even if there is a GPU or the study asks for one.",
)


def _choose_tracker(context: click.Context, option: click.Parameter, chosen: str | None) -> None:
    from qlora_repeat.execution.tracking import choose_tracker

    if chosen:
        choose_tracker(chosen)


track_option: Decorator = click.option(
    "--track",
    metavar="TRACKER",
    envvar="QLORA_REPEAT_TRACK",
    expose_value=False,
    callback=_choose_tracker,
    help="Also show each step in tensorboard, trackio, mlflow or wandb; this changes no bits.",
)
only_option: Decorator = click.option(
    "--only",
    metavar="MODEL[/OPTIMIZER]",
    multiple=True,
    help="Run only trials of this model, or of this arm; repeatable.  [default: all]",
)
trials_option: Decorator = click.option(
    "--trials",
    type=int,
    metavar="N",
    help="Run only the first N trials of each arm, and N tests of each base.  [default: all]",
)


def jobs_option(what: str) -> Decorator:
    """Return --jobs: how many trials, say, run at the same time."""
    return click.option(
        "--jobs",
        type=click.IntRange(1),
        help=f"{what} at a time.  [default: one per GPU, or cores / threads]",
    )


def output() -> PrintableConsole:
    """Return standard output, with colors if it is a terminal; lines are never wrapped or cut."""
    return PrintableConsole(soft_wrap=True, markup=False, emoji=False, highlight=False)


@contextlib.contextmanager
def byte_progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of bytes in a terminal; yield the function that updates it with done and total."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from qlora_repeat.api.progress import console

    out = console(quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_interactive) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def silence_libraries(verbose: bool, *, downloads: bool = False) -> None:
    """Hide warnings, logs and progress bars of libraries, unless `verbose`.

    With `downloads`, progress bars of downloads from a hub stay in a terminal.
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
