"""Check that the lock files resolve on every Python and machine that the kit supports.

`make lock` runs it at the end, and so does a test. It resolves pyproject.toml, pocket.in and bench.in with
only the locked versions. For each Python and machine, every package must be in a lock file, with the hash of
a file that can be installed there.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

LOCKS = Path(__file__).resolve().parent
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
MACHINES = ("x86_64", "aarch64")
LEFT_OUT = {"pycosat"}  # C source, for a task family of reasoning-gym that no study uses
FROM_SOURCE = {"cellpylib", "zss", "rouge-score", "sqlitedict", "word2number"}  # plain Python without wheels
RESOLVED = ("build", "torch-cuda", "runtime", "dev", "lm-eval", "pocket", "bench")
INPUTS = (
    ("pyproject.toml", "--group=build", "--group=dev", "--extra=lm-eval"),
    ("lockfiles/pocket.in", "lockfiles/bench.in", "--no-deps"),
)

Locked = dict[str, tuple[str, set[str]]]  # a package's name: its version, and the SHA-256 of its files


def read_locks(folder: Path, *names: str) -> Locked:
    """Return what these lock files pin."""
    text = "".join((folder / f"{name}.txt").read_text() for name in names)
    blocks = re.findall(r"^([\w.-]+)==(\S+) \\\n((?: +--hash=.*\n)+)", text, re.MULTILINE)
    return {name: (version, set(re.findall(r"sha256:(\w+)", rest))) for name, version, rest in blocks}


def problems(folder: Path = LOCKS) -> list[str]:
    """Return the problems of the lock files, one line each.

    Raises:
        ConnectionError: no package index answers.
    """
    locked = read_locks(folder, *RESOLVED)
    found = list(_cpu_problems(folder, locked))
    with tempfile.TemporaryDirectory() as name:
        pins, excluded, out = (Path(name, each) for each in ("pins.txt", "excluded.txt", "pylock.toml"))
        pins.write_text("".join(f"{package}=={version}\n" for package, (version, _) in locked.items()))
        excluded.write_text("\n".join(LEFT_OUT))
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
        command += ["--python-version=3.11.1", "--format=pylock.toml", f"--output-file={out}"]
        command += [f"--constraints={pins}", f"--excludes={excluded}"]
        for given in INPUTS:
            done = subprocess.run([*command, *given], cwd=LOCKS.parent, capture_output=True, text=True)
            if done.returncode:
                message = " ".join(done.stderr.split())
                if re.search("error sending request|Failed to fetch|network", message):
                    raise ConnectionError(message)
                return [*found, message]
            packages = tomllib.loads(out.read_text())["packages"]
            for python, machine in product(PYTHONS, MACHINES):
                where = f"Python {'.'.join(map(str, python))} on {machine}: "
                found += [where + line for line in _unlocked(packages, locked, python, machine)]
    return found


def _unlocked(
    packages: list[dict[str, Any]], locked: Locked, python: tuple[int, int], machine: str
) -> Iterator[str]:
    version = ".".join(map(str, python))
    here = {"python_version": version, "python_full_version": f"{version}.1", "platform_machine": machine}
    tags = _tags(python, machine)
    for package in packages:
        if "marker" in package and not Marker(package["marker"]).evaluate(here):
            continue
        name, wheels = package["name"], package.get("wheels", [])
        files = [file for file in wheels if not tags.isdisjoint(parse_wheel_filename(_file_name(file))[3])]
        if name in FROM_SOURCE:
            files.append(package["sdist"])
        if name not in locked:
            yield f"{name} is needed, and in no lock file"
        elif locked[name][0] != package["version"]:
            yield f"{name} {package['version']} is needed, and locked is {locked[name][0]}"
        elif not files:
            yield f"{name} {package['version']} has no wheel"
        elif locked[name][1].isdisjoint(file["hashes"]["sha256"] for file in files):
            yield f"{name} {package['version']}: the hash of {_file_name(files[0])} is not locked"


def _file_name(file: dict[str, Any]) -> str:
    return str(file["url"].rpartition("/")[2])


def _tags(python: tuple[int, int], machine: str) -> set[Tag]:
    """Return the tags of wheels that can be installed there, with glibc 2.28."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    interpreter = f"cp{python[0]}{python[1]}"
    return {
        *cpython_tags(python, platforms=platforms),
        *compatible_tags(python, interpreter, [*platforms, "any"]),
    }


def _cpu_problems(folder: Path, locked: Locked) -> Iterator[str]:
    """Yield the problems of torch-cpu.txt that can be found without PyTorch's index."""
    version, hashes = read_locks(folder, "torch-cpu").get("torch", ("", set()))
    other = locked.get("torch", ("no torch",))[0]
    if version != f"{other}+cpu":
        yield f"torch-cpu.txt has torch {version}, torch-cuda.txt {other}: correct it by hand"
    if len(hashes) != len(PYTHONS) * len(MACHINES):
        yield f"torch-cpu.txt has {len(hashes)} hashes; expected one for each Python and machine"


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
