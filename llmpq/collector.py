"""Python's collector of garbage, kept out of where there is none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For the imports of a process: what they make stays, and looking through it again and again takes a fifth of them.

    Nor is it looked through later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
