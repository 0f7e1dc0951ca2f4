"""A damaged file, even by one bit, is named; its stage is not done, and its numbers are not collected."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkout import ROOT, copy_folder, kit
from support.finished import finish_study
from support.places import NO_RUNS, at
from support.small_disk import needs_mount, on_small_disk

from qlora_repeat.analysis.integrity import CheckedStudy, check
from qlora_repeat.assets.base_models import base_folder
from qlora_repeat.assets.datasets import data_folder
from qlora_repeat.execution.run_trial import _clean
from qlora_repeat.records.record import read_record, write_record
from qlora_repeat.records.trial_state import (
    base_damages,
    base_state,
    explanations,
    stage_states,
    trial_state,
)
from qlora_repeat.results.collect import collect
from qlora_repeat.results.trial_result import write_results
from qlora_repeat.study.loading import load_study
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import Trial
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import write_json
from qlora_repeat.system.hashing import file_digest, folder_digests, json_digest

NAME = "tiny-neox/adamw-8bit/1"
NO_CACHE = Path("/nonexistent")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Return the finished tiny study with its merged models, and its folder; tests copy it."""
    from support.tiny import write_study

    folder = tmp_path_factory.mktemp("finished")
    study = load_study(str(write_study(folder, ("keep_merged = false", "keep_merged = true"))))
    finish_study(study, folder / "runs", NO_CACHE)
    return study, folder


@pytest.fixture
def trial(template: tuple[Study, Path], tmp_path: Path) -> Trial:
    """Return a trial in a copy of this study, for a test to damage."""
    study, folder = template
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.copy(folder / "tiny.toml", tmp_path)
    return at(study, tmp_path / "runs", NO_CACHE).trial(NAME)


def checked(trial: Trial, cache: Path = NO_CACHE) -> CheckedStudy:
    return check(at(trial.study, trial.workspace.runs, cache), lambda done, total: None)


def flip(path: Path, bit: int = 0) -> None:
    """Flip a bit in a file; its size and modification time stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def states(trial: Trial, *, rehash: bool = True) -> list[str]:
    return [state.state for state in stage_states(trial, rehash=rehash).values()]


ASKED = {"study", "task", "model", "model_title", "counterpart", "optimizer", "trial"}
ASKED |= {"randomness", "free_sources", "answers_only"}
ASKED |= {"status", "miniature"}
"""Fields of a row that are set without any measurement."""


def numbers(trial: Trial) -> dict[str, Any]:
    """Return the measured values in a trial's collected row."""
    for row in collect(trial.workspace):
        if (row.model, row.optimizer, row.trial) == (trial.model_name, trial.optimizer, trial.number):
            return {
                name: value
                for name, value in dataclasses.asdict(row).items()
                if name not in ASKED and not name.startswith("base_") and value not in (None, [], {})
            }
    raise AssertionError


KEPT = [
    "trace.jsonl",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "merged/model.safetensors",
    "merged/config.json",
]
RECORDS = [f"{stage}.json" for stage in ("finetune", "merge", "evaluate", "time")]
AFTER = {
    "finetune": ["damaged", "stale", "stale", "stale"],
    "merge": ["done", "damaged", "stale", "stale"],
    "evaluate": ["done", "done", "damaged", "done"],
    "time": ["done", "done", "done", "damaged"],
}


def stage_of(name: str) -> str:
    """Return the stage that writes a file."""
    return name.removesuffix(".json") if name in RECORDS else ("merge" if "merged" in name else "finetune")


