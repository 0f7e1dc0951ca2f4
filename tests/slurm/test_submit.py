"""A study on a real Slurm cluster: trials are queued, stopped, preempted and fail; tables come last."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from support.checkout import ROOT, kit
from support.places import at
from support.slurm_cluster import slurm
from support.tiny import write_study
from support.trials import outputs

from qlora_repeat.slurm.queue import read_queue
from qlora_repeat.study.loading import load_study
from qlora_repeat.system.files import read_json, write_json

pytestmark = pytest.mark.slurm

KIT = Path(sys.executable).with_name("qlora-repeat")
LONG = ("\nsteps = 3", "\nsteps = 150")
SMALL = ["--memory", "1.5", "--time", "20"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm(tmp_path_factory.mktemp("slurm") / "state"):
        yield


def wait(what: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until the condition holds; check often, since some states last only a second."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, subprocess.run(
            ["squeue", "-r"], capture_output=True, text=True
        ).stdout
        time.sleep(0.2)


def empty() -> bool:
    queue = read_queue()
    return queue is not None and not queue.waiting_or_running


def submit_command(study: Path, runs: Path, cache: Path, *options: object) -> list[str]:
    where = ["--runs", runs, "--cache", cache, "--out", runs / "out"]
    return [str(KIT), "submit", *map(str, [study, *where, *SMALL, *options])]


def submit(study: Path, runs: Path, cache: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = submit_command(study, runs, cache, *options)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def job_of(output: str, name: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name}: job ")]
    return line.rpartition(" ")[2]


def waiting(fields: str) -> str:
    command = ["squeue", "--me", "--states=PENDING", "--noheader", f"--format={fields}"]
    return subprocess.run(command, stdout=PIPE, text=True, check=True).stdout


def process_of(job: str) -> int:
    """Return the process of submitit for a task of an array; the command is its child."""
    array, task = job.split("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = set((folder / "environ").read_bytes().split(b"\0"))
            if b"submitit.core._submit" in command and b"srun" not in command[0] and wanted <= environment:
                found.append(int(folder.name))
    (number,) = found
    return number


def test_two_submissions_at_once_run_each_trial_once_and_tables_come_last(
    cache: Path, tmp_path: Path
) -> None:
    """Let one trial fail too: its log says why, and only this trial is submitted again."""
    study_file, runs = write_study(tmp_path, ("trials = 2", "trials = 1")), tmp_path / "runs"
    study = load_study(str(study_file))
    names = [trial.name for trial in at(study, runs, cache).trials()]
    broken = at(study, runs, cache).trial(names[0])
    (broken.folder / "trace.jsonl").mkdir(parents=True)
    command = submit_command(study_file, runs, cache, "--concurrent", 1)
    both = [subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    for process, (_, error) in zip(both, outputs, strict=True):
        assert process.returncode == 0 or "process " in error, error  # another process submits
    lines = [line for out, _ in outputs for line in out.splitlines()]
    queued = [line.split(": job ")[0] for line in lines if ": job " in line]
    assert sorted(name for name in queued if name in names) == sorted(names)
    again = submit(study_file, runs, cache).stdout
    assert "queued already, as job" in again and again.count(": job ") == 1, "the job for the tables"
    assert waiting("%j").count("tables") == 1, "the new job replaces the one before"

    made = subprocess.run(
        ["sbatch", "--parsable", "--hold", "--wrap=true"], stdout=PIPE, text=True, check=True
    )
    forged = at(study, runs, cache).folder / "slurm" / "render.json"
    tables = read_json(forged, "")
    write_json(forged, other := made.stdout.strip())
    assert ": job " in submit(study_file, runs, cache).stdout, "it is not the job for the tables"
    assert other in waiting("%i").split(), "no other job is canceled, whatever number a stranger wrote"
    subprocess.run(["scancel", other, tables], check=True)

    most = 0
    while not empty():
        queue = read_queue()
        most = max(most, len(queue.on_a_node) if queue else 0)
        time.sleep(0.2)
    assert most == 1, "one task at a time"
    status = kit("status", study_file, "--runs", runs, "--cache", cache).stdout
    assert f"{broken.name} failed: " in status and status.count("failed: ") == 1
    logs = kit("status", broken.name, "--study", study_file, "--runs", runs).stdout
    assert f"{broken.trace}" in logs
    assert (runs / "out" / "table-01.md").stat().st_size > 100

    (broken.folder / "trace.jsonl").rmdir()
    repaired = submit(study_file, runs, cache).stdout
    assert job_of(repaired, broken.name) and repaired.count(": job ") == 2, "the trial and the tables"
    wait(empty)
    assert "every trial is done; nothing is submitted" in submit(study_file, runs, cache).stdout


def test_a_cancelled_or_preempted_trial_resumes_to_the_same_bits(cache: Path, tmp_path: Path) -> None:
    study_file = write_study(tmp_path, LONG, ("trials = 2", "trials = 1"))
    study = load_study(f"{study_file}@bitwise")
    undisturbed = at(study, tmp_path / "undisturbed", cache).trial("tiny-neox/adamw-8bit/1")
    alone = ["--study", study_file, "--randomness", "bitwise", "--cache", cache, "--runs"]
    done = kit("finetune", undisturbed.name, *alone, undisturbed.workspace.runs)
    assert done.returncode == 0, done.stderr

    runs = tmp_path / "runs"
    trial = at(study, runs, cache).trial(undisturbed.name)
    job = job_of(submit(study_file, runs, cache, "--randomness", "bitwise").stdout, trial.name)

    def logged(words: str) -> int:
        log = kit("status", trial.name, *alone[:4], "--runs", runs, "--lines", 1000).stdout
        return log.count(words)

    wait(lambda: any(trial.unfinished.glob("step-*")))
    os.kill(process_of(job), signal.SIGUSR1)  # as Slurm does before the limit; scancel sends it several times
    wait(lambda: logged("Starting with JobEnvironment") == 2)
    assert logged("by SIGUSR1") == 1
    wait(lambda: logged(f"{trial.name}: finetune") == 2)
    # A more urgent job takes the node: SIGTERM, then a grace time, then the task is queued again.
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait(lambda: logged("Starting with JobEnvironment") == 3)
    assert logged("by SIGTERM") == 1
    subprocess.run(["scancel", job], check=True)
    wait(lambda: job not in (getattr(read_queue(), "waiting_or_running", {job})))
    assert job_of(submit(study_file, runs, cache, "--randomness", "bitwise").stdout, trial.name) != job
    wait(empty)
    assert outputs(trial)["adapter_digest"] == outputs(undisturbed)["adapter_digest"]
    output = submit(study_file, runs, cache, "--randomness", "bitwise").stdout
    assert "every trial is done; nothing is submitted" in output, "base tests are done too"
