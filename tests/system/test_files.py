"""Files and folders are written completely or not at all; untrusted JSON is checked."""

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from numpy import zeros
from pydantic import TypeAdapter
from safetensors.numpy import save_file
from support.small_disk import needs_mount, on_small_disk

from qlora_repeat.errors import MissingError
from qlora_repeat.system import files
from qlora_repeat.system.file_lock import exclusive
from qlora_repeat.system.files import (
    SET_TMPDIR,
    append_to,
    disk_error,
    disk_errors,
    make_folder,
    move_folder,
    new_folder,
    open_regular,
    parse_json,
    read_file,
    read_json,
    read_lines,
    restore_folder,
    temporary_folder,
    write_json,
    write_text,
)
from qlora_repeat.system.typed_json import read_as

FAILURES = [OSError, ValueError, KeyboardInterrupt, SystemExit, MemoryError]


def test_a_file_is_created_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "ő\r\n\u2028🙂\n")
    assert path.read_bytes() == "ő\r\n\u2028🙂\n".encode()
    assert list(path.parent.iterdir()) == [path]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Set the umask for a test."""
    before = os.umask(0)
    os.umask(before)
    yield lambda wanted: (os.umask(wanted), None)[1]
    os.umask(before)


@pytest.mark.parametrize("wanted", [0o022, 0o002, 0o077, 0o027])
@pytest.mark.parametrize("shared", [False, True])
def test_permissions_are_those_of_the_umask_and_of_a_shared_folder(
    wanted: int, shared: bool, tmp_path: Path, umask: Callable[[int], None]
) -> None:
    """Inherit the group of a folder with the setgid bit, as folders of work groups have it."""
    base = tmp_path / "base"
    base.mkdir()
    if shared:
        os.chown(base, -1, 12345 if os.geteuid() == 0 else os.getgid())
        base.chmod(0o2775)
    umask(wanted)
    write_text(base / "new" / "file.txt", "")
    with new_folder(base / "new" / "folder") as folder:
        save_file({"x": zeros(3, "f")}, folder / "weights.safetensors")
        (folder / "below").mkdir()
        assert not mode(folder) & 0o077, "only this user opens a folder that is not complete"
    with new_folder(base / "other", replace=False) as folder:
        write_text(folder / "file.txt", "")
    with exclusive(base / "lock.json", "the thing"):
        made = [path for path in base.rglob("*") if path != base / "base"]
        assert len(made) == 8
        for path in made:
            setgid = 0o2000 if shared and path.is_dir() else 0
            assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~wanted | setgid, path
            assert path.stat().st_gid == base.stat().st_gid


def test_json_is_indented_sorted_and_not_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": ["é"], "a": None})
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": null,\n  "b": [\n    "é"\n  ]\n}\n'


def test_a_text_that_cannot_be_encoded_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": {"b": 1}, "b": [{"a": 2}, {"a": 3}]}', {"a": {"b": 1}, "b": [{"a": 2}, {"a": 3}]}),
        ("[1, -0.5, null, true]", [1, -0.5, None, True]),
    ],
)
def test_json_is_read(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    assert read_json(tmp_path / "file.json", "delete it") == value == json.loads(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "key 'a' appears twice"),
        (b'[{"x": {"a": 1, "\\u0061": 2}}]', "key 'a' appears twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff{}", "'utf-8' codec can't decode"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
        (b"9" * 5000, "integer 9+ needs more than 64 bits"),
        (b"18446744073709551616", "integer 18446744073709551616 needs more than 64 bits"),
        (b"[-9223372036854775809]", "integer -9223372036854775809 needs more than 64 bits"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested too deeply"),
        (b'["\\ud83d\\ude00", "\\udc00"]', "a text has half of a surrogate pair"),
        (b'{"\\ud800": 1}', "a text has half of a surrogate pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ambiguous_invalid_or_endless_json_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(MissingError) as caught:
        read_json(path, "fetch it again")
    assert re.match(rf"{re.escape(str(path))}: cannot be read \({reason}", str(caught.value))
    assert str(caught.value).endswith("); fetch it again")
    with pytest.raises(ValueError, match=reason):
        parse_json(content)


@pytest.mark.parametrize(
    "content",
    [
        b"18446744073709551615",
        b"[-9223372036854775808]",
        b'"\\ud83d\\ude00"',
        b"1e400",
        b"[" * 99 + b"]" * 99,
    ],
)
def test_unusual_json_is_read(content: bytes) -> None:
    assert parse_json(content) == json.loads(content)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "expected an object"),
        ('{"a": 5}', "a: expected text (found 5)"),
        ('{"a": null}', "a: expected text (found None)"),
    ],
)
def test_json_of_another_type_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(MissingError) as caught:
        read_as(TypeAdapter(dict[str, str]), path, "delete it")
    assert str(caught.value) == f"{path}: {problem}; delete it"


def test_missing_or_too_large_json_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(MissingError, match=r"cannot be read \(No such file or directory\); fetch it"):
        read_json(path, "fetch it")
    monkeypatch.setattr(files, "LARGEST_JSON", 3)
    path.write_text("1234")
    with pytest.raises(MissingError, match="larger than"):
        read_json(path, "fetch it")


DISKS = {
    "full": (errno.ENOSPC, "No space left on device", "(here / 'ballast').write_bytes(b'0' * 800_000)"),
    "read-only": (
        errno.EROFS,
        "Read-only file system",
        "subprocess.run(['mount', '-o', 'remount,ro', here], check=True)",
    ),
}
WRITERS = {
    "file": "write_text(here / 'old', 'n' * 500_000)",
    "folder": "with new_folder(here / 'old') as new: (new / 'weights').write_bytes(b'n' * 500_000)",
    "weights": "with new_folder(here / 'old') as new: save_file({'x': zeros(125_000, 'f')}, new / 'weights')",
}


@needs_mount
@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_or_read_only_disk_is_named_and_the_old_content_stays(
    disk: str, writer: str, tmp_path: Path
) -> None:
    number, reason, damage = DISKS[disk]
    script = f"""
