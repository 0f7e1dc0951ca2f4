"""Run trials of a recorded study again, some or all, and say how much of the study could still be false."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qlora_repeat.analysis.verify.rerun import RERUNS
from qlora_repeat.analysis.verify.sampling import CONFIDENCE, draw_trials, most_false
from qlora_repeat.analysis.verify.verdict import VerdictKind
from qlora_repeat.api.verification import verify
from qlora_repeat.archive.unpack import opened
from qlora_repeat.errors import BusyError, KitError, MissingError, NoGpuError, StoppedError, UsageError
from qlora_repeat.records.code_digest import code_digest
from qlora_repeat.render.html import render_html
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import ALL_STAGES, Trial
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.files import delete_folder, write_json, write_text
from qlora_repeat.system.hashing import file_digest, json_digest
from qlora_repeat.system.private_folder import is_private, make_private
from qlora_repeat.system.typed_json import read_as


@dataclass(frozen=True)
class VerifiedTrial:
    """The verdict on one trial."""

    name: str
    scope: str
    """``whole`` or ``first steps``."""
    verdict: VerdictKind
    why: str


_VERIFIED = TypeAdapter(VerifiedTrial)


@dataclass(frozen=True, repr=False)
class StudyVerification:
    """What re-runs say of a recorded study."""

    study: str
    recorded: int
    """The number of trials that the study claims."""
    seed: int | None
    """The seed with which trials were drawn; None if all were run again."""
    trials: list[VerifiedTrial]
    page: Path

    @property
    def sentences(self) -> list[str]:
        """What each part of the design excludes."""
        return [*self._of("whole"), *self._of("first steps")]

    def _of(self, scope: str) -> Iterator[str]:
        checked = [each for each in self.trials if each.scope == scope]
        if not checked:
            return
        bad = [each for each in checked if each.verdict in ("different", "inconclusive")]
        different = sum(each.verdict == "different" for each in bad)
        drawn, wrong, all_of = len(checked), len(bad), self.recorded
        left = most_false(all_of, drawn, wrong)
        what = "were run again" if scope == "whole" else "were run again for their first steps"
        open_ones = f", {wrong - different} could not be judged" if wrong > different else ""
        drawn_by = "" if drawn == all_of else f", drawn with seed {self.seed}"
        yield (
            f"{drawn} of {all_of} trials {what}{drawn_by}: {different} are different{open_ones}. "
            f"So at {CONFIDENCE:.0%} confidence, at most {left} of the {all_of} are false"
            + (" in their first steps." if scope == "first steps" else ".")
        )
        if scope == "first steps":
            yield "First steps exclude other data, seeds, initial adapters and updates; not what comes later."

    def to_json(self) -> str:
        """Return all of it."""
        content = {
            "study": self.study,
            "recorded_trials": self.recorded,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "sentences": self.sentences,
            "trials": [dataclasses.asdict(each) for each in self.trials],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def __str__(self) -> str:
        width = max(len(each.name) for each in self.trials)
        rows = [f"{each.name:<{width}}  {each.scope:<11}  {each.verdict}" for each in self.trials]
        return "\n".join([*rows, "", *self.sentences])

    __repr__ = __str__


def verify_study(
    study: Workspace | str | Path,
    *,
    sample: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    own_study: str | None = None,
    runs: str | Path | None = None,
    cache: str | Path | None = None,
    scratch: str | Path | None = None,
    quiet: bool = False,
) -> StudyVerification:
    """Run recorded trials of a study again, one after the other, and bound how many could still be false.

    Interrupt it whenever you like: the same call goes on after the last trial that has a verdict.

    Args:
        study: a study, its name, or an archive of `pack`.
        sample: how many trials to run again completely, drawn at random; by default all.
        seed: draws the sample; choose it after the study was published, so that nobody could foresee it.
        steps: also run the first steps, this many, of the trials that are not drawn.
        own_study: for an archive, your own study file, which says where models and data come from.
        runs, cache: the folders of results, and of models and data.
        scratch: the folder of re-runs; by default ``verify`` in the cache.
        quiet: show no progress.

    Raises:
        UsageError: there are fewer recorded trials than `sample`, or `seed` is missing.
        MissingError: no trial is recorded.
        BusyError, NoGpuError, StoppedError: as `verify`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(study, Workspace):
            workspace = study
        elif str(study).endswith(".zip"):
            unpacked = stack.enter_context(opened(Path(study)))
            workspace = open_workspace(
                unpacked.study_file, runs=unpacked.runs, cache=Path(cache) if cache else None
            )
        else:
            workspace = open_workspace(
                str(study), runs=Path(runs) if runs else None, cache=Path(cache) if cache else None
            )
        recorded = {each.name: each for each in workspace.trials() if each.record("finetune").is_file()}
        if not recorded:
            raise MissingError(f"study {workspace.study.label}: no trial has a record to verify")
        if sample is not None and seed is None:
            raise UsageError("--sample needs --seed: choose any number, after you have received the study")
        names = list(recorded)
        whole = names if sample is None else draw_trials(names, sample, seed or 0)
        folder = Path(scratch) if scratch else workspace.cache / RERUNS
        claims = {name: _claims(each) for name, each in recorded.items()}
        studies = [workspace, *([open_workspace(own_study)] if own_study else [])]  # which have tolerances
        files = [file_digest(each.file) for each in studies]
        rules = code_digest("api.verification")
        design = json_digest([workspace.study.label, claims, whole, steps, files, rules])
        place = folder / f"study-{design[:16]}"
        make_private(folder)
        if not is_private(place):  # verdicts in it may be planted
            delete_folder(place)
        make_private(place)
        trials = []
        for name in names if steps is not None else whole:
            path = place / f"{name.replace('/', ' ')}.json"
            done = _verified(path)
            if done is None:
                done, was_run = _verify_one(
                    recorded[name],
                    None if name in whole else steps,
                    own_study,
                    cache=workspace.cache,
                    scratch=folder,
                    quiet=quiet,
                )
                if was_run:  # otherwise something may be lacking that is there next time
                    write_json(path, dataclasses.asdict(done))
            trials.append(done)
    page = place / "verdict.html"
    found = StudyVerification(workspace.study.label, len(names), seed, trials, page)
    write_text(place / "verdict.json", found.to_json() + "\n")
    write_text(page, render_html("study_verdict.html.j2", found=found))
    return found


