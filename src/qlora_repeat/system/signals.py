"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1) or from the keyboard (Ctrl-C).

Most work stops at once; what it wrote is either whole or not there. A fine-tuning ends its step first, and
keeps a checkpoint.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from qlora_repeat.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_HELD_BACK = (*SIGNALS, signal.SIGINT)

_requested: signal.Signals | None = None
_deferred = False


@contextlib.contextmanager
def heeded(*, keyboard: bool) -> Iterator[None]:
    """Heeds requests to stop for the block, in the main thread; with `keyboard`, Ctrl-C is one of them.

    Signals that were held back until now (`held_back`) come at once.

    Raises:
        StoppedError: at a request by signal.
        KeyboardInterrupt: at Ctrl-C.
    """
    global _requested
    _requested = None
    wanted = [*SIGNALS, *([signal.SIGINT] if keyboard else [])]
    before = {number: signal.signal(number, _request) for number in wanted}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started in the block get no signal until they heed it, and lose none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def deferrable() -> Iterator[None]:
    """Where the block calls `defer`, a request is noted only from there on, until the block ends."""
    global _deferred
    before = _deferred
    try:
        yield
    finally:
        _deferred = before


def defer() -> None:
    """Requests are only noted from here on, to be seen by `requested`; a second Ctrl-C stops at once."""
    global _deferred
    _deferred = True


def requested() -> bool:
    """Whether this process has been asked to stop."""
    return _requested is not None


def stop_if_requested(what: str = "stopped") -> None:
    """Stops, if this process has been asked to.

    Raises:
        StoppedError, KeyboardInterrupt: as by `heeded`.
    """
    if _requested is signal.SIGINT:
        raise KeyboardInterrupt
    if _requested is not None:
        raise StoppedError(f"{what} by {_requested.name}")


@contextlib.contextmanager
def told_as_such() -> Iterator[None]:
    """A request to stop stays one where a library, whose loading it cut short, raises an error of its own."""
    try:
        yield
    except StoppedError:
        raise
    except Exception:
        stop_if_requested()
        raise


def _request(number: int, frame: FrameType | None) -> None:
    """Stops at the first request; later ones, of which a scheduler sends several, disturb no cleaning up."""
    global _requested
    first = _requested is None
    again = number == signal.SIGINT and _requested is signal.SIGINT
    if first:
        _requested = signal.Signals(number)
    if again or (first and not _deferred):
        stop_if_requested()
