"""`make base-image` compares the pinned digest with the digest in a registry (here: a local one)."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.checkout import ROOT

OLD, NEW = "sha256:" + 64 * "0", "sha256:" + 64 * "1"
FILES = ("Dockerfile", "apptainer.def")


class Registry(BaseHTTPRequestHandler):
    """Serve one tag of one image to clients that have asked for a token."""

    digest = OLD

    def do_HEAD(self) -> None:
        if self.headers["Authorization"] != "Bearer let-me-in":
            self.send_response(401)
            realm = f"http://{self.headers['Host']}/token"
            self.send_header(
                "WWW-Authenticate", f'Bearer realm="{realm}",service="r",scope="repository:nv/cuda:pull"'
            )
        elif self.path == "/v2/nv/cuda/manifests/13.0" and "index" in self.headers["Accept"]:
            self.send_response(200)
            self.send_header("Docker-Content-Digest", self.digest)
        else:
            self.send_response(404)
        self.end_headers()

    def do_GET(self) -> None:
        asked = self.path == "/token?service=r&scope=repository%3Anv%2Fcuda%3Apull"
        self.send_response(200 if asked else 400)
        self.end_headers()
        self.wfile.write(json.dumps({"token": "let-me-in"}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[tuple[type[Registry], str]]:
    kind = type("Registry", (Registry,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield kind, f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def checkout(tmp_path: Path, registry: tuple[type[Registry], str]) -> Path:
    """Return a copy of the files that name the base image, with an image of the local registry."""
    (tmp_path / "container").mkdir()
    shutil.copy(ROOT / "container/base_image.py", tmp_path / "container")
    for name in FILES:
        text = (ROOT / name).read_text()
        named = re.sub(r"docker\.io/nvidia/cuda:\S+@sha256:\w{64}", f"{registry[1]}/nv/cuda:13.0@{OLD}", text)
        assert named != text
        (tmp_path / name).write_text(named)
    return tmp_path


def base_image(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "container/base_image.py"), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_tag_that_has_moved_is_reported_and_pinned_with_update(
    checkout: Path, registry: tuple[type[Registry], str]
) -> None:
    same = base_image(checkout)
    assert (same.returncode, same.stderr) == (0, "")
    assert f"nv/cuda:13.0 still has the pinned digest, {OLD}" in same.stdout
    registry[0].digest = NEW
    moved = base_image(checkout)
    assert moved.returncode == 1 and len(moved.stderr.splitlines()) == 1
    assert NEW in moved.stderr and OLD in (checkout / "Dockerfile").read_text()
    assert base_image(checkout, "--update").returncode == 0
    for name in FILES:
        text = (checkout / name).read_text()
        assert NEW in text and OLD not in text
    assert base_image(checkout).returncode == 0


def test_a_problem_is_reported_in_one_line(checkout: Path) -> None:
    recipe = checkout / "apptainer.def"
    right = recipe.read_text()
    recipe.write_text(right.replace("nv/cuda:13.0", "nv/cuda:12.0"))
    assert "Dockerfile and apptainer.def name different base images" in base_image(checkout).stderr
    recipe.write_text(right.replace(f"@{OLD}", ""))
    assert "apptainer.def: names no base image" in base_image(checkout).stderr
    for name in FILES:
        path = checkout / name
        path.write_text(
            path.read_text().replace("nv/cuda:13.0", "nv/cuda:14.0").replace(":14.0\n", f":14.0@{OLD}\n")
        )
    unknown = base_image(checkout)
    assert "cannot get the digest of nv/cuda:14.0 (HTTP Error 404" in unknown.stderr
    assert len(unknown.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("distribution", "parts"),
    [
        (
            ("ubuntu", "noble"),
            ("snapshot.ubuntu.com/ubuntu/20260101T000000Z noble-security", "main universe"),
        ),
        (("debian", "trixie"), ("archive/debian-security/20260101T000000Z trixie-security", "main")),
    ],
)
def test_system_packages_come_from_the_archive_of_a_day(
    distribution: tuple[str, str], parts: tuple[str, str]
) -> None:
    done = installs("20260101T000000Z", "sources", *distribution)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("deb [") and line.endswith(parts[1]) for line in lines)
    assert parts[0] in lines[2]


def test_a_distribution_without_such_an_archive_is_reported_in_one_line() -> None:
    done = installs("20260101T000000Z", "sources", "arch", "rolling")
    assert done.returncode == 2
    assert done.stderr.startswith("container/install.sh: expected ubuntu or debian, not arch")


def installs(snapshot: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["container/install.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"SNAPSHOT": snapshot},
        capture_output=True,
        text=True,
    )
