"""One call of a kernel, which can be made any number of times."""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel, and the struct that it works on.

    Attributes:
        kernel: A function of the library.
        work: What it is given the address of.
        tensors: Those that the struct has addresses of: they live as long as the call can be made.
    """

    kernel: Any
    work: ctypes.Structure
    tensors: tuple[torch.Tensor | None, ...]

    def run(self) -> None:
        """Makes the call. While the kernel runs, so may other Python threads."""
        self.kernel(ctypes.byref(self.work))
