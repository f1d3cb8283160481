"""Calls of kernels, one after another, as one call of native code.

A decode step is hundreds of short calls. Made one by one from Python, they take as long again as the kernels need for
a few rows, and each of them waits for the interpreter if another thread has it.
"""

import ctypes
from collections.abc import Iterable

from quantizer.native.call import KernelCall
from quantizer.native.library import Kernels


class _Call(ctypes.Structure):
    """Mirror of the struct in program.cpp; so is the other."""

    _fields_ = (("kernel", ctypes.c_void_p), ("work", ctypes.c_void_p))


class _Program(ctypes.Structure):
    _fields_ = (("calls", ctypes.c_void_p), ("num_calls", ctypes.c_int64))


class Program:
    """Makes calls in their order. What they read and write lies in the same tensors each time.

    Args:
        kernels: Of this process.
        calls: What to do.
    """

    def __init__(self, kernels: Kernels, calls: Iterable[KernelCall]) -> None:
        self._made = tuple(calls)
        steps = (_Call(ctypes.cast(call.kernel, ctypes.c_void_p), ctypes.addressof(call.work)) for call in self._made)
        self._calls = (_Call * len(self._made))(*steps)
        program = _Program(ctypes.addressof(self._calls), len(self._made))
        self._call = KernelCall(kernels.function("run_program"), program, ())

    def run(self) -> None:
        """Makes all calls. While they run, so may other Python threads."""
        self._call.run()
