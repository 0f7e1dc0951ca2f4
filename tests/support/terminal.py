"""Run a command in a terminal of a given size, and inspect what it draws there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.checkout import ROOT

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
SETTINGS = ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "TERM")
"""Variables that change the output; a command gets TERM, and the others only from its test."""


def environment(**given: str) -> dict[str, str]:
    """Return the environment of this process, with only these variables and TERM from SETTINGS."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**kept, "TERM": "xterm-256color", **given}


def in_terminal(
    command: Sequence[object], columns: int = 80, rows: int = 24, variables: Mapping[str, str] | None = None
) -> str:
    """Run a command with a terminal as its stdin, stdout and stderr; return everything that it writes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(**(variables or {})),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # on Linux: the other side is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def lines(written: str) -> list[str]:
    """Return every line that was drawn, including overwritten ones, without colors and cursor movements."""
    return [line for line in re.split(r"[\r\n]+", _CONTROL.sub("", written)) if line.strip()]


def has_colors(written: str) -> bool:
    return any(code not in ("\x1b[0m", "\x1b[m") for code in _COLOR.findall(written))


def moves(written: str) -> bool:
    """Return whether the cursor was moved or hidden, which would spoil a saved log."""
    return any(not _COLOR.fullmatch(code) for code in _CONTROL.findall(written))


def kit_command() -> Path:
    """Return the console script beside this Python."""
    return Path(sys.executable).with_name("qlora-repeat")
