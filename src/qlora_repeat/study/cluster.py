"""What tasks request from a cluster: the study's ``[cluster]``, the user's file, and options."""

import json
import os
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import UsageError
from qlora_repeat.study.data_sources import STRICT, Positive
from qlora_repeat.study.validation_message import validation_message

USER_FILE = "QLORA_REPEAT_CLUSTER"
"""The environment variable that names the user's file."""


@dataclass(frozen=True, config=STRICT)
class Cluster:
    """What a task requests; for None, the study's plan or the cluster decides."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Positive | None = None
    """The time limit of a task. A longer one is stopped, queued again, and resumes."""
    memory: Annotated[float, Field(gt=0)] | None = None
    """Main memory in GB (1e9 bytes)."""
    cpus: Positive | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    gpu_type: str | None = None
    """The type of GPU, by the cluster's name for it."""
    concurrent: Positive | None = None
    """How many tasks run at the same time."""
    image: str | None = None
    """The Apptainer image of the tasks."""
    sbatch: dict[str, str | int | bool] | None = None
    """Other options of sbatch, without the dashes."""
    tables: dict[str, str | int | bool] | None = None
    """Options of sbatch for the job that makes the tables, which needs no GPU; false removes one."""


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
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get(USER_FILE):
            raise UsageError(f"${USER_FILE} is {path}, which does not exist") from None
        return Cluster()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None
    try:  # as JSON, like studies (loading.py)
        return TypeAdapter(Cluster).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UsageError(
            f"{path}: {validation_message(error, [each.name for each in fields(Cluster)])}"
        ) from None


def over(first: Cluster, second: Cluster) -> Cluster:
    """Return the first settings, overridden by the second; options of sbatch are merged."""
    given: dict[str, Any] = {
        each.name: value for each in fields(Cluster) if (value := getattr(second, each.name)) is not None
    }
    for name in ("sbatch", "tables"):
        if getattr(first, name) and name in given:
            given[name] = getattr(first, name) | given[name]
    return replace(first, **given)


def minutes_of(text: str) -> int:
    """Return the minutes of a time limit in sbatch's formats: ``90``, ``1:30:00``, ``2-12``, ``2-12:00:00``.

    Raises:
        UsageError: it has another format, or is zero.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
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
