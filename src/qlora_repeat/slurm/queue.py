"""Query Slurm about jobs and partitions."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qlora_repeat.study.cluster import minutes_of
from qlora_repeat.system.environment import without_variables
from qlora_repeat.system.fingerprint import command_output

_NOT_ON_A_NODE = {"PD", "RQ", "RH", "RD", "SE", "RS", "RF"}
"""Job states without a process, as squeue abbreviates them."""
_FILTERS = r"(SQUEUE|SINFO)_\w+"
"""Variables by which users choose what squeue and sinfo show."""


@dataclass(frozen=True)
class Queue:
    """This user's jobs in Slurm."""

    waiting_or_running: Mapping[str, str]
    """The names of jobs by number, such as ``17``, and of tasks of an array, ``17_3``."""
    on_a_node: frozenset[str]
    """Numbers of jobs and tasks that are on a node, as their processes know them (``SLURM_JOB_ID``)."""


def read_queue() -> Queue | None:
    """Return the queue; None without Slurm, or if it does not answer."""
    command = ("squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i %A %t %j")
    with without_variables(_FILTERS):
        output = command_output(*command, seconds=60)
    if output is None:
        return None
    lines = [parts for line in output.splitlines() if len(parts := line.split(maxsplit=3)) == 4]
    return Queue(
        {number: name for number, _, _, name in lines},
        frozenset(own for _, own, state, _ in lines if state not in _NOT_ON_A_NODE),
    )


def cluster_name() -> str | None:
    """Return the name of the cluster; None if unknown."""
    output = command_output("scontrol", "show", "config", seconds=60) or ""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", output, re.MULTILINE)
    return found[1] if found else None


def partition_minutes(partition: str | None) -> int | None:
    """Return the time limit of a partition, or of the default one; None if it has none or is unknown.

    For several partitions, separated by commas, return the shortest: Slurm may start a job in any of them.
    """
    with without_variables(_FILTERS):
        output = command_output("sinfo", "--noheader", "--format=%P %l", seconds=60) or ""
    wanted = set(partition.split(",")) if partition else set()
    limits = []
    for name, limit in (line.split() for line in output.splitlines() if len(line.split()) == 2):
        chosen = name.rstrip("*") in wanted if wanted else name.endswith("*")
        if chosen and limit not in ("infinite", "n/a"):
            limits.append(minutes_of(limit))
    return min(limits, default=None)
