"""Python's search for unreachable cycles of objects, where it finds none and takes long."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_search() -> Iterator[None]:
    """For the block, or the function that it decorates, Python does not look for cycles of objects.

    It would go through all objects that there are, again and again as they become more: a fifth of the time
    of importing the libraries. Memory is freed as ever; only that of cycles waits for the next search.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
