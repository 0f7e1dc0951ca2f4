"""Strangers' files, of any content, end in a result or in one line: no traceback, no hang, little memory.

A few hundred files are tried. ``QLORA_REPEAT_FUZZ=10000`` tries that many; their number is printed.
"""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support.checkout import copy_folder
from support.laboratory import Lab
from support.readers import READERS, only_errors_of_the_kit, use_commands

from qlora_repeat.system.memory import _proc_bytes, reset_peak_memory

INPUTS = int(os.environ.get("QLORA_REPEAT_FUZZ", "250"))
"""Of all readers together."""
PICTURES = 40
"""Every this many files are drawn too, which takes longer."""
MOST_BYTES = 500_000_000
LONGEST_SECONDS = 300
"""A file that takes longer counts as a hang, even on a busy machine."""
tried: Counter[str] = Counter()


@pytest.fixture(scope="module")
def lab(finished: Lab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a copy of the finished study for all strangers' files; each file is put back after its use."""
    folder = tmp_path_factory.mktemp("strangers") / "lab"
    copy_folder(finished.folder, folder)
    return Lab(folder, finished.cache)


@pytest.fixture
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError(f"a file took longer than {LONGEST_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block needs much time or memory."""
    signal.alarm(LONGEST_SECONDS)
    reset_peak_memory()
    before = _proc_bytes("/proc/self/status", "VmRSS") or 0
    yield
    signal.alarm(0)
    used = (_proc_bytes("/proc/self/status", "VmHWM") or 0) - before
    assert used < MOST_BYTES, f"{used / 1e6:.0f} MB"


@pytest.mark.parametrize("kind", READERS)
def test_only_errors_of_the_kit_leave_a_reader(
    kind: str, lab: Lab, no_hang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = READERS[kind]
    monkeypatch.setenv("QLORA_REPEAT_CLUSTER", "")  # put back after the test

    @settings(
        max_examples=max(INPUTS * reader.share // 100, 1),
        deadline=None,
        database=None,
        derandomize="QLORA_REPEAT_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(reader.contents(lab))
    def use(file: tuple[Path, bytes]) -> None:
        path, content = file
        before = path.read_bytes() if path.exists() else None
        tried[kind] += 1
        try:
            path.write_bytes(content)
            with bounded():
                only_errors_of_the_kit(lambda: reader.use(lab, path, tried[kind] % PICTURES == 0))
        finally:
            if before is not None:
                path.write_bytes(before)

    use()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**10)


@pytest.mark.parametrize("make", [a_fifo, endless, a_folder, sparse])
def test_commands_end_where_a_file_is_something_else(
    make: Callable[[Path], None], lab: Lab, no_hang: None
) -> None:
    trial = "tiny/tiny-neox/adamw-8bit/trial-1"
    names = ("finetune.json", "trace.jsonl", "adapter/adapter_config.json", "lock.json", "failed.json")
    for path in [
        lab.study,
        lab.archive,
        lab.runs / "tiny/results.jsonl",
        *(lab.runs / trial / name for name in names),
    ]:
        aside = path.with_name("aside")
        if path.exists():
            path.rename(aside)
        make(path)
        with bounded():
            use_commands(lab)
        path.rmdir() if path.is_dir() else path.unlink()
        if aside.exists():
            aside.rename(path)


def test_the_number_of_files_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{sum(tried.values())} strangers' files: {dict(tried)}")
    assert set(tried) == set(READERS)
    assert sum(reader.share for reader in READERS.values()) == 100
