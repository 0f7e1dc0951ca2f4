"""Files and folders are written completely or not at all; untrusted JSON is checked."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support.small_disk import needs_mount, on_small_disk

from qlora_repeat.errors import MissingError
from qlora_repeat.system import files
from qlora_repeat.system.files import disk_error, new_folder, parse_json, read_json, write_json, write_text
from qlora_repeat.system.typed_json import read_as

FAILURES = [OSError, ValueError, KeyboardInterrupt, SystemExit, MemoryError]


def test_a_file_is_created_with_its_folders_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "ő\r\n\u2028🙂\n")
    assert path.read_bytes() == "ő\r\n\u2028🙂\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


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
        ("[]", "Input should be a valid dictionary"),
        ('{"a": 5}', "a: Input should be a valid string (found 5)"),
        ('{"a": null}', "a: Input should be a valid string (found None)"),
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
    assert path.stat().st_mode & 0o777 == 0o755
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
