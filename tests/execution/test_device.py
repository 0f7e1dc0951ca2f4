"""What a study runs on: a GPU that it asks for, or the CPU, which is said and recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.checkout import ROOT, kit
from support.gpus import STARTUP, driver_tool, fake_cuda_build
from support.laboratory import failure
from support.places import at
from support.tiny import write_study
from support.trials import quiet

from qlora_repeat.analysis.verify.recorded_settings import VERIFIED_STAGES
from qlora_repeat.cli.main import cli
from qlora_repeat.errors import NoGpuError
from qlora_repeat.execution.run_trial import run_base_test, run_trial
from qlora_repeat.records.record import read_record
from qlora_repeat.records.trial_state import stage_states
from qlora_repeat.study.loading import open_workspace
from qlora_repeat.study.trial import STAGES
from qlora_repeat.system.determinism import WORKSPACE
from qlora_repeat.system.fingerprint import device_name

NAME = "tiny-neox/adamw-8bit/1"
ON_GPU = ('name = "tiny"', 'name = "tiny"\ndevice = "gpu"')
WAYS = [
    "run {study}",
    f"trial {NAME} --study {{study}}",
    "trial tiny-neox/base --study {study}",
    *(f"{stage} {NAME} --study {{study}}" for stage in STAGES),
    *(f"{stage} --all --study {{study}}" for stage in STAGES),
    "attribute {study}",
]
"""The commands that start trials."""


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the only folder on PATH, on a machine with torch's CUDA build and no driver."""
    return fake_cuda_build(monkeypatch, tmp_path)


@pytest.fixture
def study_for_gpu(tmp_path: Path) -> Path:
    return write_study(tmp_path, ON_GPU)


