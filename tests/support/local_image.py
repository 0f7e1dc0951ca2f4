"""Build the image from the Dockerfile on a minimal Debian that is made here, without a registry.

It differs from a user's image in two ways: it has the CPU build of torch, and today's system packages.
"""

import ast
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.installing import require

COMMANDS = ("podman", "buildah", "runc", "debootstrap")
BASE, IMAGE = "localhost/qlora-repeat-base:tests", "localhost/qlora-repeat:tests"


def build_image(folder: Path) -> None:
    """Build IMAGE; reuse the unchanged layers of an earlier build."""
    require(COMMANDS, COMMANDS)
    os.environ["CONTAINERS_CONF"] = str(_settings(folder))
    if subprocess.run(["podman", "image", "exists", BASE]).returncode:
        _make_base(folder / "base")
    tried = subprocess.run(
        ["podman", "run", "--rm", "--network=none", BASE, "true"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"containers cannot run here: {tried.stderr.strip()[-300:]}")
    options = ["--isolation=chroot", "--layers", *_package_index(folder)]
    for _ in range(2):  # chroot isolation sometimes fails while it copies itself; finished layers are kept
        done = subprocess.run(
            ["make", "image", f"BUILD_OPTIONS={' '.join(options)}"],
            cwd=ROOT,
            env=os.environ
            | {"ENGINE": "podman", "IMAGE": IMAGE, "BASE_IMAGE": BASE, "SNAPSHOT": "", "ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _settings(folder: Path) -> Path:
    """Write settings for Podman inside a sandbox: its limits are at most those that this process may set."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    most = {name: resource.getrlimit(kind)[1] for name, kind in limits.items()}
    asked = {name: 1024 if limit in (-1, 0) else min(1024, limit) for name, limit in most.items()}
    path = folder / "containers.conf"
    path.write_text(
        '[engine]\nruntime = "runc"\n[containers]\n'
        f"default_ulimits = {[f'{name}={limit}:{limit}' for name, limit in asked.items()]}\n"
    )
    return path


def _make_base(folder: Path) -> None:
    """Import a minimal Debian from the mirror that apt uses."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    mirror = next(line for line in targets.stdout.splitlines() if re.search(r"/debian/?$", line))
    suite = release["VERSION_CODENAME"].strip('"')
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", suite, str(folder), mirror], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"debootstrap cannot get {suite} from {mirror}: {made.stderr.strip()[-300:]}")
    packed = subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["podman", "import", "-", BASE], stdin=packed.stdout, check=True, capture_output=True)
    assert packed.wait() == 0


def _package_index(folder: Path) -> list[str]:
    """Return build options with which the build uses the same package indexes as pip here."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    configured = {
        key.rpartition(".")[2]: ast.literal_eval(value)
        for key, value in (line.split("=", 1) for line in lines)
    }
    keys = ("index-url", "extra-index-url", "find-links")
    settings = {key: configured[key] for key in keys if key in configured}
    options = []
    if "cert" in configured:
        options.append(f"--secret=id=ca,src={configured['cert']}")
        settings["cert"] = "/run/ca.crt"
    found = re.findall(r"(?<![\w:])(?:file://)?(/[^\s:]+)", " ".join(map(str, settings.values())))
    for path in map(Path, found):
        shown = path.parent if path.name == "simple" else path  # an index refers to files beside it
        if path.is_dir():
            options.append(f"--volume={shown}:{shown}:ro")
    written = folder / "pip.conf"
    written.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    return [*options, f"--secret=id=pipconf,src={written}"]
