"""`qlora-repeat verify`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from qlora_repeat.cli.options import (
    cache_option,
    console,
    output,
    runs_option,
    silence_libraries,
    study_option,
    verbosity_options,
)

if TYPE_CHECKING:
    from qlora_repeat.analysis.verify.rerun import Recorded
    from qlora_repeat.analysis.verify.verdict import Scope, Verdict
    from qlora_repeat.cli.progress import Terminal
    from qlora_repeat.study.study import Tolerance
    from qlora_repeat.study.trial import Trial

_WEAKEST = ("bitwise", "within tolerance", "statistically consistent")


@click.command("verify")
@click.argument("trial")
@click.option(
    "--stages",
    type=click.Choice(["all", "evaluate"]),
    default="all",
    show_default=True,
    help="evaluate: merge and test the recorded adapter, without fine-tuning.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Only the first N steps of the fine-tuning: quick, and blind to what comes after.",
    metavar="N",
)
@click.option(
    "--new-seeds", is_flag=True, help="Draw seeds anew where the trial did: another trial of the arm."
)
@click.option(
    "--accept",
    type=click.Choice(_WEAKEST),
    default=_WEAKEST[0],
    show_default=True,
    help="The weakest verdict that ends with exit code 0.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of re-runs and their reports.  [default: verify/ in the cache]",
)
@study_option
@runs_option
@cache_option
@verbosity_options
@click.pass_context
def command(
    context: click.Context,
    trial: str,
    stages: str,
    steps: int | None,
    new_seeds: bool,
    accept: str,
    as_json: bool,
    scratch: Path | None,
    study_file: str,
    runs: Path,
    cache: Path,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run one recorded trial again, and say how far it agrees.

    TRIAL is one of --study in --runs; or a trial's folder, which may be somebody else's; or in an archive, as
    in theirs.zip:smollm2-135m/adamw-8bit/3. Settings and seeds are those of its records; only where models
    and data come from is told by the study file: of an archive, or a folder that one was unpacked to, by its
    own unless --study says otherwise. Nothing of the recorded trial is changed. Exit codes: 0 bitwise, 7
    different, 8 within tolerance, 9 statistically consistent, 10 inconclusive.

    \b
    Example:
      qlora-repeat verify smollm2-135m/adamw-8bit/3
    """
    from qlora_repeat.errors import UsageError

    if steps is not None and (stages == "evaluate" or new_seeds):
        raise UsageError("--steps goes neither with --stages evaluate nor with --new-seeds")
    if new_seeds and stages == "evaluate":
        raise UsageError("--new-seeds needs a fine-tuning; leave out --stages evaluate")
    silence_libraries(verbose)
    scope: Scope = "first steps" if steps else "evaluation" if stages == "evaluate" else "whole"
    named, folder = _named(context, trial, study_file, runs, cache)

    from qlora_repeat.analysis.verify.rerun import RERUNS, read_recorded
    from qlora_repeat.analysis.verify.verdict import tolerance_of, without_rerun
    from qlora_repeat.cli.colors import VERDICTS, with_colored
    from qlora_repeat.cli.progress import Terminal
    from qlora_repeat.render.text.verdict import exit_code, verdict_json, verdict_text

    recorded = read_recorded(named, folder, scratch or cache / RERUNS, scope)
    if steps is not None and steps > recorded.side.last_step:
        raise UsageError(f"--steps {steps}: the trial has {recorded.side.last_step}")
    name, tolerance = f"{named.study.label}:{named.name}", tolerance_of(named.study, named.optimizer)
    wrong, shown = recorded.contradictions, Terminal(console(quiet))
    lacking = [] if wrong else _lacking(recorded, shown)
    page = None
    if wrong or lacking:
        verdict = without_rerun(lacking, wrong, tolerance, scope)
    else:
        rerun = Rerun(name, scope, steps, new_seeds, tolerance, _command_line(context))
        verdict, page = rerun.verdict(recorded, shown)
    if as_json:
        click.echo(verdict_json(name, verdict, recorded.left_out))
    else:
        output().print(with_colored(verdict_text(name, verdict), VERDICTS, most=1))
        if page is not None:
            click.echo(f"\n{page}: both loss curves")
    context.exit(exit_code(verdict, accept))


