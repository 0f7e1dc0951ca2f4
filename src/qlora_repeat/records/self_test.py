"""The results of the self-test of a machine: a JSON file in the folder of all results."""

import contextlib
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from qlora_repeat.errors import MissingError
from qlora_repeat.system.files import json_text, strict, write_text
from qlora_repeat.system.fingerprint import machine_digest
from qlora_repeat.system.typed_json import read_as

Outcome = Literal["passed", "failed", "cannot tell"]
_KNOWN_KEYS = ConfigDict(extra="forbid")
_Short = Annotated[str, Field(max_length=1000)]


@dataclass(frozen=True, config=_KNOWN_KEYS)
class Check:
    """What one check found."""

    name: _Short
    outcome: Outcome
    figure: _Short
    """What was measured, in one line."""
    details: dict[str, Any] = field(default_factory=dict)
    """The numbers behind the figure."""


@dataclass(frozen=True, config=_KNOWN_KEYS)
class SelfTest:
    """A self-test of a machine."""

    started: _Short
    """In UTC, as ISO 8601."""
    seconds: Annotated[float, Field(ge=0)]
    full: bool
    """Whether it ran the models of full size too."""
    checks: Annotated[list[Check], Field(max_length=100)]
    fingerprint: dict[str, Any]
    """Of the machine and software."""
    format: Literal[1] = 1

    @property
    def failed(self) -> int:
        return sum(check.outcome == "failed" for check in self.checks)

    @property
    def sentence(self) -> str:
        """Return the date and the number of checks with each outcome, in words."""
        outcomes = [check.outcome for check in self.checks]
        counts = {each: outcomes.count(each) for each in ("passed", "failed", "cannot tell")}
        listed = ", ".join(f"{count} {each}" for each, count in counts.items() if count)
        return f"self-test of {self.started[:10]}: {listed}"


_KIND: TypeAdapter[SelfTest] = TypeAdapter(SelfTest)


def self_test_file(runs: Path, fingerprint: dict[str, Any]) -> Path:
    """Return the file for the self-test of a machine with its software, by its fingerprint."""
    return runs / f"self-test-{machine_digest(fingerprint)[:12]}.json"


def write_self_test(path: Path, found: SelfTest) -> None:
    """Write the result of a self-test."""
    write_text(path, json_text(strict(asdict(found))))


def read_self_test(path: Path) -> SelfTest:
    """Read the result of a self-test.

    Raises:
        MissingError: the file is not one; names the key.
    """
    return read_as(_KIND, path, "run `qlora-repeat selftest` again")


def self_test_of(runs: Path, fingerprint: dict[str, Any]) -> SelfTest | None:
    """Return the self-test of the machine and software of a record, if `runs` has a readable one."""
    with contextlib.suppress(MissingError, KeyError, TypeError, ValueError):
        path = self_test_file(runs, fingerprint)
        found = read_self_test(path) if path.is_file() else None
        if found is not None and self_test_file(runs, found.fingerprint) == path:
            return found
    return None
