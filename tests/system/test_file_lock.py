"""A lock admits one process at a time, also if it is held, left behind, or contended."""

import errno
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_repeat.errors import BusyError, MissingError
from qlora_repeat.system import file_lock
from qlora_repeat.system.file_lock import exclusive, live_owner, remove_ended
from qlora_repeat.system.files import write_json

HOLDER = """
import pathlib, sys
from qlora_repeat.system.file_lock import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.read()
"""
RACER = """
import os, pathlib, sys, time
from qlora_repeat.errors import BusyError
from qlora_repeat.system.file_lock import exclusive
path, inside = map(pathlib.Path, sys.argv[1:])
got = 0
sys.stdin.read()
while got < 25:
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

# Each child dies inside, so every later one finds the lock of a dead process.
HEIRS = """
import os, pathlib, random, signal, sys, time
from qlora_repeat.system import file_lock
from qlora_repeat.errors import BusyError
path, inside = map(pathlib.Path, sys.argv[1:])
got, look = 0, file_lock._holder

def slow(where):
    found = look(where)
    time.sleep(random.SystemRandom().random() * 0.002 * (where == path))  # as on a busy network
    return found

file_lock._holder = slow
sys.stdin.read()
while got < 25:
    if not (child := os.fork()):
        try:
            with file_lock.exclusive(path, "the thing"):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another is inside
                time.sleep(0.001)
                inside.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        except BusyError:
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        sys.exit(1)
    got += status == -signal.SIGKILL