@pytest.fixture(scope="module")
def lasting(template: tuple[Study, Path]) -> Trial:
    """Return a trial that each example of a property test damages and restores."""
    study, folder = template
    few = dataclasses.replace(study, trials=1)
    finish_study(few, folder / "lasting", NO_CACHE)
    return at(few, folder / "lasting", NO_CACHE).trial(NAME)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(KEPT + RECORDS), st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_makes_the_stage_not_done_and_gives_no_number(
    lasting: Trial, name: str, place: float
) -> None:
    path = lasting.folder / name
    bit = int(place * path.stat().st_size * 8)
    assert states(lasting) == ["done"] * 4
    flip(path, bit)
    try:
        assert states(lasting) == AFTER[stage_of(name)]
        assert trial_state(lasting).state == "damaged"
        assert numbers(lasting) == {}
        (line,) = explanations([trial_state(lasting)])
        assert line.startswith(f"{NAME} is damaged: {path}: ")
        assert line.endswith(f"; `{lasting.workspace.command('run')}` runs its stage again")
        assert any(problem.startswith(f"{path}: ") for problem in checked(lasting).problems)
    finally:
        flip(path, bit)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_in_a_base_test_gives_no_number(lasting: Trial, place: float) -> None:
    (test,) = lasting.workspace.base_tests("tiny-neox")
    path = test.record
    bit = int(place * path.stat().st_size * 8)
    flip(path, bit)
    try:
        assert base_state(test).state == "damaged"
        rows = [row for row in collect(lasting.workspace) if row.model == "tiny-neox"]
        assert {(row.base_perplexity, row.perplexity) for row in rows} == {(None, 8.25)}
        assert base_damages(lasting.workspace)[0].startswith(f"tiny-neox/base/1 is damaged: {path}: ")
        assert checked(lasting).problems[0].startswith(f"{path}: ")
    finally:
        flip(path, bit)


@pytest.mark.parametrize("name", KEPT + RECORDS)
def test_a_truncated_or_missing_file_is_found_without_reading_it(name: str, trial: Trial) -> None:
    path, stage = trial.folder / name, stage_of(name)
    os.truncate(path, path.stat().st_size - 1)
    assert states(trial, rehash=False) == AFTER[stage] == states(trial)
    found = [trial_state(each, rehash=False) for each in trial.workspace.trials()]
    assert [each.trial.name for each in found if each.state == "damaged"] == [NAME]
    (line,) = explanations(found)
    assert line.startswith(f"{NAME} is damaged: {path}: ")
    assert len(line.splitlines()) == 1
    path.unlink()
    expected = (
        AFTER[stage] if name in KEPT else [state.replace("damaged", "missing") for state in AFTER[stage]]
    )
    assert states(trial, rehash=False) == expected == states(trial)
    assert numbers(trial) == {}


def test_deleted_merged_weights_are_no_damage(trial: Trial) -> None:
    shutil.rmtree(trial.merged)
    assert states(trial) == ["done"] * 4
    assert checked(trial).problems == []


@pytest.mark.parametrize("other", ["tiny-neox/adamw-8bit/2", "tiny-neox/adamw-32bit/1"])
def test_the_record_of_another_trial_is_damage(other: str, trial: Trial) -> None:
    record = trial.workspace.trial(other).record("time")
    shutil.copy(record, trial.record("time"))
    assert states(trial) == AFTER["time"]
    shutil.copy(trial.record("evaluate"), trial.record("time"))
    assert (
        "expected this stage's record, found the evaluate stage of" in explanations([trial_state(trial)])[0]
    )


def test_an_undamaged_study_has_no_problems(trial: Trial) -> None:
    found = checked(trial)
    assert (found.trials, found.problems, found.notes, found.inputs) == (8, [], [], [])
    assert numbers(trial)["perplexity"] == 8.25
    paths = {looked.path for looked in found.files}
    assert len(paths) == 8 * (len(KEPT) + len(RECORDS)) + 2
    assert {trial.folder / name for name in KEPT + RECORDS} < paths


def test_every_damaged_file_is_named(trial: Trial) -> None:
    damaged = [trial.folder / name for name in (*KEPT, "evaluate.json")]
    for path in damaged:
        flip(path, 9)
    problems = checked(trial).problems
    assert sorted(problem.partition(": ")[0] for problem in problems) == sorted(map(str, damaged))


