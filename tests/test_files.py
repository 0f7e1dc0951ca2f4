"""Files and folders that are either whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_repeat.files import new_folder, write_json, write_text

FAILURES = [OSError, ValueError, KeyboardInterrupt, SystemExit, MemoryError]


def test_a_file_is_written_with_its_folders_for_all_to_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "ő\r\n\u2028🙂\n")
    assert path.read_bytes() == "ő\r\n\u2028🙂\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_json_is_for_people_and_diff(tmp_path: Path) -> None:
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


def test_a_full_disk_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = (
        "import pathlib, resource, sys; from qlora_repeat.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(pathlib.Path(sys.argv[1]), 'new' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert "File too large" in done.stderr
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


def test_a_folder_in_the_way_of_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_one_text_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "a" * 200_000)
    script = (
        "import pathlib, sys; from qlora_repeat.files import write_text\n"
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
        "import os, pathlib, sys; from qlora_repeat import files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "files.write_text(pathlib.Path(sys.argv[1]), 'new')"
    )
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -9
    assert path.read_text() == "old"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file.txt").write_text("new")
        assert not path.exists()
    assert (path / "below" / "file.txt").read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_and_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with new_folder(path) as folder:
            (folder / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("existed", [False, True])
def test_a_failing_block_leaves_what_was_there(
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