"""
# Does not wait, so it ends at once if it may not enter.
OVERTAKER = """
import pathlib, sys
from qlora_repeat.system import file_lock
file_lock.TURN_SECONDS = 0
with file_lock.exclusive(pathlib.Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.read()
"""

Hold = Callable[..., "subprocess.Popen[str]"]


def python(script: str, *arguments: Path, within: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [*within, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says_held(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Return whether a holder prints that it holds its lock, within a number of seconds."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], seconds)[0]) and process.stdout.readline() == "held\n"


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start a process that holds a lock until its input ends."""
    started = []

    def start(path: Path, script: str = HOLDER, within: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        process = python(script, path, within=within)
        started.append(process)
        assert says_held(process, 60)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def race(script: str, folder: Path) -> list[tuple[int, str]]:
    """Return the exit codes and outputs of three processes that start together."""
    racers = [python(script, folder / "lock.json", folder / "inside") for _ in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    return [(racer.wait(), racer.stdout.read() if racer.stdout else "") for racer in racers]


def owner_of(path: Path) -> dict[str, Any]:
    """Return what this process writes into a lock."""
    with exclusive(path, "the thing"):
        owner: dict[str, Any] = json.loads(path.read_text())
    return owner


def refusal(path: Path) -> str:
    """Return the message when the lock is requested, which is one line; the lock does not change."""
    before = path.read_bytes()
    words = refused(path)
    assert path.read_bytes() == before
    assert list(path.parent.glob(".*")) == []
    return words


def refused(path: Path) -> str:
    with pytest.raises(BusyError) as caught, exclusive(path, "the thing"):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leave_behind(path: Path, hold: Hold) -> "subprocess.Popen[str]":
    """Let a process take a lock and die."""
    holder = hold(path)
    holder.kill()
    holder.wait()
    return holder


def test_a_lock_names_its_owner_and_is_removed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock.json"
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert live_owner(path) == json.loads(path.read_text())
    assert live_owner(path) is None
    assert list(path.parent.iterdir()) == []


def test_a_failing_block_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with pytest.raises(ZeroDivisionError), exclusive(path, "the thing"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_refused_with_the_process_and_host_of_its_holder(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    holder = hold(path)
    assert refusal(path) == (
        f"the thing: process {holder.pid} on {socket.gethostname()} works on it; wait, or stop that process"
    )
    holder.communicate("")
    with exclusive(path, "the thing"):
        assert live_owner(path) is not None


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    leave_behind(path, hold)
    assert path.exists()
    assert live_owner(path) is None
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_the_lock_of_a_zombie_is_taken_over(tmp_path: Path, hold: Hold) -> None:
    """Leave a zombie, as in a container whose first process does not wait for orphans."""
    path = tmp_path / "lock.json"
    holder = hold(path)
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with exclusive(path, "the thing"):
        pass


def test_a_process_with_the_pid_of_a_dead_one_does_not_hold_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_json(path, owner_of(path) | {"pid": os.getppid(), "started": 1})
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("may_signal", [True, False])
def test_a_process_hidden_from_this_user_counts_as_alive(
    may_signal: bool, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hide processes as hidepid does in /proc; a signal still shows that another one exists."""
    path = tmp_path / "lock.json"
    holder = leave_behind(path, hold)

    def there(pid: int, signal: int) -> None:
        if not may_signal:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", there)
    assert f"process {holder.pid} on" in refusal(path)


@pytest.mark.parametrize(
    ("owner", "where"),
    [
        ({"host": "elsewhere"}, "elsewhere works on it"),
        ({"host": "elsewhere", "boot": "another"}, "elsewhere works on it"),
        ({"namespaces": []}, "(in another container, of another user, or from before a restart) works on it"),
        ({"boot": "another", "machine": "another"}, "before a restart) works on it"),
        ({"machine": "a clone that was started from the same snapshot"}, "works on it"),
        ({"pid": 2**70}, "works on it"),
    ],
)
def test_a_lock_of_unknown_state_is_refused_with_the_command_that_removes_it(
    owner: dict[str, Any], where: str, tmp_path: Path, hold: Hold
) -> None:
    path = tmp_path / "two  words & 'more'" / "lock.json"
    process = hold(path)
    process.kill()
    process.wait()
    write_json(path, json.loads(path.read_text()) | owner)
    words = refusal(path)
    assert words.startswith(f"the thing: process {owner.get('pid', process.pid)} on ")
    assert where in words
    assert live_owner(path) == json.loads(path.read_text())
    advice, _, command = words.partition(": rm ")
    assert advice.endswith("; wait, stop that process, or if it no longer exists")
    subprocess.run(["sh", "-c", f"rm {command}"], check=True, cwd="/", stdin=subprocess.DEVNULL)
    with exclusive(path, "the thing"):
        pass


@pytest.mark.parametrize(
    ("outside_containers", "machine", "taken"), [(True, None, True), (True, "", False), (False, None, False)]
)
def test_a_lock_from_before_a_restart_is_taken_over_if_the_machine_is_certain(
    outside_containers: bool,
    machine: str | None,
    taken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Identify the machine by its machine-id; containers on several machines may share the image's id."""
    path = tmp_path / "lock.json"
    namespace = str(Path("/proc/self/ns/pid").readlink())
    monkeypatch.setattr(file_lock, "FIRST_PID_NAMESPACE", namespace if outside_containers else "pid:[1]")
    monkeypatch.setattr(file_lock, "_machine", lambda: "an-identity" if machine is None else machine)
    write_json(path, owner_of(path) | {"boot": "01234567-89ab-cdef-0123-456789abcdef"})  # else it is alive
    if taken:
        with exclusive(path, "the thing"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []
    else:
        assert (
            "before a restart) works on it; wait, stop that process, or if it no longer exists: rm"
            in refusal(path)
        )


def test_a_cloned_machine_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone has the id and the host name of the first machine, but another network card."""
    card, found, read = [""], [], Path.read_text

    def changed(self: Path, *arguments: Any, **options: Any) -> str:
        if self == Path("/etc/machine-id"):
            return "0" * 32
        return card[0] if self.name == "address" else read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", changed)
    for card[0] in ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:01"):
        found.append(file_lock._machine())
    if not found[0]:
        pytest.skip("this machine has no network card")
    assert found[0] == found[2] != found[1]
    assert "02:00" not in found[0]


def test_a_fifo_in_place_of_a_lock_is_respected_and_named(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    os.mkfifo(path)
    assert "its lock cannot be read, so its owner is unknown" in refused(path)
    assert not remove_ended(path, b"", set(), None)


def test_a_lock_does_not_contain_the_machine_id(tmp_path: Path) -> None:
    path = Path("/etc/machine-id")
    if not path.is_file() or not (identity := path.read_text().strip()):
        pytest.skip("this machine has no id")
    assert identity not in json.dumps(owner_of(tmp_path / "lock.json"))


UNSHARE = ("unshare", "--user", "--map-root-user", "--kill-child", "--fork")


@pytest.mark.parametrize(
    "namespace", [("--pid", "--mount-proc"), ("--pid",), ("--net",), ("--time",)], ids=" ".join
)
def test_a_process_in_another_container_does_not_count_as_dead(
    namespace: tuple[str, ...], tmp_path: Path, hold: Hold
) -> None:
    within = (*UNSHARE, *namespace)
    if not shutil.which("unshare") or subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip(f"no {' '.join(namespace)} namespaces for this user here")
    path = tmp_path / "lock.json"
    holder = hold(path, HOLDER + "    import os; os._exit(0)  # leaves its lock behind", within)
    pid = json.loads(path.read_text())["pid"]
    command = f"rm {path}"
    assert refusal(path) == (
        f"the thing: process {pid} on {socket.gethostname()} (in another container, of another user, "
        "or from before a restart) works on it; wait, stop that process, "
        f"or if it no longer exists: {command}"
    )
    holder.communicate("")
    assert refusal(path).endswith(command)
    path.unlink()
    hold(path)  # and the other way round
    other = subprocess.run(
        [*within, sys.executable, "-c", HOLDER, path],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert other.stdout == ""
    assert f"if it no longer exists: {command}" in other.stderr


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"pid": 1, "host": "a\\nb"}', "[" * 9999, '{"pid": 1']
)
def test_an_unreadable_lock_is_respected_and_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text(content)
    assert refusal(path) == (
        f"the thing: its lock cannot be read, so its owner is unknown; if no process works on it: rm {path}"
    )
    assert live_owner(path) is not None


def test_a_lock_removed_by_hand_and_taken_by_another_process_stays(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    with exclusive(path, "the thing"):
        path.unlink()
        holder = hold(path)
    owner = live_owner(path)
    assert owner is not None
    assert owner["pid"] == holder.pid


def test_a_lock_removed_by_hand_causes_no_error(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with exclusive(path, "the thing"):
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_leaves_no_other_file_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with exclusive(path, "the thing"):
        assert list(tmp_path.iterdir()) == [path]


def test_the_next_lock_removes_files_left_by_killed_processes(tmp_path: Path, hold: Hold) -> None:
    path = tmp_path / "lock.json"
    holder = hold(path)
    alive, dead = tmp_path / ".lock.json.alive", tmp_path / ".lock.json.dead"
    alive.write_text(json.dumps(owner_of(tmp_path / "other.json")))
    elsewhere = tmp_path / ".lock.json.elsewhere"
    write_json(elsewhere, json.loads(alive.read_text()) | {"host": "elsewhere"})
    for name in (dead, tmp_path / ".other.json.dead"):
        shutil.copy(path, name)
    holder.kill()
    holder.wait()
    with exclusive(path, "the thing"):
        pass
    assert set(tmp_path.iterdir()) == {alive, elsewhere, tmp_path / ".other.json.dead"}


@pytest.mark.parametrize("when", ["os.link", "file_lock.flush"])
def test_a_process_killed_while_it_takes_a_lock_leaves_nothing_for_long(when: str, tmp_path: Path) -> None:
    """Kill it before its private file becomes the lock, or before anything is written to that file."""
    path = tmp_path / "lock.json"
    script = f"""
import os, pathlib, signal, sys
from qlora_repeat.system import file_lock
{when} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with file_lock.exclusive(pathlib.Path(sys.argv[1]), "the thing"):
    pass
"""
    python(script, path).communicate()
    (left,) = tmp_path.iterdir()
    assert (left.stat().st_size == 0) == (when == "file_lock.flush")
    assert live_owner(path) is None
    elsewhere = left.with_name(left.name.replace(socket.gethostname(), "elsewhere"))
    shutil.copy(left, elsewhere)
    alive = tmp_path / f".lock.json.{socket.gethostname()}.{os.getpid()}.0"
    alive.touch()
    with exclusive(path, "the thing"):
        pass
    assert set(tmp_path.iterdir()) - {elsewhere} == {alive}


@pytest.mark.parametrize("failure", [errno.EEXIST, errno.EIO])
def test_a_link_counts_although_nfs_reports_a_failure(
    failure: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    link = os.link

    def forgetful(old: Path, new: Path) -> None:
        link(old, new)
        raise OSError(failure, os.strerror(failure), str(old), None, str(new))

    monkeypatch.setattr(os, "link", forgetful)
    with exclusive(path, "the thing"):
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []


def test_no_system_call_locks_a_file(tmp_path: Path) -> None:
    """Check system calls; a file system may refuse such locks, or grant them to two machines."""
    if not (strace := shutil.which("strace")):
        pytest.skip("no strace here")
    path, calls = tmp_path / "lock.json", tmp_path / "calls"
    script = python(
        HOLDER, path, within=(strace, "-f", "-o", str(calls), "-e", "trace=flock,fcntl,link,linkat")
    )
    assert script.communicate("")[0] == "held\n"
    if not (traced := calls.read_text()).count("lock.json"):
        pytest.skip("strace cannot trace here")
    assert "flock" not in traced
    assert "LK" not in traced  # F_SETLK, F_OFD_SETLKW and the like


def test_a_folder_that_cannot_hold_a_lock_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file" / "lock.json"  # below a file, where not even root can write
    path.parent.write_text("")
    with pytest.raises(MissingError) as caught, exclusive(path, "the thing"):
        pass
    assert str(caught.value) == (
        f"{path}: cannot create a lock (File exists); "
        f"its folder must be writable, not full, and on a file system with hard links"
    )


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_is_reported_and_nothing_is_left(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    words = rf"{path}: cannot create a lock \(No space left on device\); "
    with pytest.raises(MissingError, match=words), exclusive(path, "the thing"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_is_not_reported_as_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), exclusive(tmp_path / "lock.json", "the thing"):
        tmp_path.read_text()


def test_only_one_of_several_processes_is_inside(tmp_path: Path) -> None:
    assert race(RACER, tmp_path) == [(0, "")] * 3
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_several_processes_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    assert race(HEIRS, tmp_path) == [(0, "")] * 3
    with exclusive(tmp_path / "lock.json", "the thing"):
        assert list(tmp_path.iterdir()) == [tmp_path / "lock.json"]


@pytest.mark.parametrize(("released", "look"), [(False, 1), (False, 2), (False, 3), (True, 1)])
def test_two_processes_that_find_no_owner_do_not_both_enter(
    released: bool, look: int, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    owner = hold(path)
    if not released:
        owner.kill()
        owner.wait()
    others: list[subprocess.Popen[str]] = []
    other_is_inside = False
    taken = looks = 0
    judged = file_lock._holder

    def overtaken(where: Path) -> object:
        """Let another process take the lock after this one has found no live owner."""
        nonlocal looks, taken, other_is_inside
        if owner.poll() is None:
            owner.communicate("")  # it releases the lock just before the check
        found = judged(where)
        looks += 1
        assert found is None or found.state == "dead" or others
        if looks == look:
            others.append(python(OVERTAKER, path))
            other_is_inside = says_held(others[0], 60)
            taken = path.stat().st_ctime_ns if other_is_inside else 0
        return found

    monkeypatch.setattr(file_lock, "_holder", overtaken)
    try:
        with exclusive(path, "the thing"):
            assert not other_is_inside
    except BusyError as error:
        assert other_is_inside
        assert f"process {others[0].pid} on" in str(error)
        assert path.stat().st_ctime_ns == taken, "the other's lock was moved or replaced"
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert others, "this process never looked for an owner"


def test_a_lock_that_another_host_takes_while_a_dead_one_is_removed_is_put_back(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    leave_behind(path, hold)
    looks = 0
    judged = file_lock._holder

    def late(where: Path) -> object:
        nonlocal looks
        looks += 1
        found = judged(where)
        if looks == 2:  # a user removes the lock by hand, and resumes the trial on another host
            path.unlink()
            write_json(path, owner_of(tmp_path / "other.json") | {"host": "elsewhere"})
        return found

    monkeypatch.setattr(file_lock, "_holder", late)
    assert "on elsewhere works on it" in refused(path)
    assert json.loads(path.read_text())["host"] == "elsewhere"
    assert list(tmp_path.iterdir()) == [path]


def test_a_turn_that_another_process_keeps_is_reported(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    leave_behind(path, hold)
    monkeypatch.setattr(file_lock, "TURN_SECONDS", 0)
    with file_lock._turn(path, "the thing"):
        words = refusal(path)
    assert words == (
        "the thing: the process that worked on it is dead, but its lock cannot be removed "
        f"(Address already in use); try again, or run: rm {path}"
    )
    with exclusive(path, "the thing"):
        pass


@pytest.mark.parametrize("same", ["link", "mount"])
def test_processes_that_see_the_folder_at_another_path_take_turns_too(same: str, tmp_path: Path) -> None:
    folder, seen = tmp_path / "folder", tmp_path / "seen"
    folder.mkdir()
    script = "import pathlib; from qlora_repeat.system import file_lock; file_lock.TURN_SECONDS = 0\n"
    script += f"with file_lock._turn(pathlib.Path({str(seen / 'lock.json')!r}), 'the thing'): print('in')"
    command = [sys.executable, "-c", script]
    if same == "link":
        seen.symlink_to(folder)
    else:
        seen.mkdir()
        command = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount --bind "$1" "$2"; shift 2; exec "$@"',
            "-",
            str(folder),
            str(seen),
            *command,
        ]
        if (
            not shutil.which("unshare")
            or subprocess.run([*command[:-3], "true"], capture_output=True).returncode
        ):
            pytest.skip("no mounts for this user here")
    with file_lock._turn(folder / "lock.json", "the thing"):
        other = subprocess.run(command, capture_output=True, text=True)
    assert other.stdout == ""
    assert "Address already in use" in other.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "in\n"


def slurm_job(monkeypatch: pytest.MonkeyPatch, job: str, restarts: str = "") -> None:
    """Make this process part of a Slurm job."""
    for name, value in (("CLUSTER_NAME", "big"), ("JOB_ID", job), ("RESTART_COUNT", restarts)):
        monkeypatch.setenv(f"SLURM_{name}", value)


def left_on_a_node(path: Path) -> dict[str, Any]:
    """Write the lock that this process would take on another host, which cannot be reached now."""
    owner = owner_of(path) | {"host": "node17", "namespaces": ["pid:[1]"]}
    write_json(path, owner)
    return owner


def test_the_lock_of_a_requeued_job_is_taken_over_on_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    slurm_job(monkeypatch, "41")
    left_on_a_node(path)
    slurm_job(monkeypatch, "42")
    assert "on node17 works on it" in refusal(path), "another job may still be there"
    slurm_job(monkeypatch, "41", restarts="1")
    with exclusive(path, "the thing"):
        assert json.loads(path.read_text())["slurm"] == {"cluster": "big", "job": "41", "restarts": "1"}


def test_only_the_lock_of_a_job_that_has_ended_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.json"
    assert not remove_ended(path, b"", set(), "big"), "there is no lock"
    left_on_a_node(path)
    assert not remove_ended(path, path.read_bytes(), set(), "big"), "its state is unknown"
    path.unlink()
    slurm_job(monkeypatch, "41")
    left_on_a_node(path)
    content = path.read_bytes()
    assert not remove_ended(path, content, {"40", "41"}, "big"), "the job is still there"
    assert not remove_ended(path, content, {"40"}, "small"), "a job of another cluster"
    assert not remove_ended(path, content + b" ", {"40"}, "big"), "a job that started later"
    assert remove_ended(path, content, {"40"}, "big")
    with exclusive(path, "the thing"):
        pass
