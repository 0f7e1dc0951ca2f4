"""What tasks request from a cluster: the study's ``[cluster]``, the user's file, and options."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import STRICT, Line
from qlora_repeat.study.toml_file import read_toml
from qlora_repeat.study.validation_message import validation_message
from qlora_repeat.system.typed_json import worded

USER_FILE = "QLORA_REPEAT_CLUSTER"
"""The environment variable that names the user's file."""


Word = Annotated[
    str,
    Field(
        pattern=worded(
            r"^[A-Za-z0-9][A-Za-z0-9_.,+@-]*$", "a name on the cluster, or several with commas, such as gpu"
        ),
        max_length=200,
    ),
]
"""A name on a cluster, or several with commas."""
Options = dict[
    Annotated[
        str,
        Field(
            pattern=worded(r"^[a-z][a-z0-9_-]*$", "an option of sbatch without dashes, such as constraint"),
            max_length=64,
        ),
    ],
    Line | Annotated[int, Field(ge=-(2**31), lt=2**31)] | bool,
]
"""Options of sbatch, without the dashes."""


@dataclass(frozen=True, config=STRICT)
class Cluster:
    """What a task requests; for None, the study's plan or the cluster decides."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    minutes: Annotated[int, Field(gt=0, le=10**6)] | None = None
    """The time limit of a task. A longer one is stopped, queued again, and resumes."""
    memory: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """Main memory in GB (1e9 bytes)."""
    cpus: Annotated[int, Field(gt=0, le=10**4)] | None = None
    gpus: Annotated[int, Field(ge=0, le=10**4)] | None = None
    gpu_type: Word | None = None
    """The type of GPU, by the cluster's name for it."""
    concurrent: Annotated[int, Field(gt=0, le=10**6)] | None = None
    """How many tasks run at the same time."""
    image: (
        Annotated[Line, Field(pattern=worded("^[^,:]+$", "a file without , and :, such as kit.sif"))] | None
    ) = None
    """The Apptainer image of the tasks."""
    sbatch: Options | None = None
    """Other options of sbatch."""
    tables: Options | None = None
    """Options of sbatch for the job that makes the tables, which needs no GPU; false removes one."""


ALLOWED = frozenset({
    "account", "begin", "constraint", "contiguous", "cores-per-socket", "cpu-freq", "cpus-per-gpu",
    "cpus-per-task", "deadline", "delay-boot", "distribution", "exclude", "exclusive", "gpu-bind", "gpu-freq",
    "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "licenses",
    "mail-type", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "nice", "nodelist",
    "oversubscribe", "partition", "prefer", "qos", "requeue", "reservation", "sockets-per-node", "spread-job",
    "switches", "threads-per-core", "time", "time-min", "tmp", "use-min-nodes",
})  # fmt: skip
"""The options of sbatch that a study may set: where and when a job runs, and with what. A job's files,
environment, programs and user are not among them."""
_VALUE = re.compile(r"[A-Za-z0-9_.,:;+*&|()\[\]@=!-]{0,200}")


def _only_allowed(cluster: Cluster) -> Cluster:
    """Raise ValueError if a study sets another option of sbatch, or one to an unusual value."""
    for name, value in {**(cluster.sbatch or {}), **(cluster.tables or {})}.items():
        if name.replace("_", "-") not in ALLOWED:
            raise ValueError(f"a study may not set {name} of sbatch; use --sbatch or your own cluster.toml")
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise ValueError(f"{name}: expected letters, digits and punctuation (found {value[:60]!r})")
    return cluster


StudyCluster = Annotated[Cluster, AfterValidator(_only_allowed)]
"""What a study requests. Its author may be a stranger, so only resources can be requested."""


def user_file() -> Path:
    """Return the path of the user's settings for their cluster."""
    if given := os.environ.get(USER_FILE):
        return Path(given)
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return settings / "qlora-repeat" / "cluster.toml"


def read_user_file() -> Cluster:
    """Return the settings of the user's file, or the defaults if there is none.

    Raises:
        UsageError: it is not TOML, or a key is unknown or out of range.
    """
    path = user_file()
    try:
        content = read_toml(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.environ.get(USER_FILE):
            raise UsageError(f"${USER_FILE} is {path}, which does not exist") from None
        return Cluster()
    return _cluster(content, str(path))


def from_options(**given: Any) -> Cluster:
    """Return the settings of the options of `submit`.

    Raises:
        UsageError: a value has control characters, or cannot be a name on a cluster.
    """
    return _cluster(given, "an option of submit")


def _cluster(content: dict[str, Any], where: str) -> Cluster:
    kind = TypeAdapter(Cluster)
    try:  # as JSON, like studies (loading.py)
        return kind.validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UsageError(f"{where}: {validation_message(error, kind.json_schema())}") from None


def requested(cluster: Cluster) -> dict[str, Any]:
    """Return the settings that are not left to the plan or the cluster."""
    return {name: value for name, value in vars(cluster).items() if value is not None}


def over(first: Cluster, second: Cluster) -> Cluster:
    """Return the first settings, overridden by the second; options of sbatch are merged."""
    given = requested(second)
    for name in ("sbatch", "tables"):
        if getattr(first, name) and name in given:
            given[name] = getattr(first, name) | given[name]
    return replace(first, **given)


def minutes_of(text: str) -> int:
    """Return the minutes of a time limit in sbatch's formats: ``90``, ``1:30:00``, ``2-12``, ``2-12:00:00``.

    Raises:
        UsageError: it has another format, or is zero.
    """
    number = "([0-9]{1,9})"
    found = re.fullmatch(rf"(?:{number}-)?{number}(?::{number})?(?::{number})?", text)
    if found is None:
        raise UsageError(f"--time {text}: give minutes, H:MM:SS, D-HH or D-HH:MM:SS, as for sbatch")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is None and found[4] is None:  # M[:SS]
        seconds = first * 60 + second
    else:  # H:MM:SS or D-HH[:MM[:SS]]
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    if seconds == 0:
        raise UsageError(f"--time {text}: expected more than zero")
    return -(-seconds // 60)
