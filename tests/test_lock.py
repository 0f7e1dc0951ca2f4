"""One process at a time: locks that are held, left behind, and fought for."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_repeat import lock
from qlora_repeat.errors import BusyError
from qlora_repeat.files import write_json
from qlora_repeat.lock import exclusive, live_owner

HOLDER = """
import pathlib, sys
from qlora_repeat.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.read()
"""
RACER = """
import os, pathlib, sys, time
from qlora_repeat.errors import BusyError
from qlora_repeat.lock import exclusive
path, inside = map(pathlib.Path, sys.argv[1:])
got = 0
sys.stdin.read()
while got < 40:
    try:
        with exclusive(path, "the thing"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another is inside
            time.sleep(0.001)
            inside.unlink()
            got += 1
    except BusyError:
        pass
    time.sleep(0.001)
"""

Hold = Callable[[Path], "subprocess.Popen[str]"]


def python(script: str, *arguments: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says_held(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether a holder tells that it holds its lock, within so many seconds."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], seconds)[0]) and process.stdout.readline() == "held\n"


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that holds a lock until its input ends."""
    started = []

    def start(path: Path) -> "subprocess.Popen[str]":
        process = python(HOLDER, path)
        started.append(process)
        assert says_held(process, 60)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_lock_names_its_owner_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock.json"
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert live_owner(path) == json.loads(path.read_text())
    assert live_owner(path) is None
    assert list(path.parent.iterdir()) == []


def test_a_failing_block_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with pytest.raises(ZeroDivisionError), exclusive(path, "the thing"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_refused_with_the_process_and_host_of_its_holder(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    holder = hold(path)
    before = path.read_bytes()
    words = rf"^the thing: process {holder.pid} on {socket.gethostname()} works on it; .* or delete .*lock"
    with pytest.raises(BusyError, match=words), exclusive(path, "the thing"):
        pass
    assert path.read_bytes() == before
    assert sorted(tmp_path.glob(f"*.{os.getpid()}*")) == []
    holder.communicate("")
    with exclusive(path, "the thing"):
        assert live_owner(path) is not None


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    holder = hold(path)
    holder.kill()
    holder.wait()
    assert path.exists()
    assert live_owner(path) is None
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_the_lock_of_a_dead_process_that_nobody_has_waited_for_is_taken_over(
    tmp_path: Path, hold: Hold
) -> None:
    """Such as one in a container, whose first process waits for no orphans."""
    path = tmp_path / "lock.json"
    holder = hold(path)
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with exclusive(path, "the thing"):
        pass


def test_a_process_that_has_the_number_of_a_dead_one_does_not_hold_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "started": 1}
    write_json(path, owner)
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_json(path, {"host": "elsewhere", "pid": 2**30, "started": 0.0})
    with pytest.raises(BusyError, match=f"process {2**30} on elsewhere"), exclusive(path, "the thing"):
        pass
    assert path.exists()


@pytest.mark.parametrize("content", ["", "null", "[]", "{}"])
def test_a_lock_that_cannot_be_read_is_respected_and_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text(content)
    with pytest.raises(BusyError, match=f"or delete {path} if it is no more"), exclusive(path, "the thing"):
        pass
    assert path.read_text() == content


def test_only_one_of_several_processes_is_inside(tmp_path: Path) -> None:
    racers = [python(RACER, tmp_path / "lock.json", tmp_path / "inside") for _ in range(3)]
    for racer in racers:
        racer.communicate("")
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("released", "look"),
    [
        (False, 1),
        (False, 2),
        (True, 1),
        (True, 2),
    ],
)
def test_two_processes_that_find_no_owner_do_not_both_get_in(
    released: bool, look: int, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    owner = hold(path)
    if not released:
        owner.kill()
        owner.wait()
    looks = 0
    other: subprocess.Popen[str] | None = None
    other_is_inside = False

    def overtaken(where: Path) -> object:
        """This process finds that nobody holds the lock, and then another one is faster."""
        nonlocal looks, other, other_is_inside
        if owner.poll() is None:
            owner.communicate("")  # it gives the lock back just before it is looked at
        found = live_owner(where)
        looks += where == path and found is None
        if looks == look and other is None:
            other = python(HOLDER, path)
            other_is_inside = says_held(other, 5)  # no longer, should the other have to wait for this one
        return found

    monkeypatch.setattr(lock, "live_owner", overtaken)
    both_are_inside = False
    with contextlib.suppress(BusyError), exclusive(path, "the thing"):
        both_are_inside = other_is_inside or (other is not None and says_held(other, 0))
    if other is not None:
        other.kill()
        other.communicate()
    assert looks, "this process never looked for an owner"
    assert not both_are_inside
