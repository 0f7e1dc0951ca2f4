"""System packages for tests that start a scheduler or build an image.

A test installs them only if QLORA_REPEAT_TESTS_MAY_INSTALL is set, as in CI.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable

import pytest

ALLOWED = "QLORA_REPEAT_TESTS_MAY_INSTALL"


def require(commands: Iterable[str], packages: Iterable[str]) -> None:
    """Skip the test, with the reason, unless the user is root and the commands exist or can be installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not (lacking := _lacking(commands)):
        return
    if not os.environ.get(ALLOWED):
        pytest.skip(f"not installed: {lacking} ({ALLOWED}=1 lets the test install it)")
    # Two test processes may install at the same time.
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(
                [*apt, *command], env=environment, capture_output=True, text=True, timeout=600
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"not installed, and apt-get cannot: {lacking} ({error})")
    if lacking := _lacking(commands):
        pytest.skip(f"not installed, and apt-get cannot: {lacking} ({done.stderr.strip()[-200:]})")


def _lacking(commands: Iterable[str]) -> str:
    return ", ".join(name for name in commands if shutil.which(name) is None)
