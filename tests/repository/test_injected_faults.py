"""After any fault of a file operation, the next run ends with the same bits, and nothing finished is lost.

The commands are those of a whole trial, stage by stage (also resumed, started over, and repeated by --force),
a collect, a pack and an unpack. Each call that changes a file is disturbed: it fails with ENOSPC, EIO, EROFS
or EDQUOT; it and later calls fail; or the process is killed before or after it. A write has then written half
of its bytes. Before and after the calls of libraries, the process is only killed.

Then the command is repeated, and must end with the files of an undisturbed one: all but times, memory use
and, except for trials, temporary files. Faults that leave the same files need one repetition.

The test run takes one call for each pair of lines from which calls are made, and tries all faults there; for
trials it takes every third of these calls, and one fault in turn. With QLORA_REPEAT_FAULTS=all, every call is
taken, and all faults are tried.
The number of faults is printed.
"""

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.checkout import copy_folder
from support.faults import KILLS, KIT, LAYER, Point, Server, state
from support.places import at
from support.tiny import write_study

from qlora_repeat.errors import StoppedError
from qlora_repeat.execution.run_trial import run_trial

EVERYTHING = os.environ.get("QLORA_REPEAT_FAULTS") == "all"
TRIAL = "tiny-neox/adamw-8bit/1"
FOLDER = "runs/tiny@seeded/tiny-neox/adamw-8bit/trial-1"
ARCHIVE = "runs/tiny@seeded.zip"
FINETUNED = tuple(f"{FOLDER}/{each}" for each in ("adapter/", "trace.jsonl", "finetune.json"))
MERGED = (*FINETUNED, f"{FOLDER}/merge.json")
EVALUATED = (*MERGED, f"{FOLDER}/evaluate.json", "runs/tiny@seeded/tiny-neox/base/test-1.json")
MEASURED = (*EVALUATED, f"{FOLDER}/time.json")
COLLECTED = (*MEASURED, "runs/tiny@seeded/results.jsonl", "runs/tiny@seeded/statistics.json")
tried: Counter[str] = Counter()


@dataclass
class Bench:
    """A study, and the folder that each undisturbed command leaves."""

    folder: Path
    cache: Path
    server: Server
    left: dict[str, Path] = field(default_factory=dict)

    def command(self, name: str) -> list[str]:
        where = ["--runs", "runs", "--cache", "cache"]
        study = f"{self.folder / 'tiny.toml'}@seeded"
        command, *options = CASES[name].command.split()
        if command == "trial":
            return ["trial", TRIAL, "--study", study, *where, *options]
        return [command, *options] if command == "unpack" else [command, study, *where, *options]

    def left_by(self, name: str) -> Path:
        """Return the folder that an undisturbed command leaves."""
        if name not in self.left:
            folder = self.start(name, f"whole {name}")
            ended = self.server.run(folder, self.command(name))
            assert ended.code == 0, ended.output
            self.left[name] = folder
        return self.left[name]

    def start(self, name: str, folder_name: str) -> Path:
        """Return a new folder in which a command can run."""
        folder, case = self.folder / folder_name, CASES[name]
        if case.after:
            copy_folder(self.left_by(case.after), folder)
        else:
            folder.mkdir()
        case.prepare(self, folder)
        return folder


@dataclass(frozen=True)
class Case:
    """A command, and the one after which it runs; files and folders that no fault may change."""

    command: str
    after: str = ""
    prepare: Callable[[Bench, Path], object] = lambda bench, folder: None
    keeps: tuple[str, ...] = ()


def empty_cache(bench: Bench, folder: Path) -> None:
    """Make a cache that has no copies yet of bases in 4 bits and data as token ids."""
    (folder / "cache").mkdir()
    for kind in ("bases", "data"):
        (folder / "cache" / kind).symlink_to(bench.cache / kind)


def stopped(bench: Bench, folder: Path, *settings: tuple[str, str]) -> None:
    """Leave a fine-tuning that was killed after step 2, in the middle of a line, and temporary files."""

    def stop(stage: str, done: int, total: int, loss: float | None) -> None:
        if done == 2:
            raise StoppedError("killed")

    shutil.rmtree(folder / "runs")
    (folder / "study").mkdir()
    study = write_study(folder / "study", *settings)
    with pytest.raises(StoppedError):
        run_trial(at(f"{study}@seeded", folder / "runs", bench.cache).trial(TRIAL), ["finetune"], stop)
    shutil.rmtree(folder / "study")
    with (folder / FOLDER / "unfinished" / "trace.jsonl").open("a") as trace:
        trace.write('{"step":')
    for name in (".adapter.0123abcd", "unfinished/.step-2.0123abcd"):
        (folder / FOLDER / name).mkdir()
        (folder / FOLDER / name / "file").touch()
    (folder / FOLDER / ".finetune.json.0123abcd").touch()


def stopped_with_other_settings(bench: Bench, folder: Path) -> None:
    stopped(bench, folder, ("alpha = 32", "alpha = 16"))


