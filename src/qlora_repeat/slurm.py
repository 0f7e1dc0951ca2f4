"""What Slurm says of its jobs and partitions, where there is one."""

import os
import re
import subprocess
from dataclasses import dataclass

from qlora_repeat.cluster import minutes_of

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
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i %A %t"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    lines = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 3]
    return Queue(
        frozenset(number for number, _, _ in lines),
        frozenset(own for _, own, state in lines if state not in _NOT_ON_A_NODE),
    )


def cluster_name() -> str | None:
    """The cluster that jobs are submitted to; None where nobody tells."""
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else None


def partition_minutes(partition: str | None) -> int | None:
    """The time limit of a partition, or of the default one; None where it has none, or nobody tells."""
    command = ["sinfo", "--noheader", "--format=%P %l"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    for name, limit in (line.split() for line in done.stdout.splitlines() if len(line.split()) == 2):
        if name == partition or (partition is None and name.endswith("*")) or name == f"{partition}*":
            return None if limit in ("infinite", "n/a") else minutes_of(limit)
    return None
