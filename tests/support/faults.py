"""Make each file operation of a command fail, and kill its process before and after each.

A command runs undisturbed in a folder, its current one. Before each call that changes a file there, the
process is forked for every fault. The fork works in its own copy of the folder, where the call fails or kills
it. So a fault costs only what the command does after it.
"""

import builtins
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import qlora_repeat

KIT = f"{Path(qlora_repeat.__file__).parent}/"
LAYER = f"{KIT}system/files.py"
"""Calls of the kit come from here."""
_STANDARD = f"{Path(os.__file__).parent}/"

ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
LASTING = ("ENOSPC from then on", "EROFS from then on")
"""Later calls of the kit fail too; with ENOSPC, all but those that free space."""
KILLS = ("kill before", "kill after")
_FREES = ("unlink", "remove", "rmdir")
_PATHS = ("mkdir", "unlink", "remove", "rmdir", "truncate", "chmod", "fsync", "open")
_PAIRS = ("rename", "replace", "link", "symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LARGE = 100_000
"""Bytes of a file that is copied as a hard link, unless it is open."""
LONGEST_SECONDS = 600
_EVERY = 3
"""In a sample of some calls, every this many is disturbed."""


@dataclass(frozen=True)
class Point:
    """A call, the fault that was tried there, and how the command ended."""

    call: int
    name: str
    path: str
    site: str
    """The lines of the kit that led to the call, the last one first."""
    module: str
    """The file of the code that called, without the standard library."""
    kind: str
    code: int = 0
    output: str = ""
    state: str = ""
    """The digest of what the folder has at the end."""
    folder: str = ""
    """The folder, for the first point with this state."""


class Faults:
    """Counts the calls of this process that change files below its current folder, and tries faults."""

    def __init__(self, spare: Path, which: str) -> None:
        self.root, self.spare, self.which = f"{os.getcwd()}/", spare, which
        self.points: list[Point] = []
        self.calls = 0
        self.sites: dict[tuple[str, str], int] = {}
        self.states: set[str] = set()
        self.fault = ""
        """In a fork: the fault of the next call."""
        self.broken = ""
        self.off = False
        self.open = io.open

    def install(self) -> None:
        for name in (*_PATHS, *_PAIRS):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        io.open = builtins.open = self._opened

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            reads = name == "open" and not (args[1] if len(args) > 1 else more["flags"]) & _WRITES
            if self.off or reads:
                return call(*args, **more)
            path = _absolute(args[name in _PAIRS], more.get("dir_fd", more.get("dst_dir_fd")))
            shown = None if isinstance(args[0], int) else os.fspath(args[0])
            return self.call(name, path, shown, lambda: call(*args, **more))

        return wrapped

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        """Open a file as `open` does; one that is written below the current folder is a `_Raw`."""
        changes = any(each in mode for each in "wax+")
        if self.off or not changes or isinstance(file, int) or not self._inside(_absolute(file, None)):
            return self.open(file, mode, buffering, *args, **more)
        plain = mode.replace("b", "").replace("t", "")
        path = os.fspath(file)
        raw: Any = self.call("open", _absolute(file, None), path, lambda: _Raw(self, path, plain))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        text = dict(zip(("encoding", "errors", "newline"), args, strict=False)) | more
        text = {key: value for key, value in text.items() if key not in ("closefd", "opener")}
        return io.TextIOWrapper(buffered, **text, line_buffering=buffering == 1)

    def _inside(self, path: str) -> bool:
        return f"{path}/".startswith(self.root)

    def call(self, name: str, path: str, shown: Any, call: Callable[[], Any], half: Any = None) -> Any:
        """Try faults in forks, then make the call; `half` makes half of it."""
        if not self._inside(path):
            return call()
        if self.broken:
            frees = self.broken.startswith("ENOSPC") and name in _FREES
            if not frees and _caller()[0].startswith(KIT):
                self._fail(self.broken, shown)
            return call()
        if self.fault == "done":
            return call()
        module, site = _caller()
        for kind in self._kinds(name, module, site):
            point = Point(self.calls, name, path[len(self.root) :], site, module, kind)
            if self._fork(point):  # this is the fork
                self._disturb(kind, shown, call, half)
        self.calls += 1
        return call()

    def _disturb(self, kind: str, shown: Any, call: Callable[[], Any], half: Any) -> None:
        self.fault = "done"
        if half is not None and kind != "kill after":
            half()
        if kind in KILLS:
            with contextlib.suppress(OSError):
                if kind == "kill after":
                    call()
            os.kill(os.getpid(), signal.SIGKILL)
        self.broken = kind if kind in LASTING else ""
        self._fail(kind, shown)

    def _fail(self, kind: str, shown: Any) -> None:
        number = getattr(errno, kind.split()[0])
        raise OSError(number, os.strerror(number), *([] if shown is None else [shown]))

    def _kinds(self, name: str, module: str, site: str) -> Sequence[str]:
        kinds = (*ERRORS, *LASTING, *KILLS) if module.startswith(KIT) else KILLS
        if self.which == "all":
            return kinds
        key = (name, " < ".join(site.split(" < ")[:2]))
        if key in self.sites:
            return ()
        number = self.sites[key] = len(self.sites)
        if self.which == "sites":
            return kinds
        turn, first = number // _EVERY, int(self.which.removeprefix("some "))
        return (kinds[turn % len(kinds)],) if number % _EVERY == first % _EVERY else ()

    def _fork(self, point: Point) -> bool:
        """Return True in a fork, which works in a copy of the folder; in this process, wait for its end."""
        self.off = True
        copy = self.spare / f"{point.call}-{point.kind.replace(' ', '-')}"
        _copy(self.root, f"{copy}/", set(_opened_files()))
        if (pid := os.fork()) == 0:
            old, self.root = self.root, f"{copy}/"
            os.chdir(copy)
            _reopen(old, self.root)
            signal.alarm(LONGEST_SECONDS)
            out = os.open(copy.with_suffix(".output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            self.off = False
            return True
        _, status = os.waitpid(pid, 0)
        found = state(copy)
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        text = copy.with_suffix(".output").read_text()
        ended = {"code": os.waitstatus_to_exitcode(status), "output": text, "state": digest}
        kept = "" if digest in self.states else str(copy)
        if not kept:
            shutil.rmtree(copy)
        self.points.append(Point(**(asdict(point) | ended | {"folder": kept})))
        self.states.add(digest)
        self.off = False
        return False


class _Raw(io.FileIO):
    """A file whose writes can fail or be cut short by a kill, when their first half is done."""

    def __init__(self, faults: Faults, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.faults, self.path = faults, path

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        write = super().write
        half = len(view) // 2
        done: Any = (lambda: write(view[:half])) if half else None
        path = _absolute(self.path, None)
        return int(self.faults.call("write", path, None, lambda: write(view), done))


def _absolute(path: Any, folder: int | None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    path = os.fsdecode(path)
    if folder is not None and folder >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return str(os.path.abspath(path))


def _caller() -> tuple[str, str]:
    """Return the file of the code that makes a call, and the lines of the kit that led to it."""
    frame: FrameType | None = sys._getframe()
    module, lines = "", list[str]()
    while frame is not None:
        file = frame.f_code.co_filename
        standard = file.startswith((_STANDARD, "<")) and "site-packages" not in file
        if file != __file__ and not standard and not module:
            module = file
        if file.startswith(KIT):
            lines.append(f"{file[len(KIT) :]}:{frame.f_lineno}")
        frame = frame.f_back
    return module, " < ".join(lines)


def _opened_files() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/self/fd/{name}")
            yield found.st_dev, found.st_ino


def _copy(source: str, target: str, opened: set[tuple[int, int]]) -> None:
    """Copy a folder; large files that are not open are hard links."""
    os.mkdir(target)
    for each in os.scandir(source):
        new = f"{target}{each.name}"
        found = each.stat(follow_symlinks=False)
        if each.is_symlink():
            os.symlink(os.readlink(each.path), new)
        elif each.is_dir():
            _copy(f"{each.path}/", f"{new}/", opened)
            os.chmod(new, found.st_mode & 0o7777)
        elif found.st_size > _LARGE and (found.st_dev, found.st_ino) not in opened:
            os.link(each.path, new)
        else:
            shutil.copy(each.path, new)


def _reopen(old: str, new: str) -> None:
    """Let all open files and folders below one folder be those below another one."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
            if f"{path}/".startswith(old):
                info = dict(
                    line.split(":") for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines()
                )
                flags = int(info["flags"].strip(), 8) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
                again = os.open(new + f"{path}/"[len(old) : -1], flags)
                if not os.path.isdir(path):
                    os.lseek(again, int(info["pos"]), os.SEEK_SET)
                os.dup2(again, descriptor, inheritable=False)
                os.close(again)
        except OSError:
            continue


_TEMPORARY = re.compile(r"(\.[0-9a-f]{8})+(?=/|$)")
_OWN = re.compile(r"(^|_)(seconds|peak_memory)(_|$)|^(digest|started|finished|resumed_from)$")
"""Keys of a record whose values differ between runs."""


def state(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, without what differs between runs of the same trial."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = _TEMPORARY.sub(".x", path.relative_to(folder).as_posix())
        name = re.sub(r"\.lock(-\d+)?\.json\..*", ".lock", name)
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[f"{name}/"] = ""
        elif re.search(r"lock(-\d+)?(\.json)?$|failed\.json$|log\.txt$", name):
            found[name] = "of one process"
        else:
            found[name] = _digest(path)
    return found


_large: dict[tuple[int, int, int], str] = {}


def _digest(path: Path) -> str:
    """Return the digest of a file; of a large one, read once for all its names."""
    found = path.stat()
    key = (found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in _large:
        digest = hashlib.sha256(_content(path)).hexdigest()
        if found.st_size <= _LARGE:
            return digest
        _large[key] = digest
    return _large[key]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.endswith(".json") or ".json." in path.name:
        try:
            return json.dumps(_lasting(json.loads(content))).encode()
        except ValueError:
            pass
    return content


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if not _OWN.search(key)}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the faults that were tried."""

    code: int
    output: str
    points: list[Point]


class Server:
    """Runs commands of the kit, each in a process that is forked from one that has imported the kit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tests = str(Path(__file__).parents[1])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([tests, *sys.path]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.faults"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, arguments: Sequence[object], *, faults: str = "") -> Ended:
        """Run a command in a folder; `faults` are which to try, if any: "all"; at one
        call of each pair of lines that lead to it, all ("sites"); or at every third of these calls, from a
        number on, one in turn ("some 0")."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out, noted = self.folder / "output", self.folder / "points"
        task = [str(folder), [str(each) for each in arguments], faults, str(out), str(noted)]
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        points = [Point(**each) for each in json.loads(noted.read_text())]
        return Ended(code, out.read_text(), points)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _serve() -> None:
    import qlora_repeat.api.results
    import qlora_repeat.archive.pack
    import qlora_repeat.archive.unpack
    import qlora_repeat.cli.commands.collect
    import qlora_repeat.cli.commands.pack
    import qlora_repeat.cli.commands.trial
    import qlora_repeat.cli.commands.unpack
    import qlora_repeat.execution.preload
    import qlora_repeat.execution.run_study
    import qlora_repeat.results.study_statistics  # noqa: F401
    from qlora_repeat.system.fingerprint import fingerprint

    fingerprint()
    for line in sys.stdin:
        folder, arguments, faults, out, noted = json.loads(line)
        Path(noted).write_text("[]")
        if (pid := os.fork()) == 0:
            _run(folder, arguments, faults, out, noted)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(folder: str, arguments: list[str], kinds: str, out: str, noted: str) -> None:
    code, home = 1, os.getpid()
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        from qlora_repeat.cli.main import main

        sys.argv = ["qlora-repeat", *arguments]
        spare = Path(f"{folder}.faults")
        faults = Faults(spare, kinds)
        if kinds:
            spare.mkdir()
            faults.install()
        else:
            signal.alarm(LONGEST_SECONDS)
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        sys.stdout.flush()
        if os.getpid() == home:
            faults.off = True
            Path(noted).write_text(json.dumps([asdict(point) for point in faults.points]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
