"""How much memory this process has been given by the C library's allocator and has not freed."""

import ctypes
import gc

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
_mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)

HAS_FIGURES = _mallinfo2 is not None
WHY_SKIPPED = "the C library does not say what is allocated; glibc 2.33 and up does"


class _Mallinfo2(ctypes.Structure):
    """The result of mallinfo2(3)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS.split())


def allocated_bytes() -> int:
    """Bytes of all blocks in use, those that are mapped apart included."""
    assert _mallinfo2 is not None
    _mallinfo2.restype = _Mallinfo2
    gc.collect()
    figures = _mallinfo2()
    return int(figures.uordblks + figures.hblkhd)
