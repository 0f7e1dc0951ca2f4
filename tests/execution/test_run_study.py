"""Whole studies from the command line: run, kill, resume, collect, tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT, kit
from support.finished import finish_study
from support.places import at
from support.tiny import write_study

from qlora_repeat.errors import UsageError
from qlora_repeat.execution.jobs import counted, open_jobs
from qlora_repeat.results.trial_result import read_results
from qlora_repeat.study.study import Study
from qlora_repeat.study.trial import STAGES
from qlora_repeat.system import gpus

KIT = str(Path(sys.executable).with_name("qlora-repeat"))
ARMS = [f"{model}/adamw-{bits}bit" for model in ("tiny-neox", "tiny-llama-chat") for bits in (8, 32)]
TRIALS = [f"{arm}/{number}" for arm in ARMS for number in (1, 2)]


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Kill and rerun a study; return its file, its runs, and the trials that were done before the kill."""
    folder = tmp_path_factory.mktemp("run")
    study, runs = write_study(folder), folder / "runs"
    command = [KIT, "run", study, "--runs", runs, "--cache", cache, "--out", folder / "out"]
    first = subprocess.Popen([*command, "--jobs", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while len(done_trials(runs)) < 3 and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    before = done_trials(runs)
    assert 3 <= len(before) < len(TRIALS)
    wait_for_idle(runs)
    checked = kit("check", study, "--runs", runs, "--cache", cache)
    assert checked.returncode == 0, f"a kill damages nothing: {checked.stdout}"
    stamps = {name: finetune_record(runs, name).stat().st_mtime_ns for name in before}
    second = subprocess.run([*command, "--jobs", "2"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stderr
    assert stamps == {name: finetune_record(runs, name).stat().st_mtime_ns for name in before}, (
        "done trials were redone"
    )
    assert "8bit: 2 different adapters in 2 trials" in second.stdout
    return study, runs, before


def test_a_narrowed_run_leaves_the_rest_to_a_later_one(
    study: Study, study_file: Path, cache: Path, tmp_path: Path
) -> None:
    """Keep one finished trial; narrowed to it, `run` has nothing to run, and the whole study has the rest."""
    runs = tmp_path / "runs"
    for trial in finish_study(study, runs, cache)[1:]:
        shutil.rmtree(trial.folder)
    options = ["--runs", runs, "--cache", cache, "--out", tmp_path / "out"]
    done = kit("run", study_file, "--only", "tiny-neox/adamw-8bit", "--trials", 1, *options)
    assert done.returncode == 0, done.stderr
    assert "Cut short: 1 of 8 trials done." in done.stdout
    assert f"`qlora-repeat run {study_file}` runs the other trials" in done.stdout
    assert "**Cut short" in (tmp_path / "out" / "tables.md").read_text()
    left = open_jobs(at(study_file, runs, cache), STAGES)
    assert [job.name for job in left] == TRIALS[1:]
    assert counted(left) == "7 jobs (7 trials)"


def finetune_record(runs: Path, name: str) -> Path:
    model, optimizer, number = name.split("/")
    return runs / "tiny" / model / optimizer / f"trial-{number}" / "finetune.json"


def done_trials(runs: Path) -> list[str]:
    return [name for name in TRIALS if finetune_record(runs, name).with_name("time.json").is_file()]


def wait_for_idle(runs: Path) -> None:
    """Wait until the children of the killed run notice that their parent is gone, and end."""
    deadline = time.monotonic() + 60
    while list(runs.rglob("lock.json")) and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_killed_run_resumes(finished: tuple[Path, Path, list[str]]) -> None:
    _, runs, _ = finished
    assert done_trials(runs) == TRIALS


def test_only_results_remain(finished: tuple[Path, Path, list[str]]) -> None:
    _, runs, _ = finished
    names = {path.name for path in runs.rglob("*")}
    assert not [
        name for name in names if name.startswith(".") or name in ("merged", "lock.json", "failed.json")
    ]


def test_a_second_run_finds_nothing_to_do(finished: tuple[Path, Path, list[str]], cache: Path) -> None:
    study, runs, _ = finished
    again = kit("run", study, "--runs", runs, "--cache", cache, "--no-report")
    assert again.returncode == 0
    assert "every trial is done" in again.stdout


def test_a_run_ends_with_results_tables_figures_and_report(finished: tuple[Path, Path, list[str]]) -> None:
    study, runs, _ = finished
    written = {path.name for path in (study.parent / "out").iterdir()}
    assert {"table-01.tex", "tables.md", "figure-01.pdf", "report.html"} <= written
    assert (runs / "tiny" / "results.jsonl").is_file() and (runs / "tiny" / "statistics.json").is_file()


def test_if_a_trial_fails_the_others_are_reported(
    finished: tuple[Path, Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    study, whole, _ = finished
    runs, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(whole, runs)
    trial = finetune_record(runs, TRIALS[0]).parent
    shutil.rmtree(trial)
    (trial / "trace.jsonl").mkdir(parents=True)
    options = [study, "--runs", runs, "--cache", cache, "--out", out]
    options += ["--compare", whole / "tiny" / "results.jsonl"]
    failed = kit("run", *options)
    assert (failed.returncode, "1 of 1 jobs failed: " in failed.stderr) == (4, True)
    assert "7 of 8 trials done" in failed.stdout
    assert {"table-01.md", "table-C01.md", "report.html"} <= {path.name for path in out.iterdir()}
    shutil.rmtree(out)
    assert kit("run", *options, "--stages", "finetune").returncode == 4
    assert not out.exists()


def test_status_collect_and_tables(
    finished: tuple[Path, Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    study, runs, _ = finished
    status = kit("status", study, "--runs", runs, "--cache", cache)
    table, _, counted = status.stdout.rstrip().rpartition("\n\n")
    assert table.count("done") == len(TRIALS) + 2, "and one test of each base"
    assert counted == "8 trials: 8 done; 2 tests of bases: 2 done"
    collected = kit("collect", study, "--runs", runs, "--cache", cache)
    assert "8 of 8 trials done" in collected.stdout
    results = read_results(runs / "tiny" / "results.jsonl")
    assert [f"{row.model}/{row.optimizer}/{row.trial}" for row in results] == TRIALS
    assert len({row.adapter_digest for row in results}) == len(TRIALS)
    tables = kit("tables", study, "--runs", runs, "--out", tmp_path / "tables")
    assert tables.returncode == 0, tables.stderr
    first = (tmp_path / "tables" / "table-01.md").read_text()
    assert f"{results[0].perplexity:,.2f}" in first
    assert "Your silence will" in (tmp_path / "tables" / "table-04.tex").read_text()


def test_only_damaged_stages_are_named_and_run_again(
    finished: tuple[Path, Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    study, whole, _ = finished
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs)
    weights = finetune_record(runs, TRIALS[0]).with_name("adapter") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    record = finetune_record(runs, TRIALS[3]).with_name("time.json")
    record.write_text(record.read_text().replace("seconds", "Seconds", 1))
    base = runs / "tiny" / "tiny-neox" / "base" / "test-1.json"
    base.write_bytes(b"\0" * base.stat().st_size)
    options = [study, "--runs", runs, "--cache", cache]
    status = kit("status", *options)
    assert status.returncode == 0
    assert status.stdout.count("is damaged") == 2, "the adapter's files have the recorded sizes"
    collected = runs / "tiny" / "statistics.json"
    stamps = {path: path.stat().st_mtime_ns for path in runs.rglob("*.json") if path != collected}
    again = kit("run", *options, "--no-report")
    assert again.returncode == 0, again.stderr
    for path in (weights, record, base):
        assert f" is damaged: {path}: " in again.stderr
    assert "3 jobs" in again.stderr
    assert "8 of 8 trials done" in kit("collect", *options).stdout
    checked = kit("check", *options)
    assert checked.returncode == 0, checked.stdout
    assert " files of 8 trials are as their records say, and " in checked.stdout
    done = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    trained = finetune_record(runs, TRIALS[0])  # same seeds, same adapter: it needs no new test
    assert {path for path in done if trained.parent not in path.parents} == {record, base}
    assert {path for path in done if path.parent == trained.parent} == {trained}


def test_force_runs_one_stage_of_all_trials_again(
    finished: tuple[Path, Path, list[str]], cache: Path
) -> None:
    study, runs, _ = finished
    record = finetune_record(runs, TRIALS[0]).with_name("time.json")
    before = json.loads(record.read_text())["outputs"]
    again = kit("time", "--all", "--force", "--study", study, "--runs", runs, "--cache", cache)
    assert again.returncode == 0, again.stderr
    after = json.loads(record.read_text())["outputs"]
    assert after["seconds"] != before["seconds"]
    assert not list(runs.rglob("merged"))


@pytest.mark.parametrize(
    ("command", "number", "group", "code"),
    [
        ("run", signal.SIGUSR1, True, 6),
        ("run", signal.SIGINT, True, 130),
        ("trial", signal.SIGTERM, False, 6),
    ],
)
def test_a_stopped_fine_tuning_resumes_from_its_checkpoint(
    command: str, number: signal.Signals, group: bool, code: int, cache: Path, tmp_path: Path
) -> None:
    """Signal one process, as a scheduler does, or its whole group, as a terminal does."""
    study = write_study(
        tmp_path, ("\nsteps = 3", "\nsteps = 30"), ("checkpoint_every = 2", "checkpoint_every = 1000")
    )
    runs = tmp_path / "runs"
    options = ["--runs", runs, "--cache", cache]
    line = (
        [command, study, *options] if command == "run" else [command, TRIALS[0], "--study", study, *options]
    )
    process = subprocess.Popen(
        [KIT, *map(str, line)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests in the background of a shell ignore Ctrl-C, and child processes would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    trace = finetune_record(runs, TRIALS[0]).parent / "unfinished" / "trace.jsonl"
    while not (trace.exists() and len(trace.read_text().splitlines()) > 3) and process.poll() is None:
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert "run the same command to resume" in errors
    assert not [*runs.rglob("lock.json"), *runs.rglob("failed.json"), *runs.rglob("results.jsonl")]
    (checkpoint,) = trace.parent.glob("step-*")
    again = kit("finetune", TRIALS[0], "--study", study, *options)
    assert again.returncode == 0, again.stderr
    found = json.loads(finetune_record(runs, TRIALS[0]).read_text())["outputs"]
    assert found["resumed_from"] == int(checkpoint.name.removeprefix("step-"))
    assert found["steps"] == 30


def test_a_bitwise_run_has_no_spread_and_leaves_other_profiles_alone(
    finished: tuple[Path, Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    study, runs, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (runs / "tiny").rglob("*")}
    options = ["--runs", runs, "--cache", cache]
    done = kit("run", study, "--randomness", "bitwise", "--no-report", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one adapter in all 2 trials") == len(ARMS)
    alone = ["finetune", TRIALS[0], "--study", f"{study}@bitwise", "--cache", cache, "--runs", tmp_path]
    assert kit(*alone).returncode == 0
    place = f"tiny@bitwise/{TRIALS[0].replace('/1', '/trial-1')}/finetune.json"
    own, others = (json.loads((folder / place).read_text())["outputs"] for folder in (tmp_path, runs))
    assert own["adapter_digest"] == others["adapter_digest"], "a trial has the same bits alone and in a run"
    assert {path: path.stat().st_mtime_ns for path in (runs / "tiny").rglob("*")} == before
    assert "every trial is done" in kit("run", study, "--no-report", *options).stdout
    kit("collect", f"{study}@bitwise", *options)
    kit("tables", f"{study}@bitwise", "--runs", runs, "--out", tmp_path / "tables")
    table = (tmp_path / "tables" / "table-01.md").read_text()
    spread = [line for line in table.splitlines() if line.startswith("| SD")]
    assert [line.replace(" ", "") for line in spread] == ["|SD|0|0|"]
    assert "tiny@bitwise" in table


def test_the_seeds_of_a_record_repeat_its_trial(
    finished: tuple[Path, Path, list[str]], cache: Path, tmp_path: Path
) -> None:
    study, runs, _ = finished
    record = finetune_record(tmp_path, TRIALS[0])
    shutil.copytree(finetune_record(runs, TRIALS[0]).parent, record.parent)
    before = json.loads(record.read_text())["outputs"]
    options = ["--force", "--study", study, "--runs", tmp_path, "--cache", cache]
    digests = []
    for more in (["--same-seeds"], []):
        assert kit("finetune", TRIALS[0], *options, *more).returncode == 0
        digests.append(json.loads(record.read_text())["outputs"]["adapter_digest"])
    assert digests[0] == before["adapter_digest"] != digests[1]
    nothing = kit("trial", TRIALS[1], *options, "--same-seeds")
    assert nothing.returncode == 2
    assert "there is none yet" in nothing.stderr


def test_a_trial_that_another_process_runs_is_refused(cache: Path, study_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [KIT, "trial", TRIALS[0], "--study", study_file]
    command = [*map(str, command), "--runs", str(runs), "--cache", str(cache)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(runs.rglob("trial-1/lock.json")) and first.poll() is None:
        time.sleep(0.05)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    output, errors = first.communicate(timeout=300)
    assert second.returncode == 5
    assert f"process {first.pid} on" in second.stderr
    assert first.returncode == 0, errors
    assert "perplexity" in output


def test_a_failed_trial_gives_one_line_and_does_not_stop_the_others(
    cache: Path, study_file: Path, tmp_path: Path
) -> None:
    """Make one trial fail to write its trace, and another to create its folder."""
    runs = tmp_path / "runs"
    finetune_record(runs, TRIALS[0]).with_name("trace.jsonl").mkdir(parents=True)
    folder = finetune_record(runs, TRIALS[-1]).parent
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    failed = kit("finetune", "--all", "--study", study_file, "--runs", runs, "--cache", cache)
    assert failed.returncode == 4
    assert f"2 of {len(TRIALS)} jobs failed: " in failed.stderr
    for name in (TRIALS[0], TRIALS[-1]):
        assert name in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(list(runs.rglob("finetune.json"))) == len(TRIALS) - 2
    status = kit("status", study_file, "--runs", runs, "--cache", cache)
    assert f"{TRIALS[0]} failed: " in status.stdout


def test_two_simultaneous_runs_share_the_study(cache: Path, study_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [KIT, "run", study_file, "--runs", runs, "--cache", cache, "--jobs", "1", "--no-report"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    for process, text in zip(both, errors, strict=True):
        assert process.returncode == (5 if "jobs are not done: " in text else 0), text
    assert done_trials(runs) == TRIALS
    assert not list(runs.rglob("failed.json"))


def test_each_gpu_gets_one_trial_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the GPUs that the driver's tool lists, or that the user makes visible."""
    monkeypatch.setattr(gpus, "on_cpu", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.visible_gpus() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A100 (UUID: GPU-one)'\necho 'GPU 1: A100 (UUID: GPU-two)'\n")
    tool.chmod(0o755)
    assert gpus.visible_gpus() == ["GPU-one", "GPU-two"]
    assert gpus.default_workers(threads=1) == 2
    for wrong in ("2", "0,", "GPU-three", "all"):
        with pytest.raises(UsageError, match=r"nvidia-smi shows no GPU .*; it shows: 0, 1"):
            gpus.choose_gpus(wrong)
    gpus.choose_gpus("1, GPU-one,1")
    assert gpus.visible_gpus() == ["GPU-two", "GPU-one"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-two,GPU-one"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert gpus.visible_gpus() == ["3", "5", "7"]
    assert gpus.default_workers(threads=1) == 3


def test_without_a_gpu_none_can_be_chosen(study_file: Path, cache: Path, tmp_path: Path) -> None:
    found = kit("run", study_file, "--runs", tmp_path / "runs", "--cache", cache, "--gpus", "0,1")
    assert found.returncode == 2
    assert "--gpus: the CPU build of torch is installed" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
