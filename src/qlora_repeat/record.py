"""Records: the JSON that a stage leaves last, once all that it names is on disk."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_repeat.digest import file_digest
from qlora_repeat.errors import UsageError
from qlora_repeat.files import write_json

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What a stage used, gave and left; where, when and how long."""

    stage: str
    trial: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    files: dict[str, str]
    """The digest of each file that the stage left and keeps, by its path in the trial's folder."""
    fingerprint: dict[str, Any]
    started: str
    finished: str
    seconds: float


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_record(path: Path, record: Record) -> None:
    """Writes a record; the stage counts as done from then on."""
    write_json(path, {"format": FORMAT, **vars(record)})


def read_record(path: Path) -> Record | None:
    """Reads a record, or None if there is none.

    Raises:
        UsageError: the file is not a record; names it, and says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return Record(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UsageError(
            f"{path}: not a readable record ({error}); delete it to run the stage again"
        ) from None


def damaged_file(record: Record, folder: Path) -> str | None:
    """The first file of a record that is missing or has other bytes than were recorded, or None."""
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != expected:
            return name
    return None
