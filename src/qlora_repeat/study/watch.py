"""How work tells of its progress."""

from collections.abc import Callable

Report = Callable[[int, int, float | None], None]
"""Told how much is done, of how much, and the loss, if there is one."""

Watch = Callable[[str, int, int, float | None], None]
"""The same, after the name of the stage."""