def _claims(trial: Trial) -> dict[str, str]:
    """Return the digests of the files that a verdict on the trial depends on."""
    paths = [*map(trial.record, ALL_STAGES), trial.trace, *sorted(trial.adapter.glob("*"))]
    return {str(path.relative_to(trial.folder)): file_digest(path) for path in paths if path.is_file()}


def _verify_one(
    trial: Trial, steps: int | None, own_study: str | None, **options: Any
) -> tuple[VerifiedTrial, bool]:
    """Return the verdict on a trial, and whether it was run again.

    One that cannot be run again is inconclusive, and does not stop the others.
    """
    scope = "whole" if steps is None else "first steps"
    try:
        given = trial if own_study is None else trial.folder
        verified = verify(given, study=own_study, steps=steps, **options)
    except (BusyError, NoGpuError, StoppedError):
        raise
    except KitError as error:
        why = str(error).replace(f"{trial.workspace.runs}/", "")  # of an archive, a temporary folder
        return VerifiedTrial(trial.name, scope, "inconclusive", why), False
    found = verified.found
    why = " ".join([*found.why, *found.notes])
    return VerifiedTrial(trial.name, scope, found.kind, why), verified.page is not None


def _verified(path: Path) -> VerifiedTrial | None:
    """Return the verdict that an interrupted verification left; its folder is private."""
    return read_as(_VERIFIED, path, "delete it") if path.is_file() else None
