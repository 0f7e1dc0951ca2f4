"""The limits of a container or job: every control group up to the root counts, and `ulimit` too."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_repeat.system.gpus import default_workers
from qlora_repeat.system.limits import memory_left, usable_cores

GIB = 2**30


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


def process(folder: Path, groups: str, *mounts: tuple[str, str, str]) -> Path:
    """Return a process's folder in /proc: its groups, and mounts as (folder, root, file system)."""
    found = folder / "proc"
    found.mkdir()
    (found / "cgroup").write_text(groups)
    lines = [
        f"{number} 1 0:{number} {root} {folder}/{where} rw,relatime - {kind}\n"
        for number, (where, root, kind) in enumerate(mounts)
    ]
    (found / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines) + "odd\n")
    return found


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


V2 = ("sys", "/", "cgroup2 cgroup2 rw")
JOB = "system.slice/slurmstepd.scope/job_7"


def test_the_least_limit_from_the_own_group_to_the_root_counts(tmp_path: Path) -> None:
    """As in a step of a Slurm job, whose limits are in groups above its own."""
    own = process(tmp_path, f"0::/{JOB}/step_0/user/task_0\n", V2)
    assert (usable_cores(own), memory_left(own)) == (64, None)
    group(tmp_path / "sys" / JOB / "step_0/user/task_0", cpu__max="max 100000", memory__max="max")
    group(tmp_path / "sys" / JOB / "step_0", memory__max=8 * GIB, memory__current=GIB)
    group(tmp_path / "sys" / JOB, cpu__max="250000 100000", memory__max=6 * GIB, memory__current=2 * GIB)
    group(tmp_path / "sys/system.slice", cpu__max="1600000 100000", memory__max="max", memory__current=GIB)
    assert (usable_cores(own), memory_left(own)) == (2, 4 * GIB)
    group(tmp_path / "sys" / JOB, memory__high=3 * GIB)  # a process above it is slowed down, not killed
    assert memory_left(own) == GIB


def test_what_the_system_can_drop_at_once_is_free(tmp_path: Path) -> None:
    own = process(tmp_path, "0::/\n", V2)
    stat = f"anon 5\ninactive_file {2 * GIB}\nactive_file 7"
    group(tmp_path / "sys", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=stat)
    assert memory_left(own) == 3 * GIB
    group(tmp_path / "sys", memory__current=7 * GIB)
    assert memory_left(own) == 0


@pytest.mark.parametrize("root", ["/", "/docker/a1"])
def test_a_container_of_version_1_sees_its_own_group_or_the_whole_tree(root: str, tmp_path: Path) -> None:
    own = process(
        tmp_path,
        "5:cpu,cpuacct:/docker/a1\n4:memory:/docker/a1\n1:name=systemd:/\n0::/\n",
        ("c p u", root, "cgroup cgroup rw,cpu,cpuacct"),
        ("memory", root, "cgroup cgroup rw,memory"),
    )
    text = (own / "mountinfo").read_text()
    (own / "mountinfo").write_text(text.replace("c p u", r"c\040p\040u"))
    inside = "." if root != "/" else "docker/a1"
    group(tmp_path / "c p u" / inside, cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    group(tmp_path / "memory" / inside, memory__limit_in_bytes=GIB, memory__usage_in_bytes=0)
    assert (usable_cores(own), memory_left(own)) == (1, GIB)
    group(tmp_path / "c p u" / inside, cpu__cfs_quota_us=-1)
    assert usable_cores(own) == 64


def test_groups_that_cannot_be_read_set_no_limit(tmp_path: Path) -> None:
    own = process(tmp_path, "nonsense\n0::/../elsewhere\n", V2)
    group(tmp_path / "sys", cpu__max="", memory__max="many", memory__current="")
    assert (usable_cores(own), memory_left(own)) == (64, None)
    for name in ("cgroup", "mountinfo"):
        (own / name).unlink()
    assert (usable_cores(own), memory_left(own)) == (64, None)


def test_less_than_a_core_is_one_core(tmp_path: Path) -> None:
    own = process(tmp_path, "0::/a\n", V2)
    group(tmp_path / "sys/a", cpu__max="50000 100000")
    assert usable_cores(own) == 1


def test_a_limit_of_the_shell_counts() -> None:
    code = "from qlora_repeat.system.memory import free_memory; print(free_memory())"
    size = 4 * GIB

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limited, capture_output=True, text=True)
    assert 0 < int(done.stdout) < size, done.stderr


def test_by_default_no_more_trials_run_than_the_quota_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = process(tmp_path, "0::/a\n", V2)
    group(tmp_path / "sys/a", cpu__max="400000 100000")
    monkeypatch.setattr("qlora_repeat.system.limits._PROC", own)
    monkeypatch.setattr("qlora_repeat.system.gpus.visible_gpus", lambda: [])
    assert [default_workers(threads) for threads in (1, 2, 3, 8)] == [4, 2, 1, 1]


ROOT = Path("/sys/fs/cgroup/cpu")


@pytest.mark.skipif(
    not os.access(ROOT / "cpu.cfs_quota_us", os.W_OK) and not os.access(ROOT, os.W_OK),
    reason="needs a tree of control groups of version 1 that this user can change",
)
def test_a_real_quota_is_seen() -> None:
    made = ROOT / f"qlora-repeat-{os.getpid()}" / "inner"
    try:
        made.mkdir(parents=True)
        (made.parent / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"no group can be made here: {error}")
    code = (
        "import sys\nfrom pathlib import Path\nimport os\n"
        "Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from qlora_repeat.system.limits import usable_cores\nprint(usable_cores())"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code, made], capture_output=True, text=True)
        assert done.stdout == "1\n", done.stderr
    finally:
        made.rmdir()
        made.parent.rmdir()
