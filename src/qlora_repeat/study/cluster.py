"""What jobs ask of a cluster's scheduler: the study's ``[cluster]``, the user's file, and options."""

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
from qlora_repeat.study.validation_message import explain

USER_FILE = "QLORA_REPEAT_CLUSTER"
"""The variable that names the user's file; otherwise it is in the folder of a user's settings."""


@dataclass(frozen=True, config=STRICT)
class Cluster:
    """What a task asks for; what is None is left to the plan of the study, or to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Positive | None = None
    """The time limit of a task. One that takes longer is asked to stop, queued again, and goes on."""
    memory: Annotated[float, Field(gt=0)] | None = None
    """GB (1e9 bytes) of the host's memory."""
    cpus: Positive | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    gpu_type: str | None = None
    """As the cluster names it."""
    concurrent: Positive | None = None
    """Tasks at a time."""
    image: str | None = None
    """The Apptainer image that tasks run in."""
    sbatch: dict[str, str | int | bool] | None = None
    """More of sbatch's options, without the dashes."""
    tables: dict[str, str | int | bool] | None = None
    """Those that the job with the tables has instead, which needs no GPU; false takes one back."""


def user_file() -> Path:
    """Where a user keeps what their cluster wants."""
    if given := os.environ.get(USER_FILE):
        return Path(given)
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return settings / "qlora-repeat" / "cluster.toml"


def read_user_file() -> Cluster:
    """The settings of the user's file; none where there is none.

    Raises:
        UsageError: it is not TOML, or has a key that is unknown or out of range.
    """
    path = user_file()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get(USER_FILE):
            raise UsageError(f"${USER_FILE} is {path}, which is not there") from None
        return Cluster()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None
    try:  # as JSON, for the reason that studies have (study.py)
        return TypeAdapter(Cluster).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, [each.name for each in fields(Cluster)])}") from None


def over(first: Cluster, second: Cluster) -> Cluster:
    """The first, with what the second says instead; options of sbatch are joined."""
    said: dict[str, Any] = {
        each.name: value for each in fields(Cluster) if (value := getattr(second, each.name)) is not None
    }
    for name in ("sbatch", "tables"):
        if getattr(first, name) and name in said:
            said[name] = getattr(first, name) | said[name]
    return replace(first, **said)


def minutes_of(text: str) -> int:
    """Minutes, from a time limit as sbatch takes it: ``90``, ``1:30:00``, ``2-12`` or ``2-12:00:00``.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise UsageError(f"--time {text}: give minutes, H:MM:SS, D-HH or D-HH:MM:SS, as to sbatch")
    days, *parts = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None:  # D-HH[:MM[:SS]]
        seconds = days * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    elif found[4] is not None:  # H:MM:SS
        seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:  # M[:SS]
        seconds = parts[0] * 60 + parts[1]
    if seconds == 0:
        raise UsageError(f"--time {text}: there must be some time")
    return -(-seconds // 60)
