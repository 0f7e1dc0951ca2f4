"""A driver's tool for tests, on machines without a GPU."""

from pathlib import Path

ONE = "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n"


def driver_tool(folder: Path, *, listed: str = ONE, driver: str = "580.65.06") -> None:
    """Write an ``nvidia-smi`` that lists these GPUs and has this driver."""
    script = f"""#!/bin/sh
case "$1" in
-L) printf '%s' '{listed}' ;;
--query-gpu=driver_version) echo {driver} ;;
*) exit 2 ;;
esac
"""
    tool = folder / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