import pathlib, subprocess, sys
from numpy import zeros
from safetensors.numpy import save_file
from qlora_repeat.system.files import disk_error, new_folder, write_text
here = pathlib.Path(sys.argv[1])
if {writer == "file"}:
    write_text(here / "old", "old")
else:
    with new_folder(here / "old") as new: (new / "old").write_text("old")
{damage}
before = sorted(here.rglob("*"))
try:
    {WRITERS[writer]}
except OSError as error:
    print(error.errno, disk_error(error))
assert sorted(here.rglob("*")) == before, sorted(here.rglob("*"))
assert (here / "old" / "old" if (here / "old").is_dir() else here / "old").read_text() == "old"
"""
    done = on_small_disk(script, tmp_path, 1)
    assert done.returncode == 0, done.stderr
    advice = "free some space there" if disk == "full" else "make it writable"
    assert done.stdout == (
        f"{number} {tmp_path}/old: {reason}; {advice}, or set QLORA_REPEAT_RUNS (results) "
        "or QLORA_REPEAT_CACHE (models and data) to another folder\n"
    )


def test_an_error_in_another_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_folder(tmp_path / "folder"):
        (tmp_path / "elsewhere").read_text()
    assert disk_error(caught.value) == f"{tmp_path}/elsewhere: No such file or directory"
    assert disk_error(OSError("a library's own words")) == "a library's own words"


def test_an_error_in_a_temporary_folder_names_its_variable(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with temporary_folder() as folder:
        assert mode(folder) == 0o700
        error.filename = str(folder / "file")
        assert disk_error(error).endswith("; free some space there, or set TMPDIR to another folder")
        with (
            pytest.raises(MissingError, match="set TMPDIR to another folder"),
            disk_errors(folder, SET_TMPDIR),
        ):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert not folder.exists()
    error.filename = str(tmp_path / "file")
    assert "set QLORA_REPEAT_RUNS" in disk_error(error)


def test_without_a_temporary_folder_the_variable_is_named(tmp_path: Path) -> None:
    script = (
        "import os, tempfile; from qlora_repeat.system import files\n"
        f"tempfile.tempdir = '{tmp_path}/none'\n"
        "with files.temporary_folder(): pass"
    )
    environment = os.environ | {"TMPDIR": f"{tmp_path}/none"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stderr.endswith(
        f"MissingError: {tmp_path}/none: no temporary folder can be made (No such file or directory); "
        "set TMPDIR to another folder\n"
    )


@needs_mount
def test_an_error_without_a_file_names_the_given_folder(tmp_path: Path) -> None:
    script = """