@pytest.fixture(scope="module")
def recorded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of results with a trial of the study without the key; only for reading."""
    folder = tmp_path_factory.mktemp("recorded")
    run_trial(at(write_study(folder), folder / "runs", cache).trial(NAME), VERIFIED_STAGES, quiet)
    return folder / "runs"


def invoke(line: str, study: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, [*line.format(study=study).split(), *map(str, more)])


@pytest.mark.parametrize("way", WAYS)
def test_without_the_gpu_that_a_study_asks_for_nothing_is_fetched(
    way: str, cuda_build: Path, study_for_gpu: Path, tmp_path: Path
) -> None:
    driver_tool(cuda_build, driver="550.54.14")
    before = {*tmp_path.rglob("*")}
    found = failure(invoke(way, study_for_gpu, "--cache", tmp_path / "cache", "--runs", tmp_path / "runs"))
    assert isinstance(found, NoGpuError)
    assert "driver: 550.54.14, CUDA 13.0 needs 580" in str(found)
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("more", [[], ["--all"], ["--steps", "1"], ["--stages", "evaluate"]])
def test_verify_needs_the_gpu_too_and_has_no_verdict_without_it(
    more: list[str], cuda_build: Path, recorded: Path, study_for_gpu: Path, tmp_path: Path
) -> None:
    """Verifying a whole study must not end with an inconclusive verdict on every trial."""
    given = study_for_gpu if more == ["--all"] else NAME
    where = ["--cache", tmp_path / "cache", "--runs", recorded, "--scratch", tmp_path / "scratch"]
    found = failure(invoke(f"verify {given} --study {{study}}", study_for_gpu, *where, *more))
    assert isinstance(found, NoGpuError)
    assert not (tmp_path / "cache").exists()


def test_a_process_that_was_given_no_gpu_refuses_its_job(
    cuda_build: Path, study_for_gpu: Path, cache: Path, tmp_path: Path
) -> None:
    """This is what a process of the pool does first, and a task on a cluster."""
    workspace = at(study_for_gpu, tmp_path / "runs", cache)
    with pytest.raises(NoGpuError):
        run_trial(workspace.trial(NAME), STAGES, quiet)
    with pytest.raises(NoGpuError):
        run_base_test(workspace.base_tests("tiny-neox")[0], quiet)
    assert not (tmp_path / "runs").exists()


def test_a_login_node_needs_no_gpu_to_submit(
    cuda_build: Path, study_for_gpu: Path, cache: Path, tmp_path: Path
) -> None:
    options = ["--dry-run", "--memory", "1", "--time", "1", "--cache", cache, "--runs", tmp_path / "runs"]
    asked = invoke("submit {study}", study_for_gpu, *options)
    assert asked.exit_code == 0, asked.output
    assert "array of" in asked.stdout


def test_the_cpu_is_announced_even_if_quiet_and_recorded(
    study_for_gpu: Path, cache: Path, tmp_path: Path
) -> None:
    """The trial of a study that asks for a GPU is also done for the same study without the key."""
    (tmp_path / "auto").mkdir()
    study = write_study(tmp_path / "auto")
    options = ["--cache", cache, "--runs", tmp_path / "runs"]
    asked = kit("finetune", NAME, "--study", study_for_gpu, "--cpu", *options)
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr.splitlines()[0] == "Runs on the CPU, as --cpu asks"
    trial = open_workspace(str(study), runs=tmp_path / "runs", cache=cache).trial(NAME)
    record = read_record(trial.record("finetune"))
    assert record is not None
    assert record.fingerprint["gpu"] is None
    assert record.fingerprint["gpu_count"] == 0
    assert record.fingerprint["cpu"] in device_name(record.fingerprint)
    assert stage_states(trial)["finetune"].state == "done"
    again = kit("finetune", NAME, "--study", study, "--quiet", *options)
    assert again.returncode == 0, again.stderr
    assert again.stdout == ""
    (line,) = again.stderr.splitlines()
    assert line.startswith("Runs on the CPU: torch ")


def test_make_all_of_the_paper_stops_before_it_fetches_anything(tmp_path: Path) -> None:
    places = {"CACHE": "cache", "RUNS": "runs", "LOCK": "paper.lock"}
    environment = {f"QLORA_REPEAT_{name}": str(tmp_path / place) for name, place in places.items()}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    for target in ("all", "finetune", "time"):
        done = subprocess.run(
            ["make", target, "STUDY=paper", f"KIT_PYTHON={sys.executable}"],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
        assert line.startswith('Error: the study has device = "gpu", but torch ')
        assert not [*tmp_path.iterdir()]


def test_deterministic_trials_set_the_workspace_before_the_device_is_initialized(
    cache: Path, tmp_path: Path
) -> None:
    """Run jobs as `attribute` and `diff` do, whose own process is not prepared for deterministic kernels."""
    study = write_study(tmp_path)
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "sitecustomize.py").write_text(STARTUP)
    script = f"""
from qlora_repeat.analysis.step_rerun import _StepJob
from qlora_repeat.execution.jobs import BaseTestJob, TrialJob
from qlora_repeat.execution.process_pool import run_jobs
from qlora_repeat.study.loading import open_workspace
from pathlib import Path

class Ignored:
    def started(self, *told): pass
    def progress(self, *told): pass
    def ended(self, *told): pass

workspace = open_workspace("{study}@bitwise", runs=Path("{tmp_path}/runs"), cache=Path("{cache}"))
first, second, *_ = workspace.trials()
jobs = [
    TrialJob(first, ["finetune"]),
    BaseTestJob(workspace.base_tests("tiny-neox")[0]),
    _StepJob("for diff --operations", second, {{}}, 1),
]
for error in run_jobs(jobs, 1, Ignored()):
    print(error)
"""
    environment = {"PYTHONPATH": str(tmp_path / "startup"), "INITIALIZED": str(tmp_path / "initialized")}
    environment |= {name: value for name, value in os.environ.items() if name != WORKSPACE}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert set((tmp_path / "initialized").read_text().split()) == {":4096:8"}