def _named(
    context: click.Context, given: str, study_file: str, runs: Path, cache: Path
) -> "tuple[Trial, Path]":
    """The trial, and the folder of its records.

    An archive is unpacked for as long as the command runs.
    """
    from qlora_repeat.archive.unpack import opened, study_of
    from qlora_repeat.errors import MissingError
    from qlora_repeat.records.record import read_record
    from qlora_repeat.study.loading import open_workspace

    archive, _, name = given.rpartition(":")
    if archive.endswith(".zip"):
        unpacked = context.with_resource(opened(Path(archive)))
        folder = open_workspace(unpacked.study_file, runs=unpacked.runs).trial(name).folder
    elif Path(given).is_dir():
        folder = Path(given)
    else:
        trial = open_workspace(study_file, runs=runs, cache=cache).trial(given)
        return trial, trial.folder
    record = read_record(folder / "finetune.json")
    if record is None:
        raise MissingError(
            f"{given}: no finetune.json there; give the folder of a finished trial, or its name"
        )
    if all(
        context.get_parameter_source(name) == ParameterSource.DEFAULT for name in ("study_file", "randomness")
    ):
        study_file = study_of(folder) or study_file
    return open_workspace(study_file, runs=runs, cache=cache).trial(record.trial), folder


def _lacking(recorded: "Recorded", shown: "Terminal") -> list[str]:
    """What the re-run would lack here, after an attempt to fetch it."""
    from qlora_repeat.analysis.verify.recorded_settings import missing_inputs, other_sources
    from qlora_repeat.errors import MissingError
    from qlora_repeat.execution.run_study import fetch_missing

    again, records = recorded.again, recorded.side.records
    if other := other_sources(again, records):
        return other
    try:
        fetch_missing(again.workspace, shown.tell, [again.model_name])
    except MissingError as error:
        return [str(error)]
    return missing_inputs(again, records)


@dataclass(frozen=True)
class Rerun:
    """A re-run that is asked for."""

    name: str
    scope: "Scope"
    steps: int | None
    new_seeds: bool
    tolerance: "Tolerance"
    command_line: str

    def verdict(self, recorded: "Recorded", shown: "Terminal") -> "tuple[Verdict, Path]":
        """Runs it, and writes verdict and page to its folder; returns the verdict and the page's path."""
        from qlora_repeat.analysis.verify.rerun import VERDICT, compared, rerun_folder, run_again
        from qlora_repeat.analysis.verify.verdict import judge_rerun
        from qlora_repeat.render.text.verdict import verdict_json
        from qlora_repeat.render.text.verdict_page import verdict_page
        from qlora_repeat.system.files import write_text

        with (
            rerun_folder(recorded, self.scope, self.steps, self.new_seeds) as (again, seeds),
            shown.watch_trial(f"re-run of {self.name}") as progress,
        ):
            side = run_again(recorded, again, seeds, progress, scope=self.scope, steps=self.steps)
            diff, unlike_tests = compared(recorded.side, side, self.scope)
            verdict = judge_rerun(
                diff, recorded.others, self.tolerance, scope=self.scope, unlike_tests=unlike_tests
            )
            write_text(again.folder / VERDICT, verdict_json(self.name, verdict, recorded.left_out) + "\n")
            ours, theirs = ([step.loss for step in each.steps[1:]] for each in (diff.first, diff.second))
            page = again.folder / "verdict.html"
            write_text(page, verdict_page(self.name, verdict, ours, theirs, self.command_line))
        return verdict, page


def _command_line(context: click.Context) -> str:
    """What was typed, as it can be typed again."""
    words = ["qlora-repeat", "verify", str(context.params["trial"])]
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        value = context.params.get(option.name or "")
        if not isinstance(option, click.Option) or given is None or given.name == "DEFAULT":
            continue
        words += [option.opts[-1]] if option.is_flag else [option.opts[-1], str(value)]
    return shlex.join(words)