def rewrite(trial: Trial, **outputs: Any) -> None:
    """Write a finetune record with these outputs and the current trace, as the stage would write it."""
    record = read_record(trial.record("finetune"))
    assert record is not None
    kept = {name: dataclasses.replace(file) for name, file in record.files.items()}
    trace = trial.trace.read_bytes()
    kept["trace.jsonl"] = dataclasses.replace(
        kept["trace.jsonl"], sha256=file_digest(trial.trace), bytes=len(trace)
    )
    write_record(
        trial.record("finetune"),
        dataclasses.replace(record, outputs={**record.outputs, **outputs}, files=kept),
    )


@pytest.mark.parametrize(
    ("outputs", "edit", "problem"),
    [
        ({"adapter_digest": "0" * 64}, None, "the record says 0000000000000000"),
        ({"steps": 4}, None, "trace.jsonl: ends at step 3, the record says 4"),
        ({}, lambda lines: lines[:-1], "trace.jsonl: ends at step 2, the record says 3"),
        ({}, lambda lines: [], "trace.jsonl: ends at step none, the record says 3"),
        ({}, lambda lines: lines[:1] + lines[2:], "trace.jsonl:2: not a step of a trace"),
        ({}, lambda lines: [*lines[:-1], lines[-1].replace('"adapter": "', '"adapter": "x')], "last adapter"),
    ],
)
def test_a_trace_or_adapter_that_contradicts_its_record_is_a_problem(
    outputs: dict[str, Any], edit: Callable[[list[str]], list[str]] | None, problem: str, trial: Trial
) -> None:
    if edit is not None:
        lines = trial.trace.read_text().splitlines(keepends=True)
        trial.trace.write_text("".join(edit(lines)))
    rewrite(trial, **outputs)
    found = checked(trial).problems[0]
    assert found.startswith(f"{trial.folder}/")
    assert problem in found
    command = trial.workspace.command("finetune", "--force", trial=NAME)
    assert found.endswith(f"; `{command}` runs it again")
    assert states(trial)[0] == "done"  # so `qlora-repeat run` would not run it again