def half_a_base_test(bench: Bench, folder: Path) -> None:
    """Leave the temporary file of a base test that was killed."""
    (folder / EVALUATED[-1]).parent.mkdir()
    (folder / EVALUATED[-1]).with_name(".test-1.json.0123abcd").touch()


CASES = {
    "finetune": Case("trial --stages finetune", prepare=empty_cache),
    "merge": Case("trial --stages merge", "finetune", keeps=FINETUNED),
    "evaluate": Case("trial --stages evaluate", "merge", half_a_base_test, MERGED),
    "time": Case("trial", "evaluate", keeps=EVALUATED),
    "resume": Case("trial --stages finetune", "finetune", stopped),
    "start over": Case("trial --stages finetune", "finetune", stopped_with_other_settings),
    "repeat": Case("trial --stages finetune --force", "time", keeps=MEASURED[3:]),
    "collect": Case("collect", "time", keeps=MEASURED),
    "pack": Case("pack", "collect", keeps=COLLECTED),
    "unpack": Case(f"unpack {ARCHIVE} --to out", "pack", keeps=(*COLLECTED, ARCHIVE)),
}


@pytest.fixture(scope="module")
def bench(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    write_study(folder)
    server = Server(folder)
    yield Bench(folder, cache, server)
    server.close()


@pytest.mark.parametrize("name", CASES)
def test_after_any_fault_the_next_run_ends_with_the_same_bits(name: str, bench: Bench) -> None:
    whole = state(bench.left_by(name))
    folder = bench.start(name, name)
    before = state(folder)
    sample = f"some {[*CASES].index(name)}" if bench.command(name)[0] == "trial" else "sites"
    ended = bench.server.run(folder, bench.command(name), faults="all" if EVERYTHING else sample)
    assert ended.code == 0, ended.output
    assert state(folder) == whole
    callers = {point.module for point in ended.points if point.name != "write"}  # others write to its files
    assert {module for module in callers if module.startswith(KIT)} <= {LAYER}
    problems = []
    for point in ended.points:
        tried[name] += 1
        found = [*misreported(point)]
        if point.folder:
            found += lost(before, CASES[name], Path(point.folder)) or unlike(bench, name, whole, point)
        problems += [f"{point.kind}, {point.name} {point.path} ({point.site}): {each}" for each in found]
    shutil.rmtree(folder.with_name(f"{name}.faults"))
    assert problems == [], "\n\n".join(problems)
    assert tried[name] > 3


def misreported(point: Point) -> Iterator[str]:
    """Yield what is wrong with how a command ended: an error is one line, with its reason and a file."""
    if point.kind in KILLS:
        if point.code != -9:
            yield f"was not killed: {point.code} {point.output}"
        return
    reason = os.strerror(getattr(errno, point.kind.split()[0]))
    *_, last = ["", *point.output.splitlines()]
    if "Traceback" in point.output or point.code not in (0, 3, 4):
        yield f"exit code {point.code}: {point.output}"
    elif (point.code != 0) != (point.output.count("Error: ") == 1 and last.startswith("Error: ")):
        yield f"exit code {point.code}, expected one line: {point.output}"
    elif point.code and (reason not in last or not re.search(r"(runs|cache|out)\b", last)):
        yield f"names no file or not the reason: {last}"


def lost(before: dict[str, str], case: Case, folder: Path) -> list[str]:
    """Return what a fault has taken of what was finished before."""
    now = state(folder)
    kept = [name for name in before if name.startswith(case.keeps)] if case.keeps else []
    found = [f"{name} is lost" for name in kept if now.get(name) != before[name]]
    if f"{FOLDER}/adapter/" in before and not any(
        "adapter/adapter_model.safetensors" in each for each in now
    ):
        found.append("the adapter is lost")
    return found


def unlike(bench: Bench, name: str, whole: dict[str, str], point: Point) -> list[str]:
    """Repeat a command after a fault; return how it differs from an undisturbed one."""
    folder = Path(point.folder)
    ended = bench.server.run(folder, bench.command(name))
    of_trial = bench.command(name)[0] == "trial"
    found = {each: digest for each, digest in state(folder).items() if not _may_stay(each, of_trial)}
    # The cache may lack a copy that could not be written.
    whole = {each: digest for each, digest in whole.items() if each in found or not each.startswith("cache/")}
    complete = name == "unpack" and "already exists" in ended.output
    problems = [] if ended.code == 0 or complete else [f"the next run failed: {ended.output}"]
    problems += [f"{each} differs" for each in sorted({*found, *whole}) if found.get(each) != whole.get(each)]
    if name == "resume":
        record = json.loads((folder / FOLDER / "finetune.json").read_text())
        problems += [] if record["outputs"]["resumed_from"] else ["the checkpoint was lost"]
    return problems


def _may_stay(name: str, of_trial: bool) -> bool:
    """Return whether a file has a temporary name, and no later trial deletes it."""
    temporary = re.search(r"(^|/)\.[^/]*\.x(/|$)", name) is not None
    return temporary and not (of_trial and name.startswith("runs/"))


def test_the_number_of_faults_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{sum(tried.values())} faults of file operations: {dict(tried)}")
    assert set(tried) == set(CASES)
