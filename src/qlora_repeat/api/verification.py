"""Run a recorded trial again, and judge how far the re-run agrees."""

import contextlib
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qlora_repeat.analysis.verify.recorded_settings import (
    missing_inputs,
    other_settings,
    other_sources,
)
from qlora_repeat.analysis.verify.rerun import (
    RERUNS,
    VERDICT,
    Recorded,
    compared,
    measure_noise,
    read_recorded,
    rerun_folder,
    retested,
    run_again,
)
from qlora_repeat.analysis.verify.verdict import Scope, Verdict, judge_rerun, tolerance_of, without_rerun
from qlora_repeat.api.progress import Terminal, console
from qlora_repeat.archive.unpack import opened, study_of
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.execution.device import prepare_and_tell
from qlora_repeat.execution.run_study import fetch_missing
from qlora_repeat.records.self_test import self_test_of
from qlora_repeat.records.trial_state import valid_record
from qlora_repeat.render.text.verdict import verdict_json, verdict_text
from qlora_repeat.render.text.verdict_page import verdict_page
from qlora_repeat.study.finding import came_in_archive
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.study import Tolerance
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.files import write_text
from qlora_repeat.system.fingerprint import fingerprint

DEFAULT_STUDY = "pocket"


@dataclass(frozen=True, repr=False)
class Verification:
    """What a re-run says of a recorded trial."""

    name: str
    """The study and the trial."""
    found: Verdict
    left_out: list[str]
    """Other trials of the arm that do not count, and why."""
    page: Path | None
    """The page with both loss curves, where there was a re-run."""

    @property
    def verdict(self) -> str:
        """How far the re-run agrees: one of five words, such as ``bitwise`` or ``different``."""
        return self.found.kind

    def to_json(self) -> str:
        """Return all of it."""
        return verdict_json(self.name, self.found, self.left_out)

    def __str__(self) -> str:
        return verdict_text(self.name, self.found)

    __repr__ = __str__


def verify(
    trial: Trial | str | Path,
    *,
    study: str | None = None,
    runs: str | Path | None = None,
    cache: str | Path | None = None,
    stages: Literal["all", "evaluate"] = "all",
    steps: int | None = None,
    new_seeds: bool = False,
    repeat: int = 1,
    reproducibility_sd: float | None = None,
    scratch: str | Path | None = None,
    quiet: bool = False,
) -> Verification:
    """Run one recorded trial again, in a folder of its own, and say how far it agrees.

    Settings and seeds are those of the trial's records; the study only says where models and data come from.
    Nothing of the recorded trial is changed.

    Args:
        trial: a trial; its name in `study`; its folder, which may be somebody else's; or a trial in an
            archive, as in ``theirs.zip:smollm2-135m/adamw-8bit/3``.
        study: by default the study that came with the archive or the folder; otherwise ``pocket``.
        runs, cache: the folders of results, and of models and data.
        stages: ``evaluate`` merges and tests the recorded adapter, without fine-tuning.
        steps: only fine-tune, and only this many steps.
        new_seeds: draw seeds again where the trial did, which makes another trial of the arm.
        repeat: with `new_seeds`, run it again up to this many times, until statistics can decide. All looks
            share one error rate.
        reproducibility_sd: the SD of the perplexity of single trials in different laboratories (s_R of Table
            S5); two of them may then differ by 2.8 s_R, whatever the other trials of the arm say.
        scratch: the folder of re-runs; by default ``verify`` in the cache.
        quiet: show no progress.

    Raises:
        UsageError: the arguments exclude each other, or the trial is itself a re-run.
        MissingError: a record is missing, or a file is damaged.
        NoGpuError: the study asks for a GPU, and there is none to use; nothing was fetched.
        BusyError: another process runs the same trial again.
        StageError, StoppedError: the re-run failed or was stopped.
    """
    if steps is not None and (stages == "evaluate" or new_seeds):
        raise UsageError("--steps cannot be used with --stages evaluate or --new-seeds")
    if new_seeds and stages == "evaluate":
        raise UsageError("--new-seeds needs a fine-tuning; leave out --stages evaluate")
    if repeat > 1 and not new_seeds:
        raise UsageError("--repeat needs --new-seeds; with the recorded seeds, re-runs repeat each other")
    scope: Scope = "first steps" if steps else "evaluation" if stages == "evaluate" else "whole"
    if reproducibility_sd is not None and scope != "whole":
        raise UsageError("--reproducibility-sd is for a whole re-run; leave out --steps and --stages")
    if reproducibility_sd is not None and not 0 < reproducibility_sd < math.inf:
        raise UsageError(f"--reproducibility-sd {reproducibility_sd:g}: expected a number above 0")
    asked: dict[str, Any] = {"steps": steps, "new_seeds": new_seeds, "scratch": scratch}
    asked |= {"repeat": repeat if repeat > 1 else None, "reproducibility_sd": reproducibility_sd}
    asked |= {"study": study, "runs": runs, "cache": cache}
    words = _command_line(trial, stages=None if stages == "all" else stages, **asked)
    with contextlib.ExitStack() as stack:
        named, folder = _named(stack, trial, study, _path(runs), _path(cache))
        recorded = read_recorded(named, folder, _path(scratch) or named.workspace.cache / RERUNS, scope)
        if steps is not None and steps > recorded.side.last_step:
            raise UsageError(f"--steps {steps}: the trial has {recorded.side.last_step}")
        trusted = not named.workspace.from_archive
        tolerance, notes = tolerance_of(named.study, named.optimizer, trusted=trusted)
        if others := other_settings(named, recorded.side.records):
            notes += [f"The record has other settings than the study file: {', '.join(others)}."]
        name, own = f"{named.study.label}:{named.name}", named.workspace.runs
        question = _Question(
            name,
            scope,
            steps,
            new_seeds,
            repeat,
            reproducibility_sd,
            tolerance,
            notes,
            len(named.workspace.trials()),
            words,
            own,
        )
        shown = Terminal(console(quiet))
        wrong = recorded.contradictions
        lacking = [] if wrong else _lacking(recorded, shown)
        if wrong or lacking:
            verdict = replace(without_rerun(lacking, wrong, tolerance, scope), notes=notes)
            return Verification(name, verdict, recorded.left_out, None)
        found, perplexity = _rerun(recorded, question, shown, [])
        earlier: list[float] = []
        while found.found.is_open and perplexity is not None and len(earlier) + 1 < repeat:
            earlier.append(perplexity)
            found, perplexity = _rerun(recorded, question, shown, earlier)
        return found


