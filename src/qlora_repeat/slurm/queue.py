"""What Slurm says of its jobs and partitions, where there is one."""

import os
import re
import subprocess
from dataclasses import dataclass

from qlora_repeat.study.cluster import minutes_of

_NOT_ON_A_NODE = {"PD", "RQ", "RH", "RD", "SE", "RS", "RF"}
"""States of jobs, as squeue shortens them, that have no process."""


@dataclass(frozen=True)
class Queue:
    """This user's jobs that Slurm knows."""

    waiting_or_running: frozenset[str]
    """Numbers of jobs, such as ``17``, and of tasks of an array, ``17_3``."""
    on_a_node: frozenset[str]
    """Numbers of jobs and tasks that are on a node, as their processes know them (``SLURM_JOB_ID``)."""


def read_queue() -> Queue | None:
    """What Slurm says; None where there is none, or it does not answer."""
    told = _told("squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i %A %t")
    if told is None:
        return None
    lines = [line.split() for line in told.splitlines() if len(line.split()) == 3]
    return Queue(
        frozenset(number for number, _, _ in lines),
        frozenset(own for _, own, state in lines if state not in _NOT_ON_A_NODE),
    )


def cluster_name() -> str | None:
    """The cluster that jobs are submitted to; None where nobody tells."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _told("scontrol", "show", "config") or "", re.MULTILINE)
    return found[1] if found else None


def partition_minutes(partition: str | None) -> int | None:
    """The time limit of a partition, or of the default one; None where it has none, or nobody tells.

    Of several, with commas between, the shortest: Slurm starts a job in any.
    """
    told = _told("sinfo", "--noheader", "--format=%P %l") or ""
    wanted = set(partition.split(",")) if partition else set()
    limits = []
    for name, limit in (line.split() for line in told.splitlines() if len(line.split()) == 2):
        chosen = name.rstrip("*") in wanted if wanted else name.endswith("*")
        if chosen and limit not in ("infinite", "n/a"):
            limits.append(minutes_of(limit))
    return min(limits, default=None)


def _told(*command: str) -> str | None:
    """What a command of Slurm prints; None where it is not there, fails, or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
