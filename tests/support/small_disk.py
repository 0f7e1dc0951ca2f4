"""Full or read-only disks: real file systems in memory, in the test's own mount namespace."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


@functools.cache
def _permitted() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True)
        except OSError:
            return False
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not _permitted(), reason="mounting a file system is not permitted here")


def on_small_disk(
    script: str, folder: Path, megabytes: int, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run Python code with a disk of this size mounted at its `argv[1]`; it can import what tests can."""
    folder.mkdir(exist_ok=True)
    mounted = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && exec "$0" -c "$2" "$1" "${{@:3}}"'
    command = [*_NAMESPACE, "bash", "-c", mounted, sys.executable, str(folder), script, *map(str, arguments)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
