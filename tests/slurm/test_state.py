"""The files that `submit` keeps beside results, which somebody else may have written."""

import os
from pathlib import Path

import pytest
from support.places import at
from support.tiny import write_study

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.slurm.logs import trial_logs
from qlora_repeat.slurm.submit import Request, clear_locks, jobs_folder, make_request, submit, submitted_tasks
from qlora_repeat.study.cluster import Cluster
from qlora_repeat.study.workspace import Workspace
from qlora_repeat.system.file_lock import live_owner, remove_ended

TRIAL = "tiny-neox/adamw-8bit/1"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return at(write_study(tmp_path), tmp_path / "runs")


@pytest.mark.parametrize(
    "content",
    ["[]", "1", "null", '{"a": 1}', '{"a": ["1"]}', '{"a": "../../../etc/passwd"}', '{"a": "1\\u001b"}',
     "[" * 9999, '{"a": "1", "a": "2"}', '{"a": "' + "9" * 5000 + '"}', '{"a": ' + "9" * 5000 + "}", "\x00"],
)  # fmt: skip
def test_a_strange_list_of_tasks_gives_one_line(content: str, workspace: Workspace) -> None:
    folder = jobs_folder(workspace)
    folder.mkdir(parents=True)
    (folder / "tasks.json").write_text(content)
    for read in (lambda: submitted_tasks(folder), lambda: list(trial_logs(workspace.trial(TRIAL), 10))):
        with pytest.raises(MissingError) as caught:
            read()
        assert str(caught.value).startswith(f"{folder / 'tasks.json'}: ")
        assert str(caught.value).endswith("; delete it") and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"pid": 1, "host": "h", "slurm": []}',
     '{"pid": 1, "host": "h", "slurm": {"job": ["1"]}}',
     '{"pid": 1, "host": "h", "slurm": {"job": {}, "cluster": 5}}', '{"pid": -1, "host": "h"}',
     '{"pid": ' + "9" * 4000 + ', "host": "h"}', '{"pid": ' + "9" * 5000 + ', "host": "h"}', "[" * 9999,
     '{"pid": 1, "host": "\\ud800"}', '{"pid": 1, "host": "' + "h" * 9000 + '"}',
     '{"pid": 1, "host": "h", "slurm": {"job": "17", "cluster": {"a": 1}}}'],
)  # fmt: skip
def test_a_strange_lock_ends_no_command(content: str, workspace: Workspace) -> None:
    trial = workspace.trial(TRIAL)
    trial.folder.mkdir(parents=True)
    trial.lock.write_text(content)
    assert live_owner(trial.lock) is not None
    assert not remove_ended(trial.lock, content.encode(), frozenset({"17"}), "big")
    shown = "".join(trial_logs(trial, 10))
    assert "process " in shown and len(shown) < 1000
    clear_locks(workspace)
    assert trial.lock.exists()


def test_a_lock_that_is_no_file_is_not_read(workspace: Workspace) -> None:
    import os

    trial = workspace.trial(TRIAL)
    trial.folder.mkdir(parents=True)
    os.mkfifo(trial.lock)
    assert live_owner(trial.lock) == {"pid": "unknown", "host": "an unknown host"}
    trial.lock.unlink()
    trial.lock.symlink_to("/dev/zero")
    assert live_owner(trial.lock) == {"pid": "unknown", "host": "an unknown host"}


@pytest.mark.parametrize("name", ["a%j", "a\nb", "a\x1bb"])
def test_a_folder_whose_name_changes_a_job_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line break would end the comment that names the log, and % is a pattern there."""
    for tool in ("sbatch", "srun"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    strange = at(write_study(tmp_path), tmp_path / name)
    with pytest.raises(UsageError, match="Slurm needs a folder without control characters and without %"):
        submit(Request([], {}, {}, {}, estimated=False), strange, Cluster(), tmp_path / "out")


JOB = {
    "SLURM_JOB_ID": "41", "SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS": "1",
    "SLURMD_NODENAME": "n1", "SRUN_CPUS_PER_TASK": "1", "SUBMITIT_EXECUTOR": "slurm", "PMI_RANK": "0",
    "CUDA_VISIBLE_DEVICES": "3", "TMPDIR": "/tmp/slurm.41",
}  # fmt: skip
"""What Slurm, an administrator and submitit set in a job."""
OVERRIDES = {
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_MEM_PER_CPU": "9",
    "SBATCH_WAIT": "1",
    "SBATCH_PARTITION": "slow",
}
OWN = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "mine", "HF_TOKEN": "t"}


@pytest.mark.parametrize("inside", [True, False])
def test_a_job_gets_nothing_of_the_job_that_submits_it(
    inside: bool, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun in the new job would refuse SLURM_MEM_PER_CPU, or take the cores and the GPU of the old one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    given = tmp_path / "given"
    for tool, does in (
        ("sbatch", f"env > {given}; echo Submitted batch job 77"),
        ("srun", ":"),
        ("squeue", '[ -z "$SQUEUE_STATES" ]'),
        ("scontrol", ":"),
    ):
        (tools / tool).write_text(f"#!/bin/sh\n{does}\n")
        (tools / tool).chmod(0o755)
    shared = {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "3"}
    for name, value in (OVERRIDES | OWN | {"SQUEUE_STATES": "F"} | (JOB if inside else shared)).items():
        monkeypatch.setenv(name, value)
    if not inside:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    cluster = Cluster(partition="fast", minutes=10, memory=1, cpus=1, gpus=0)
    request = make_request(workspace, cluster, None)
    jobs, render = submit(request, workspace, cluster, tmp_path / "out")
    assert set(jobs) == set(request.tasks) and render == "77"
    found = dict(line.partition("=")[::2] for line in given.read_text().splitlines())
    assert OWN.items() <= found.items()
    gone = [*OVERRIDES, *(name for name in JOB if inside or name not in shared), "SLURM_JOB_ID"]
    assert [name for name in gone if name in found and name != "PMI_RANK"] == []
    assert inside or shared.items() <= found.items()
    assert os.environ["SBATCH_TIMELIMIT"] == "1", "only the job does not get it"
