"""Handle requests to stop, from a scheduler (SIGTERM, SIGUSR1) or the keyboard (Ctrl-C).

Most work stops at once; files are complete or absent. Fine-tuning completes its step and saves a checkpoint.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from qlora_repeat.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_BLOCKED = (*SIGNALS, signal.SIGINT)

_requested: signal.Signals | None = None
_deferred = False


@contextlib.contextmanager
def stop_on_signals(*, keyboard: bool) -> Iterator[None]:
    """Stop the block when a signal requests it; with `keyboard`, also at Ctrl-C.

    Signals that `signals_blocked` has blocked until now arrive at once. In another thread than the main one,
    Python cannot handle signals, and nothing changes.

    Raises:
        StoppedError: a signal arrived.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    global _requested
    _requested = None
    wanted: tuple[signal.Signals, ...] = _BLOCKED if keyboard else SIGNALS
    if threading.current_thread() is not threading.main_thread():
        wanted = ()
    before = {number: signal.signal(number, _request) for number in wanted}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals in child processes of the block until they call `stop_on_signals`; none is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def deferrable() -> Iterator[None]:
    """End, with the block, the effect of a call of `defer` in it."""
    global _deferred
    before = _deferred
    try:
        yield
    finally:
        _deferred = before


def defer() -> None:
    """Only note requests from now on, for `stop_requested` to return; a second Ctrl-C stops at once."""
    global _deferred
    _deferred = True


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return _requested is not None


def stop_if_requested(what: str = "stopped") -> None:
    """Stop if this process was asked to.

    Raises:
        StoppedError, KeyboardInterrupt: as in `stop_on_signals`.
    """
    if _requested is signal.SIGINT:
        raise KeyboardInterrupt
    if _requested is not None:
        raise StoppedError(f"{what} by {_requested.name}")


@contextlib.contextmanager
def stop_not_hidden() -> Iterator[None]:
    """Raise the request to stop if it interrupted a library that then raised its own error."""
    try:
        yield
    except StoppedError:
        raise
    except Exception:
        stop_if_requested()
        raise


def _request(number: int, frame: FrameType | None) -> None:
    """Stop at the first request. Ignore later ones, which a scheduler may send during the cleanup."""
    global _requested
    first = _requested is None
    second_ctrl_c = number == signal.SIGINT and _requested is signal.SIGINT
    if first:
        _requested = signal.Signals(number)
    if second_ctrl_c or (first and not _deferred):
        stop_if_requested()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after this many seconds of this process's computing.

    For programs of strangers, such as templates, that may not end. In other threads than the main one, which
    gets no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