import pathlib, sys
from qlora_repeat.system.files import disk_error
here = pathlib.Path(sys.argv[1])
try:
    (here / "trace.jsonl").write_bytes(b"0" * 2_000_000)
except OSError as error:
    print(disk_error(error, here), disk_error(error), sep="|")
"""
    done = on_small_disk(script, tmp_path, 1)
    named, nameless = done.stdout.split("|")
    assert named.startswith(f"{tmp_path}: No space left on device; free some space there, or set QLORA_")
    assert nameless.startswith("No space left on device; free some space there, or set QLORA_")


def test_a_file_over_the_size_limit_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = (
        "import pathlib, resource, sys; from qlora_repeat.system.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(pathlib.Path(sys.argv[1]), 'new' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert f"File too large: '{path}'" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_appended_is_not_written_later(tmp_path: Path) -> None:
    """A rest in a buffer would be written at the end, perhaps after what the next attempt wrote."""
    script = """
import pathlib, resource, sys
from qlora_repeat.system.files import append_to, write_whole
file = append_to(pathlib.Path(sys.argv[1]))
write_whole(file, b"whole")
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (8, most))
try:
    write_whole(file, b"long line")
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
file.close()
"""
    path = tmp_path / "trace"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert path.read_text() == "wholelon"


@pytest.mark.parametrize("failure", FAILURES)
def test_an_interruption_leaves_the_old_text(
    failure: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupted(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(failure):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "a" * 200_000)
    script = (
        "import pathlib, sys; from qlora_repeat.system.files import write_text\n"
        "for n in range(40): write_text(pathlib.Path(sys.argv[1]), 'ba'[n % 2] * 200_000)"
    )
    seen = set()
    with subprocess.Popen([sys.executable, "-c", script, path]) as writer:
        while writer.poll() is None:
            seen.add(path.read_text())
    assert writer.returncode == 0
    assert seen <= {"a" * 200_000, "b" * 200_000}
    assert len(seen) == 2


def test_a_killed_writer_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = (
        "import os, pathlib, sys; from qlora_repeat.system import files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "files.write_text(pathlib.Path(sys.argv[1]), 'new')"
    )
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -9
    assert path.read_text() == "old"


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file.txt").write_text("new")
        assert not path.exists()
    assert (path / "below" / "file.txt").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_on_disk_with_all_below_it_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "folder", set[int](), os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        if not path.exists():
            synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    with new_folder(path) as folder:
        (folder / "below" / "deeper").mkdir(parents=True)
        (folder / "below" / "file.txt").write_text("new")
    assert synced == {found.stat().st_ino for found in [path, *path.rglob("*")]}


def test_a_folder_replaces_the_old_one_and_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with new_folder(path) as folder:
            (folder / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("existed", [False, True])
def test_a_failing_block_leaves_the_old_folder(
    failure: type[BaseException], existed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "folder"
    if existed:
        path.mkdir()
        (path / "file.txt").write_text("old")
    with pytest.raises(failure), new_folder(path) as folder:
        (folder / "file.txt").write_text("new")
        raise failure
    assert list(tmp_path.iterdir()) == [path] * existed
    if existed:
        assert (path / "file.txt").read_text() == "old"


def test_an_interruption_between_the_two_renames_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file.txt").write_text("old")
    replace = os.replace

    def interrupted(old: Path, new: Path) -> None:
        if Path(new) == path and Path(old).name.startswith(".folder.") and Path(old).parent == tmp_path:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(path):
        pass
    assert (path / "file.txt").read_text() == "old"


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_loses_no_folder(renames: int, tmp_path: Path) -> None:
    """Kill `move_folder` after its first or second rename, and start again."""
    path, source = tmp_path / "adapter", tmp_path / "new"
    for folder in (path, source):
        folder.mkdir()
        (folder / "file.txt").write_text(folder.name)
    script = f"""
import os, pathlib, sys
from qlora_repeat.system import files
replace, left = os.replace, [{renames}]
def killed(old, new):
    replace(old, new)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
