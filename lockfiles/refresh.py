"""Write the lock files from pyproject.toml, pocket.in and bench.in: `make lock`.

Packages keep their locked versions unless pyproject.toml excludes them or an argument for uv says otherwise:
`--upgrade`, `--upgrade-package NAME`. One resolution, for Python 3.11 on x86_64, gives build.txt,
torch-cuda.txt, runtime.txt, dev.txt and lm-eval.txt, so each package has one version. Then check.py checks
the files for every Python and machine that the kit supports.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from check import LEFT_OUT, LOCKS, problems

HEADER = "# Written by `make lock`; see lockfiles/README.md.\n"
OF_TORCH = re.compile(r"torch|triton|nvidia-.+|cuda-.+")

Pins = dict[str, str]  # a package's name, and the lines that pin it


def compiled(output: Path, *arguments: str) -> Pins:
    """Return what uv resolves its arguments to; it prefers the versions that `output` already has."""
    command = [sys.executable, "-m", "uv", "pip", "compile", *arguments, f"--output-file={output}", "--quiet"]
    command += ["--generate-hashes", "--no-header", "--annotation-style=line"]
    command += ["--python-version=3.11.1", "--python-platform=x86_64-manylinux_2_28"]
    subprocess.run(command, cwd=LOCKS.parent, check=True)
    # Lines with a package's name are not indented; its hashes and notes are.
    blocks = re.split(r"^(?=[a-z0-9])", output.read_text(), flags=re.MULTILINE)[1:]
    return {block.split("==")[0]: block for block in blocks}


def write(name: str, pins: Pins, packages: Iterable[str]) -> None:
    """Write a lock file, unless it is up to date: then `make` need not install again."""
    lock, text = LOCKS / name, HEADER + "".join(pins[package] for package in sorted(packages))
    if not lock.exists() or lock.read_text() != text:
        lock.write_text(text)


def refresh(folder: Path, options: list[str]) -> None:
    """Resolve all packages at once, then divide them among the lock files."""
    everything, part = folder / "everything.txt", folder / "part.txt"
    groups = ("pyproject.toml", "--group=build", "--group=dev", "--extra=lm-eval")
    locked = [
        LOCKS / name for name in ("build.txt", "torch-cuda.txt", "runtime.txt", "dev.txt", "lm-eval.txt")
    ]
    everything.write_text("".join(lock.read_text() for lock in locked if lock.exists()))
    pins = compiled(everything, *groups, *options)

    build = compiled(part, "--group=build", f"--constraints={everything}").keys()
    project = compiled(part, "pyproject.toml", f"--constraints={everything}").keys()
    dev = compiled(part, "--group=dev", f"--constraints={everything}").keys()
    extra = compiled(part, "pyproject.toml", "--extra=lm-eval", f"--constraints={everything}").keys()
    torch = {package for package in project if OF_TORCH.fullmatch(package)}
    write("build.txt", pins, build)
    write("torch-cuda.txt", pins, torch)
    write("runtime.txt", pins, project - torch - LEFT_OUT)
    write("dev.txt", pins, dev - project - build)
    write("lm-eval.txt", pins, extra - project - build)

    for name in ("pocket", "bench"):
        alone = compiled(part, f"lockfiles/{name}.in", "--no-deps")
        write(f"{name}.txt", alone, alone)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        refresh(Path(name), sys.argv[1:])
    sys.exit("\n".join(problems()) or None)
