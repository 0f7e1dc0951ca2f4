"""Work on several cores."""

import os
import threading
import time

import pytest

from qlora_repeat.system.parallel import in_parallel

LARGE = 10**9


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})


def test_each_usable_core_has_one_item_at_a_time() -> None:
    together, lock, running, most = threading.Barrier(3), threading.Lock(), [0], [0]

    def compute(item: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait(60)  # fails unless three run at the same time
        with lock:
            running[0] -= 1
        return item**2

    assert in_parallel(compute, range(9), LARGE) == [item**2 for item in range(9)]
    assert most == [3]


@pytest.mark.parametrize(("items", "size"), [(9, 1000), (1, LARGE)])
def test_little_work_needs_no_thread(items: int, size: int) -> None:
    threads = in_parallel(lambda item: threading.get_ident(), range(items), size)
    assert set(threads) == {threading.get_ident()}


def test_the_first_error_is_raised() -> None:
    def compute(item: int) -> None:
        time.sleep(0.05 * (3 - item))  # the last one fails first
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"^0$"):
        in_parallel(compute, range(3), LARGE)
