"""Memory of this host that is free but not given back."""

import ctypes
from functools import cache


def give_back_free_memory() -> None:
    """Returns what was freed to the operating system, where the C library can (glibc).

    It keeps freed blocks of up to 32 MiB for later, apart for each thread. Of matrices that one thread reads and
    another rounds, that would add up to several layers.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