@dataclass(frozen=True)
class _Question:
    """What is asked of a recorded trial."""

    name: str
    scope: Scope
    steps: int | None
    new_seeds: bool
    looks: int
    """How many re-runs there are at most."""
    reproducibility: float | None
    tolerance: Tolerance
    notes: list[str]
    trials: int
    """Trials of the study."""
    command_line: str
    runs: Path
    """The user's folder of results."""


def _rerun(
    recorded: Recorded, asked: _Question, shown: Terminal, earlier: list[float]
) -> tuple[Verification, float | None]:
    """Run the trial again, judge it with `earlier` re-runs, and write the verdict as JSON and as a page.

    Returns:
        The verdict, and the perplexity of the re-run.
    """
    number = len(earlier) + 1
    with (
        rerun_folder(recorded, asked.scope, asked.steps, asked.new_seeds, number) as (again, seeds),
        shown.watch_trial(f"re-run {number} of {asked.name}") as progress,
    ):
        side = run_again(recorded, again, seeds, progress, scope=asked.scope, steps=asked.steps)
        diff = compared(recorded.side, side, asked.scope)
        retest = retested(recorded, again, diff, progress)
        judge = partial(
            judge_rerun,
            diff,
            recorded.others,
            asked.tolerance,
            scope=asked.scope,
            retest=retest,
            trials=asked.trials,
            earlier=earlier,
            looks=asked.looks,
            reproducibility=asked.reproducibility,
        )
        verdict = judge()
        if verdict.by_arithmetic:
            noise = measure_noise(
                recorded, again, seeds, side, progress, scope=asked.scope, steps=asked.steps
            )
            verdict = judge(noise=noise)
        page = again.folder / "verdict.html"
        verdict = replace(verdict, notes=asked.notes, self_tests=list(_self_tests(recorded, asked.runs)))
        found = Verification(asked.name, verdict, recorded.left_out, page)
        write_text(again.folder / VERDICT, found.to_json() + "\n")
        ours, theirs = ([step.loss for step in each.steps[1:]] for each in (diff.first, diff.second))
        write_text(page, verdict_page(asked.name, found.found, ours, theirs, asked.command_line))
        return found, side.perplexity