@pytest.fixture
def unfinished(trial: Trial) -> Path:
    """Return the folder of a fine-tuning in progress, in a trial without other files."""
    shutil.rmtree(trial.folder)
    folder = trial.folder / "unfinished"
    step = folder / "step-2"
    step.mkdir(parents=True)
    (folder / "trace.jsonl").write_text("a line\nanother\na torn li")
    for name in ("adapter", "optimizer"):
        (step / f"{name}.safetensors").write_text(name)
    seal(folder / "start.json", {"inputs": "0" * 64, "seeds": {"dropout": 1}, "digest_every": 1})
    begun = b"a line\nanother\n"
    seal(
        step / "checkpoint.json",
        {
            "step": 2,
            "counters": {},
            "learning_rates": [],
            "scheduler": {},
            "scaler": None,
            "files": {path.name: file_digest(path) for path in sorted(step.glob("*.safetensors"))},
            "trace": {"bytes": len(begun), "sha256": sha256(begun)},
        },
    )
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def seal(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its own digest."""
    write_json(path, {**content, "digest": json_digest(content)})


def test_a_fine_tuning_in_progress_is_checked(trial: Trial, unfinished: Path) -> None:
    found = checked(trial)
    assert (found.trials, found.problems) == (8, [])
    assert len([looked for looked in found.files if unfinished in looked.path.parents]) == 5


@pytest.mark.parametrize(
    "name",
    [
        "start.json",
        "trace.jsonl",
        "step-2/checkpoint.json",
        "step-2/adapter.safetensors",
        "step-2/optimizer.safetensors",
    ],
)
@pytest.mark.parametrize("damage", [lambda path: flip(path, 20), lambda path: os.truncate(path, 3)])
def test_damage_to_a_checkpoint_is_a_problem(
    name: str, damage: Callable[[Path], None], trial: Trial, unfinished: Path
) -> None:
    damage(unfinished / name)
    (problem,) = checked(trial).problems
    assert problem.startswith(f"{unfinished / name}: ")
    assert f"`{trial.workspace.command('run')}`" in problem


def test_a_damaged_checkpoint_names_the_one_from_which_training_resumes(
    trial: Trial, unfinished: Path
) -> None:
    shutil.copytree(unfinished / "step-2", unfinished / "step-10")
    (unfinished / "step-2" / "adapter.safetensors").unlink()
    assert checked(trial).problems == []  # training does not resume from an older one
    flip(unfinished / "step-10" / "optimizer.safetensors")
    problems = checked(trial).problems
    run = trial.workspace.command("run")
    assert all(problem.endswith(f"; `{run}` starts this fine-tuning again") for problem in problems)
    assert len(problems) == 2
    (unfinished / "step-2" / "adapter.safetensors").write_text("adapter")
    (problem,) = checked(trial).problems
    assert problem.startswith(f"{unfinished}/step-10/optimizer.safetensors: not the bytes")
    assert problem.endswith(f"; `{run}` resumes from step-2")


KILLED = """
import os, sys
from pathlib import Path
from torch import ones
from qlora_repeat.stages.checkpoint import Checkpoint, begin, save_checkpoint
from qlora_repeat.system.files import append_to, write_whole

begun = begin(Path(sys.argv[1]), {}, {"dropout": 1}, 1)
removed = 0

def hook(event, arguments):
    global removed
    removed += event == "os.remove"
    if event == "os.remove" and removed == 2:  # of three files
        os.kill(os.getpid(), 9)

with append_to(begun.trace) as trace:
    for step in (9, 10):
        write_whole(trace, b"a line\\n")
        weights = {"x": ones(9)}
        save_checkpoint(begun, Checkpoint(step, weights, weights, {}, [], {}, None), trace)
        sys.addaudithook(hook)
"""


def test_a_process_killed_while_it_deletes_an_older_checkpoint_leaves_no_damage(trial: Trial) -> None:
    shutil.rmtree(trial.folder)
    done = subprocess.run([sys.executable, "-c", KILLED, trial.unfinished], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (half,) = trial.unfinished.glob(".step-9.*")
    assert len(list(half.iterdir())) == 2
    found = checked(trial)
    assert found.problems == []
    assert found.notes == [f"{half}: left by a process that was killed; it can be deleted"]
    assert trial.unfinished / "step-10" / "checkpoint.json" in {looked.path for looked in found.files}


REPLACED = """
import os, pathlib, sys
from qlora_repeat.system import files

replace = os.replace

def killed(old, new):
    replace(old, new)
    os.kill(os.getpid(), 9)

os.replace = killed
files.move_folder(*map(pathlib.Path, sys.argv[1:]))
"""


def test_a_process_killed_while_it_replaces_an_adapter_leaves_the_old_one(trial: Trial) -> None:
    """Kill it between the two renames; the next start puts the old adapter back."""
    before, new = folder_digests(trial.adapter), trial.unfinished / "adapter"
    shutil.copytree(trial.adapter, new)
    (new / "adapter_config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, new, trial.adapter], capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    assert not trial.adapter.exists()
    aside = trial.folder / ".adapter.old"
    run = trial.workspace.command("run")
    assert f"{aside}: has the only adapter; `{run}` puts it back" in checked(trial).notes
    _clean(trial)
    assert folder_digests(trial.adapter) == before
    assert not aside.exists()


@pytest.mark.parametrize("gone", ["start.json", "trace.jsonl", "step-3/adapter.safetensors"])
def test_checkpoints_of_a_finished_fine_tuning_are_no_damage(gone: str, trial: Trial) -> None:
    """Leave checkpoints as a process does that is killed while it removes them."""
    step = trial.unfinished / "step-3"
    step.mkdir(parents=True)
    (step / "adapter.safetensors").write_text("adapter")
    (step / "checkpoint.json").write_text("{")
    shutil.copy(trial.trace, trial.unfinished)
    (trial.unfinished / "start.json").write_text("{")
    (trial.unfinished / gone).unlink()
    found = checked(trial)
    assert found.problems == []
    assert found.notes == [f"{trial.unfinished}: left by a process that was killed; it can be deleted"]
    (trial.unfinished / "trace.jsonl").write_text("another")  # the fine-tuning must run again
    assert len(checked(trial).problems) >= 1


@pytest.mark.parametrize("name", ["trace.jsonl", "step-2/checkpoint.json", "step-2/adapter.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_a_problem(
    name: str, trial: Trial, unfinished: Path
) -> None:
    (unfinished / name).unlink()
    (problem,) = checked(trial).problems
    assert problem.startswith(f"{unfinished / name}: ")


def test_a_checkpoint_that_names_a_file_of_another_folder_is_a_problem(
    trial: Trial, unfinished: Path
) -> None:
    outside = trial.folder / "outside"
    outside.write_text("x")
    path = unfinished / "step-2" / "checkpoint.json"
    content = json.loads(path.read_text())
    del content["digest"]
    seal(path, {**content, "files": {"../../outside": file_digest(outside)}})
    (problem,) = checked(trial).problems
    assert problem.startswith(f"{path}: missing, or changed after it was written")


def test_files_left_by_killed_processes_are_noted(trial: Trial) -> None:
    merged, record = trial.folder / ".merged.abc123", trial.folder / ".time.json.x1y2"
    merged.mkdir()
    (merged / ".half.json.zz").write_text("")
    record.write_text("")
    found = checked(trial)
    assert found.problems == []
    assert found.notes == [
        f"{path}: left by a process that was killed; it can be deleted" for path in (merged, record)
    ]


def test_a_running_trial_is_not_checked(trial: Trial) -> None:
    (trial.folder / ".adapter.abc123").mkdir()
    flip(trial.trace)
    with exclusive(trial.lock, trial.name):
        found = checked(trial)
    assert (found.trials, found.problems) == (7, [])
    assert found.notes == [f"{NAME}: not checked, because a process is working on it"]


def test_results_that_differ_from_the_records_are_noted(trial: Trial) -> None:
    path = trial.workspace.results
    write_results(collect(trial.workspace), path)
    assert checked(trial).notes == []
    path.write_text(path.read_text().replace("8.25", "8.26", 1))
    note = f"{path}: differs from the records; run `{trial.workspace.command('collect')}`"
    assert checked(trial).notes == [note]
    path.write_text("{")
    assert checked(trial).notes[0].startswith(f"{path}:1: not a row of collected results")


def test_base_models_and_data_in_the_cache_are_checked(trial: Trial, cache: Path, tmp_path: Path) -> None:
    copy_folder(cache, tmp_path / "cache")
    study, own = trial.study, tmp_path / "cache"
    finish_study(study, trial.workspace.runs, own)
    found = checked(trial, own)
    assert found.problems == []
    weights = base_folder(at(study, NO_RUNS, own), "tiny-neox") / "model.safetensors"
    rows = data_folder(at(study, NO_RUNS, own), "quotes")
    assert {weights, *rows.glob("*.jsonl")} <= {looked.path for looked in found.inputs}
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # it is a hard link to the file in the shared cache
    weights.write_bytes(content)
    damaged = sorted(rows.glob("*.jsonl"))[0]
    flip(damaged)
    problems = checked(trial, own).problems
    assert [problem.partition(" ")[0] for problem in problems] == [str(weights), str(damaged)]
    assert all("`qlora-repeat fetch " in problem for problem in problems)


def test_the_command_prints_problems_and_the_number_of_undamaged_files(trial: Trial, tmp_path: Path) -> None:
    options = [tmp_path / "tiny.toml", "--runs", trial.workspace.runs, "--cache", tmp_path / "cache"]
    whole = kit("check", *options)
    assert (whole.returncode, whole.stderr) == (0, "")
    what = "74 files of 8 trials are as their records say, and so are 0 files of models and data"
    assert whole.stdout == f"{what}\n"
    assert kit("check", *options, "--quiet").stdout == ""
    flip(trial.trace)
    (trial.folder / ".time.json.x1y2").write_text("")
    damaged = kit("check", *options)
    assert damaged.returncode == 3
    first, second = damaged.stdout.splitlines()
    command = " ".join(["qlora-repeat run", *map(str, options)])
    assert first == f"{trial.trace}: not the bytes that were recorded; `{command}` runs its stage again"
    assert second.startswith("note: ")
    assert damaged.stderr == "Error: study tiny: 1 of 74 files are damaged\n"
    assert kit("check", *options, "--quiet").stdout == f"{first}\n"
    collected = kit("collect", *options)
    assert collected.returncode == 0
    assert "7 of 8 trials done" in collected.stdout
    assert collected.stderr == f"{NAME} is damaged: {first}\n"


def test_a_study_without_results_has_nothing_to_check(study: Study, tmp_path: Path) -> None:
    found = check(at(study, tmp_path / "runs", tmp_path / "cache"), lambda done, total: None)
    assert (found.trials, found.files, found.inputs, found.notes) == (0, [], [], [])


def test_status_and_check_need_no_torch(trial: Trial, tmp_path: Path) -> None:
    script = (
        "import sys; from qlora_repeat.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    options = ["--runs", str(trial.workspace.runs), "--cache", str(tmp_path / "cache")]
    for command in ("check", "status"):
        arguments = [command, str(tmp_path / "tiny.toml"), *options]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        heavy = {"torch", "datasets", "transformers"} | ({"numpy"} if command == "status" else set())
        assert heavy & set(done.stderr.split()) == set()


CLOSED = """
import subprocess, sys
from pathlib import Path
from support.finished import finish_study
from qlora_repeat.study.loading import load_study
here, study, kit, cache = sys.argv[1:]
finish_study(load_study(study), Path(here), Path(cache))
Path(here, "tiny/tiny-neox/adamw-8bit/trial-1/time.json").unlink()
subprocess.run(["mount", "-o", "remount,ro", here], check=True)
options = ["--runs", here, "--cache", cache]
for command in ("status", "check", "collect", "run"):
    done = subprocess.run([kit, command, study, *options], capture_output=True, text=True)
    print(done.returncode, done.stderr.strip() or done.stdout.splitlines()[-1])
"""


@needs_mount
def test_results_on_a_read_only_disk_can_be_read(cache: Path, study_file: Path, tmp_path: Path) -> None:
    kit = Path(sys.executable).with_name("qlora-repeat")
    disk = tmp_path / "disk"
    done = on_small_disk(CLOSED, disk, 10, study_file, kit, cache)
    assert done.returncode == 0, done.stderr
    advice = "Read-only file system; make it writable, or set QLORA_REPEAT_RUNS (results) or " + (
        "QLORA_REPEAT_CACHE (models and data) to another folder"
    )
    status, check, collect, device, resumes, begun, *_, run = done.stdout.splitlines()
    assert status.startswith("0 tiny-neox/adamw-8bit/1 stopped; time remains; `qlora-repeat trial ")
    assert check.startswith("0 73 files of 8 trials are as their records say, and ")
    assert collect == f"3 Error: {disk}/tiny/results.jsonl: {advice}"
    assert re.fullmatch(r"4 Runs on the CPU: torch \S+ is the CPU build", device)
    assert resumes == "resuming: tiny-neox/adamw-8bit/1 stopped; time remains"
    assert begun == "study tiny: 1 job (1 trial), 1 at a time"
    where = f"{disk}/tiny/tiny-neox/adamw-8bit/trial-1/log.txt"
    assert run == f"Error: 1 of 1 jobs failed: tiny-neox/adamw-8bit/1: {where}: {advice}"
