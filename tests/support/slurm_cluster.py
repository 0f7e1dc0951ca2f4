"""A real Slurm cluster with one local node, which tests start and stop; its state is in one folder.

It needs root and packages of Debian or Ubuntu; without them, tests that use it are skipped with the reason.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.installing import require

DAEMONS = ("munged", "slurmctld", "slurmd")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "slurm-wlm-basic-plugins")
# A requeued job waits until its old credentials expire, so cred_expire is short.
_SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
ReturnToService=2
GresTypes=gpu
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:test:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2
"""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Start Slurm, and set SLURM_CONF within the block."""
    require((*DAEMONS, "sbatch", "srun", "squeue"), PACKAGES)
    host = socket.gethostname().partition(".")[0]
    for name in ("controller", "node", "gpus"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for number in range(2):  # stands in for a GPU; nothing opens it
        os.mknod(folder / "gpus" / f"gpu{number}", 0o020666, os.makedev(1, 3 + 2 * number))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    settings = _SETTINGS.format(
        host=host,
        port=_free_port(),
        node_port=_free_port(),
        folder=folder,
        cpus=os.cpu_count(),
        memory=memory * 3 // 4,
    )
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Type=test File={folder}/gpus/gpu[0-1]\n")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [
        f"--{name}={folder}/munge.{end}"
        for name, end in (
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("seed-file", "seed"),
            ("log-file", "log"),
        )
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c"],
        ):
            with (folder / f"{command[0]}.out").open("wb") as out:
                started.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(0.5)
        _wait_until_idle(folder)
        yield
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True, timeout=60)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _wait_until_idle(folder: Path) -> None:
    for _ in range(100):
        done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    pytest.skip(f"Slurm does not start here: {logs}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