os.replace = killed
files.move_folder(*map(pathlib.Path, sys.argv[1:]))
"""
    assert subprocess.run([sys.executable, "-c", script, source, path]).returncode == -9
    restore_folder(path)
    assert (path / "file.txt").read_text() == {1: "adapter", 2: "new"}[renames]
    assert set(tmp_path.iterdir()) == {path, source} - ({source} if renames == 2 else set())
    if source.exists():
        move_folder(source, path)
        assert (path / "file.txt").read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_put_back_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    write_text(path / "file.txt", "old")
    (tmp_path / "new").mkdir()
    replace = os.replace

    def broken(old: Path, new: Path) -> None:
        if new == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(old, new)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        move_folder(tmp_path / "new", path)
    monkeypatch.undo()
    restore_folder(path)
    assert (path / "file.txt").read_text() == "old"


def test_new_parent_folders_are_on_disk_before_the_file_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = list[int](), os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a" / "b" / "file.txt", "")
    assert synced[:2] == [path.stat().st_ino for path in (tmp_path, tmp_path / "a")]
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a" / "b" / "file.txt")


@pytest.mark.parametrize("there", ["file", "link", "folder", "empty"])
def test_without_replace_what_appears_at_the_target_stays(there: str, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(FileExistsError) as caught, new_folder(path, replace=False) as new:
        (new / "file.txt").write_text("new")
        if there == "file":
            path.write_text("theirs")
        elif there == "link":
            path.symlink_to("nowhere")
        else:
            path.mkdir()
            if there == "folder":
                (path / "theirs").touch()
    assert caught.value.filename == str(path)
    assert list(tmp_path.rglob("*")) == [path, *([path / "theirs"] if there == "folder" else [])]
    assert path.is_symlink() == (there == "link")


def test_a_file_that_appears_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mkdir = tmp_path / "folder", Path.mkdir

    def followed(self: Path, *arguments: object) -> None:
        mkdir(self)
        if self == path:
            (path / "theirs").touch()

    monkeypatch.setattr(Path, "mkdir", followed)
    with pytest.raises(FileExistsError), new_folder(path, replace=False):
        pass
    assert list(tmp_path.rglob("*")) == [path, path / "theirs"]


def odd_files(folder: Path) -> dict[str, Path]:
    """Make a file of each kind that is not a regular file, and a link to a regular one."""
    found = {name: folder / name for name in ("fifo", "folder", "link", "socket", "endless")}
    os.mkfifo(found["fifo"])
    found["folder"].mkdir()
    (folder / "secret").write_text("secret")
    found["link"].symlink_to(folder / "secret")
    found["endless"].symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(found["socket"]))  # a path of at most 107 bytes
    return found | {"device": Path("/dev/zero")}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Neither wait for a FIFO, nor read a device, nor follow a link."""
    for path in odd_files(tmp_path).values():
        with pytest.raises(OSError, match=path.name):
            open_regular(path)
    assert read_file(tmp_path / "link", follow=True) == b"secret"
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "endless", follow=True)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_only_a_regular_file_is_a_log(tmp_path: Path) -> None:
    """A stranger's folder of results may have a link or a FIFO in place of a log."""
    for path in odd_files(tmp_path).values():
        with pytest.raises(OSError, match=path.name):
            append_to(path).close()
    assert (tmp_path / "secret").read_text() == "secret"
    for text in (b"one", b"two"):
        with append_to(tmp_path / "log.txt") as file:
            file.write(text)
    assert (tmp_path / "log.txt").read_bytes() == b"onetwo"


def test_what_is_read_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_file(path, 4) == b"1234"
    with pytest.raises(ValueError, match="larger than 0 kB"):
        read_file(path, 3)
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match="larger than 100 MB"):
        read_lines(path)
    for part in (b"[]," * 3_000_000, b"0," * 5_000_000, b"\n" * 5_000_000):
        path.write_bytes(b"[" + part)
        with pytest.raises(ValueError, match="more than 4,000,000 values"):
            read_lines(path)
        if part.isspace():
            continue  # a tokenizer may have a line for each token
        with pytest.raises(MissingError, match="more than 4,000,000 values"):
            read_json(path, "fetch it")
