"""How the C library deals with memory of this process that was freed."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Smaller ones come and go too often: the rounding of a matrix works through blocks of 2 MiB.
_LARGE_BYTES = 4 * 2**20
#: What glibc on its own arrives at once a block of this size has been freed, on 64 bits.
_USUAL_LARGE_BYTES = 32 * 2**20


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """While it is entered, large blocks go back to the operating system as they are freed, if the C library is glibc.

    It would keep up to 32 MiB of each for later, apart for every thread. Of matrices that one thread reads and another
    rounds, that adds up to layers. Serving, where the same temporaries come again and again, is better off so.
    """
    _set_large(_LARGE_BYTES)
    try:
        yield
    finally:
        _set_large(_USUAL_LARGE_BYTES)


def give_back_free_memory() -> None:
    """Returns all that is free to the operating system, if the C library is glibc.

    A stream that has ended may hold the deployment that it fed, and its KV cache, in a cycle: that counts as free.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set_large(num_bytes: int) -> None:
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, num_bytes)
        mallopt(_TRIM_THRESHOLD, 2 * num_bytes)  # as glibc does


@cache
def _mallopt() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), "mallopt", None)
