"""Lock files: their content, two processes that share one, and unusable ones."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import write_study

from qlora_repeat.assets.fetch import fetch_command, needed
from qlora_repeat.assets.hub_lock import LockFile, lock_file
from qlora_repeat.assets.pins import Pin, PinnedFile
from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.study.data_sources import Hub
from qlora_repeat.study.loading import open_workspace

HUB = Hub("acme/model", "main")
PIN = Pin(
    "model", "main", "a" * 40, {"config.json": PinnedFile(2, "b" * 64)}, {"model.safetensors": "c" * 64}
)


def test_an_added_pin_is_read_back(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "new" / "folder" / "small.lock")
    assert lock.pin(HUB) is None
    assert lock.add(HUB, PIN) == PIN
    assert lock.pin(HUB) == PIN
    assert lock.pin(Hub("acme/other", "main")) is None
    assert [path.name for path in lock.path.parent.iterdir()] == ["small.lock"]


def test_a_pin_that_another_process_added_first_stays(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "small.lock")
    lock.add(HUB, PIN)
    moved = Pin("model", "main", "d" * 40, {})
    assert lock.add(HUB, moved) == PIN
    assert lock.pin(HUB) == PIN


def test_pins_of_the_kit_are_read_and_copied_with_the_first_new_pin(tmp_path: Path) -> None:
    shipped, other = tmp_path / "kit" / "small.lock", Hub("acme/other", "main")
    LockFile(shipped).add(HUB, PIN)
    before = shipped.read_bytes()
    lock = LockFile(tmp_path / "small.lock", shipped=shipped)
    assert lock.pin(HUB) == PIN
    assert not lock.path.exists()
    lock.add(other, PIN)
    shipped.unlink()
    assert lock.pin(HUB) == lock.pin(other) == PIN
    shipped.write_bytes(before)
    assert LockFile(shipped).pin(other) is None


def test_the_order_of_adding_does_not_matter(tmp_path: Path) -> None:
    other = Hub("acme/other", "main")
    one, two = LockFile(tmp_path / "one.lock"), LockFile(tmp_path / "two.lock")
    for hub in (HUB, other):
        one.add(hub, PIN)
    for hub in (other, HUB):
        two.add(hub, PIN)
    assert one.path.read_bytes() == two.path.read_bytes()


def test_simultaneous_processes_lose_no_pin(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from qlora_repeat.assets.hub_lock import LockFile\n"
        "from qlora_repeat.assets.pins import Pin\n"
        "from qlora_repeat.study.data_sources import Hub\n"
        "lock = LockFile(Path(sys.argv[1]))\n"
        "pin = Pin('model', 'main', 'a' * 40, {})\n"
        "for number in range(50): lock.add(Hub(f'{sys.argv[2]}/{number}', 'main'), pin)"
    )
    path = tmp_path / "small.lock"
    adding = [
        subprocess.Popen([sys.executable, "-c", script, path, name]) for name in ("one", "two", "three")
    ]
    assert [process.wait(60) for process in adding] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 150


def test_a_lock_at_another_revision_is_refused(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "small.lock")
    lock.add(HUB, PIN)
    for ask in (lock.pin, lambda hub: lock.add(hub, PIN)):
        with pytest.raises(UsageError, match="acme/model is locked at revision main, the study asks for v2"):
            ask(Hub("acme/model", "v2"))


def changed(**values: object) -> bytes:
    return json.dumps({HUB.repository: dataclasses.asdict(PIN) | values}).encode()


UNREADABLE = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "no pin": b'{"acme/model": 1}',
    "a conflict of two branches": b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> other\n",
    "a branch for a commit": changed(commit="main"),
    "a text for a size": changed(files={"config.json": {"size": "2", "digest": "b" * 64}}),
    "half a digest": changed(files={"config.json": {"size": 2, "digest": "b" * 32}}),
    "a path to elsewhere": changed(files={"../../config.json": {"size": 2, "digest": "b" * 64}}),
    "a path from the root": changed(files={"/etc/passwd": {"size": 2, "digest": "b" * 64}}),
    "an unknown key": changed(comit="a" * 40),
    **{
        f"the file {name[:20]!r}": changed(files={name: {"size": 2, "digest": "b" * 64}})
        for name in ("", ".", "a//b", "a/./b", "a/", "a\\b", "a\0b", "a\nb", "\x1b[2J", "a\u202eb",
                     "a" * 2000)
    },
    "a converted file elsewhere": changed(converted={"../model.safetensors": "c" * 64}),
    "a revision elsewhere": changed(revision="../../main"),
    "an option for a revision": changed(revision="--x"),
    "a repository elsewhere": json.dumps({"../..": dataclasses.asdict(PIN)}).encode(),
    "a size of 5,000 digits": changed(files={"a": {"size": 0, "digest": "b" * 64}})
    .replace(b"0,", b"9" * 5000 + b","),
    "a size of 80 bits": changed(files={"a": {"size": 2**80, "digest": "b" * 64}}),
    "a lone surrogate": changed(revision="SURROGATE").replace(b"SURROGATE", b"\\ud800"),
    "lists in lists": b"[" * 100_000,
    "tables in tables": b'{"a":' * 100_000,
    "many keys": b"{" + b",".join(b'"a/%d":1' % number for number in range(400_000)) + b"}",
}  # fmt: skip


@pytest.mark.parametrize("content", UNREADABLE)
def test_an_invalid_lock_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "small.lock"
    path.write_bytes(UNREADABLE[content])
    for ask in (LockFile(path).pin, lambda hub: LockFile(path).add(hub, PIN)):
        with pytest.raises(UsageError) as caught:
            ask(HUB)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"{path}: not a readable lock file (")
        assert str(caught.value).endswith("); delete it to lock again")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000 + len(str(path))
    assert path.read_bytes() == UNREADABLE[content]


def test_a_lock_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("fifo", "device"):
        with pytest.raises(UsageError, match="not a regular file"):
            LockFile(tmp_path / name).pin(HUB)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "small.lock"
    path.write_bytes(UNREADABLE["a branch for a commit"])
    with pytest.raises(UsageError, match=r"key acme/model\.commit: .* \(found 'main'\)"):
        LockFile(path).pin(HUB)


def test_an_unwritable_lock_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = LockFile(tmp_path / "file" / "small.lock")
    assert lock.pin(HUB) is None
    for write in (lock.require_writable, lambda: lock.add(HUB, PIN)):
        with pytest.raises(
            MissingError, match=r"cannot be written .*; set QLORA_REPEAT_LOCK to another path"
        ):
            write()


def lock_path(study: str) -> Path:
    return lock_file(open_workspace(study)).path


def test_a_lock_is_beside_its_study_or_where_the_user_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QLORA_REPEAT_LOCK", raising=False)
    assert lock_path("paper") == lock_path("paper@6-steps-4-rows") == Path("studies/paper.lock")
    assert lock_path(str(write_study(tmp_path))) == tmp_path / "tiny.lock"
    monkeypatch.setenv("QLORA_REPEAT_LOCK", str(tmp_path / "other.lock"))
    assert lock_path("paper") == tmp_path / "other.lock"


def test_a_path_with_spaces_is_quoted_in_the_command_that_fetches(tmp_path: Path) -> None:
    (tmp_path / "my studies").mkdir()
    study = write_study(tmp_path / "my studies")
    workspace = open_workspace(str(study), cache=tmp_path)
    assert fetch_command(workspace, needed(workspace)[0]).startswith(f"`qlora-repeat fetch '{study}' --only ")


def test_lock_files_may_be_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use another folder, as in an image, where the folder of studies is read-only."""
    assert lock_path("paper").name == "paper.lock"
    monkeypatch.setenv("QLORA_REPEAT_LOCK", f"{tmp_path}/locks/")
    assert lock_path("paper@bitwise") == tmp_path / "locks" / "paper.lock"
    monkeypatch.setenv("QLORA_REPEAT_LOCK", f"{tmp_path}/one.lock")
    assert lock_path("paper") == tmp_path / "one.lock"
