"""The compiled kernels, loaded: for the newest instruction set that this process may use, on torch's threads."""

import ctypes
import functools
import os
import re
from pathlib import Path
from typing import Any

import torch

from quantizer.native.build import INSTRUCTION_SETS, library_path
from quantizer.native.call import KernelCall
from quantizer.tiles import TiledWeight

#: The flags in /proc/cpuinfo that an instruction set stands on.
_CPU_FLAGS = {
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"},
    "avxvnni": {"avx2", "avx_vnni", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "sse4": {"sse4_1", "ssse3"},
}
#: The variables that hold torch and oneDNN to older CPUs hold these kernels too: the newest that each value allows.
_LIMITS = {
    "ATEN_CPU_CAPABILITY": {"default": "sse4", "avx2": "avx2"},
    "ONEDNN_MAX_CPU_ISA": {
        "sse41": "sse4",
        "avx": "sse4",
        "avx2": "avx2",
        "avx2_vnni": "avxvnni",
        "avx2_vnni_2": "avxvnni",
        "avx512_core": "avx2",
    },
}
#: How product.h numbers the types of weights.
WEIGHT_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.int8: 2}

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class Team(ctypes.Structure):
    """Mirror of the struct in parallel.h: the threads that share a kernel's work."""

    _fields_ = (("run_parallel", _POINTER), ("num_threads", _INTEGER))


class _CodeProduct(ctypes.Structure):
    """Mirror of the struct in product.h; see there for each field."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "work", "bias", "codes", "scales", "zeros")),
        *((name, _INTEGER) for name in ("num_rows", "num_inputs", "num_outputs", "bits", "group_size")),
        *((name, _INTEGER) for name in ("num_weight_groups", "rotates", "unpacks_first")),
        ("team", Team),
    )


class _FloatProduct(ctypes.Structure):
    """Mirror of the struct in product.h; see there for each field."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "bias", "weight", "scales")),
        *((name, _INTEGER) for name in ("num_rows", "num_inputs", "num_outputs", "type")),
        ("team", Team),
    )


class Kernels:
    """The kernels of one instruction set. While they run, so may other Python threads.

    Args:
        library: The library, loaded.
        instruction_set: One that it has.
    """

    def __init__(self, library: ctypes.CDLL, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        self._library = library
        self._multiply_codes = self.function("multiply_codes")
        self._multiply_floats = self.function("multiply_floats")
        self._multiply_panels = self.function("multiply_panels")
        self._run_parallel = _run_parallel()

    def multiply_codes(
        self, x: torch.Tensor, weight: TiledWeight, bias: torch.Tensor | None, *, unpacks_first: bool
    ) -> torch.Tensor:
        """Rounds x to int8 per row and group, and multiplies it with a weight of 8, 4 or 3 bits in exact integers.

        Where the weight is rotated, so is x before it is rounded.

        Args:
            x: float32 (rows, in).
            weight: (out, in).
            bias: float32 (out,) or None.
            unpacks_first: Whether codes are unpacked to memory for all rows, or in registers for each few.

        Returns:
            float32 (rows, out).
        """
        y = x.new_empty(len(x), weight.shape[0])
        self.code_product(x.contiguous(), y, None, weight, bias, unpacks_first=unpacks_first).run()
        return y

    def code_product(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        work: torch.Tensor | None,
        weight: TiledWeight,
        bias: torch.Tensor | None,
        *,
        unpacks_first: bool,
    ) -> KernelCall:
        """The call behind `multiply_codes`, from one contiguous tensor to another.

        Args:
            x: As there.
            y: float32 (rows, out).
            work: uint8, at least `weight.work_bytes` a row, which calls may share; or None for one of its own.
            weight: As there.
            bias: As there.
            unpacks_first: As there.
        """
        if work is None:
            work = torch.empty(len(x) * weight.work_bytes, dtype=torch.uint8)
        tensors = (x, y, work, bias, weight.codes, weight.scales, weight.zeros)
        product = _CodeProduct(
            *map(address, tensors),
            *(len(x), weight.shape[1], weight.shape[0], weight.bits, weight.activation_group_size),
            *(weight.num_groups, weight.is_rotated, unpacks_first),
            self.team(),
        )
        return KernelCall(self._multiply_codes, product, tensors)

    def multiply_floats(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor | None,
        bias: torch.Tensor | None,
        *,
        in_panels: bool,
    ) -> torch.Tensor:
        """Multiplies with a weight of 16 or 8 bits that is converted to float32 on the way.

        Args:
            x: float32 (rows, in).
            weight: float16, bfloat16 or int8 (out, in), contiguous.
            scales: float32 (out,), of int8 weights, or None.
            bias: float32 (out,) or None.
            in_panels: Whether weights are transposed for many rows, or read along the inputs for a few.

        Returns:
            float32 (rows, out).
        """
        y = x.new_empty(len(x), len(weight))
        self.float_product(x.contiguous(), y, weight, scales, bias, in_panels=in_panels).run()
        return y

    def float_product(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor | None,
        bias: torch.Tensor | None,
        *,
        in_panels: bool,
    ) -> KernelCall:
        """The call behind `multiply_floats`, from one contiguous tensor to another, y float32 (rows, out)."""
        tensors = (x, y, bias, weight, scales)
        product = _FloatProduct(
            *map(address, tensors), *(len(x), x.shape[1], len(weight), WEIGHT_TYPES[weight.dtype]), self.team()
        )
        return KernelCall(self._multiply_panels if in_panels else self._multiply_floats, product, tensors)

    def team(self) -> Team:
        """The threads that torch uses at the moment."""
        return Team(self._run_parallel, torch.get_num_threads())

    def function(self, name: str) -> Any:
        """A function of the library, for this instruction set; it takes the address of the struct that it works on."""
        return self._library[f"{name}_{self.instruction_set}"]


@functools.cache
def kernels() -> Kernels | None:
    """The kernels that this process uses; None where there is no library for this host, or the CPU is too old."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError:
        return None
    # A compiler may have been too old for the newest.
    built = (name for name in usable_instruction_sets() if hasattr(library, f"multiply_codes_{name}"))
    newest = next(built, None)
    return Kernels(library, newest) if newest else None


def usable_instruction_sets() -> tuple[str, ...]:
    """What the CPU has and the process is not held back from, newest first."""
    newest_first = tuple(INSTRUCTION_SETS)
    limits = (values.get(os.environ.get(variable, "").lower()) for variable, values in _LIMITS.items())
    newest = max((newest_first.index(limit) for limit in limits if limit), default=0)
    flags = _cpu_flags()
    return tuple(name for name in newest_first[newest:] if _CPU_FLAGS[name] <= flags)


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's numbers are; None of None."""
    return tensor.data_ptr() if tensor is not None else None


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return set(found[1].split()) if found else set()


def _run_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded; None if it cannot be found."""
    loaded = re.findall(r"^.* (/\S*lib(?:gomp|iomp|omp)\S*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    for path in dict.fromkeys(loaded):
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None