def _self_tests(recorded: Recorded, runs: Path) -> Iterator[str]:
    """Yield the self-tests of the recorded machine and of this one, as far as there are files."""
    there, here = recorded.side.records["finetune"].fingerprint, fingerprint()
    if (found := self_test_of(recorded.side.folder.parents[3], there)) is not None:
        yield f"recorded one, {found.sentence}"
    if (found := self_test_of(runs, here)) is not None:
        yield f"this one, {found.sentence}"


def _named(
    stack: contextlib.ExitStack,
    given: Trial | str | Path,
    study: str | None,
    runs: Path | None,
    cache: Path | None,
) -> tuple[Trial, Path]:
    """Return the trial, and the folder of its records; an archive is unpacked until the stack ends."""
    if isinstance(given, Trial):
        return given, given.folder
    archive, _, name = str(given).rpartition(":")
    if archive.endswith(".zip"):
        unpacked = stack.enter_context(opened(Path(archive)))
        inside = open_workspace(unpacked.study_file, runs=unpacked.runs).trial(name)
        _require_run(inside)
        folder = inside.folder
    elif Path(given).is_dir():
        folder = Path(given)
    elif Path(given).exists() or _looks_like_a_path(str(given)):
        what = "not a trial's folder" if Path(given).exists() else "no such folder or archive"
        raise MissingError(
            f"{given}: {what}; give the folder of a trial, ARCHIVE.zip:MODEL/OPTIMIZER/NUMBER, or a trial's "
            "name with --study"
        )
    else:
        trial = open_workspace(study or DEFAULT_STUDY, runs=runs, cache=cache).trial(str(given))
        _require_run(trial)
        return trial, trial.folder
    if (folder / "average.json").is_file():
        raise MissingError(f"{given}: an average, which has no training to verify; give one of its trials")
    record = valid_record(folder / "finetune.json")
    if record is None:
        raise MissingError(
            f"{given}: has no finetune.json, so there is nothing to verify; give the folder of a finished "
            "trial, or its name with --study"
        )
    own = study or study_of(folder) or DEFAULT_STUDY
    return open_workspace(own, runs=runs, cache=cache).trial(record.trial), folder


def _looks_like_a_path(given: str) -> bool:
    """Return whether this cannot be meant as the name of a trial."""
    return given.startswith(("/", ".", "~")) or given.strip("/").count("/") != 2


def _require_run(trial: Trial) -> None:
    """Check that there is something to verify.

    Raises:
        MissingError: the trial was never run, or not to the end of its fine-tuning.
    """
    if trial.sources or trial.record("finetune").exists() or trial.trace.exists():
        return  # `read_side` refuses averages
    workspace = trial.workspace
    if workspace.has_evidence:
        raise MissingError(f"{trial.name}: the archive has no results of it, so there is nothing to verify")
    begun = "is not finished" if trial.unfinished.exists() else "was not run yet"
    remedy = f"run `{workspace.command('trial', trial=trial.name)}` first"
    if came_in_archive(workspace.file):
        runs = workspace.file.parent.parent / "runs"
        remedy = f"the results of whoever packed the study: --runs {shlex.quote(str(runs))}"
    where = f" in {workspace.runs}" if came_in_archive(workspace.file) else ""
    raise MissingError(f"{trial.name}: {begun}{where}, so there is nothing to verify; {remedy}")


def _lacking(recorded: Recorded, shown: Terminal) -> list[str]:
    """Return what the re-run would lack here, after an attempt to fetch it."""
    again, records = recorded.again, recorded.side.records
    if other := other_sources(again, records):
        return other
    prepare_and_tell(again.study, shown.warn)
    try:
        fetch_missing(again.workspace, shown.tell, [again.model_name])
    except MissingError as error:
        return [str(error)]
    return missing_inputs(again, records)


def _command_line(trial: Trial | str | Path, **options: object) -> str:
    """Return the command that verifies the same."""
    if isinstance(trial, Trial):
        places = trial.workspace
        options |= {"study": places.given, "runs": places.runs, "cache": places.cache}
    words = ["qlora-repeat", "verify", trial.name if isinstance(trial, Trial) else str(trial)]
    for name, value in options.items():
        if value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given else None
