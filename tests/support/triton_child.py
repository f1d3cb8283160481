"""Triton in a child process: kernels run by its interpreter, or compiled for any chip, neither of which needs a GPU.

Triton decides when it is imported whether it interprets; so neither may happen in the process of the tests.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

HAS_TRITON = find_spec("triton") is not None
WHY_SKIPPED = "Triton is not installed; the dev extra has it on Linux"
T = TypeVar("T")


@contextmanager
def triton_child(**environment: str) -> Iterator[Callable[..., Any]]:
    """A process with these variables set; yields what runs a function of a module there and returns its result."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_start, initargs=(environment,)
    ) as executor:
        yield lambda function, *args, **kwargs: executor.submit(function, *args, **kwargs).result()


def _start(environment: Mapping[str, str]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    if environment.get("TRITON_INTERPRET"):
        _teach_bfloat16()


def _teach_bfloat16() -> None:
    """Triton's interpreter keeps a bfloat16 as its bits and computes with these; here it computes with the float."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def as_float(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    subtract, multiply = InterpreterBuilder.create_fsub, InterpreterBuilder.create_dot
    convert = InterpreterBuilder.create_si_to_fp

    def create_fsub(self: Any, left: Any, right: Any) -> Any:
        difference = subtract(self, as_float(left), as_float(right))
        if left.dtype.scalar != tl.bfloat16:
            return difference
        return TensorHandle((difference.data.view(np.uint32) >> 16).astype(np.uint16), tl.bfloat16)

    def create_dot(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return multiply(self, as_float(left), as_float(right), *rest)

    def create_si_to_fp(self: Any, source: Any, dtype: Any) -> Any:
        if dtype.scalar != tl.bfloat16:
            return convert(self, source, dtype)
        floats = source.data.astype(np.float32)  # of int8, so that no bit is lost
        return TensorHandle((floats.view(np.uint32) >> 16).astype(np.uint16), tl.bfloat16)

    InterpreterBuilder.create_fsub, InterpreterBuilder.create_dot = create_fsub, create_dot
    InterpreterBuilder.create_si_to_fp = create_si_to_fp


def path_outputs(
    build: str, rounded: object, bias: torch.Tensor | None, capability: tuple[int, int], x: torch.Tensor, *args: object
) -> dict[str, torch.Tensor]:
    """What each path of a layer makes of x; `build` names a function of quantizer.cuda.linears."""
    from quantizer.cuda import linears
    from quantizer.cuda.chip import Chip

    layer = getattr(linears, build)(rounded, bias, Chip(capability, 4), *args)
    return {name: forward(x) for name, forward in layer.paths().items()}


def layer_facts(
    build: str, rounded: object, bias: torch.Tensor | None, *args: object
) -> tuple[torch.Tensor, int, int, str]:
    """Of a layer: its dequantized weight, bytes of weight and of everything, and kind."""
    from quantizer.cuda import linears
    from quantizer.cuda.chip import Chip

    layer = getattr(linears, build)(rounded, bias, Chip((8, 0), 4), *args)
    return layer.dequantized(), layer.weight_bytes, layer.memory_bytes, layer.kind


def rows_compiled_for(has_bias: Sequence[bool]) -> list[list[int]]:
    """Numbers of rows that layers of one kind, with a bias or without, are run with when their path is chosen."""
    from quantizer.cuda.linears import TritonLinear
    from quantizer.cuda.weights import Int8Weight
    from quantizer.rounding import round_rows

    weight = Int8Weight.of(round_rows(torch.ones(16, 16)))
    runs: list[list[int]] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        runs[-1].append(len(x))
        return x

    for is_there in has_bias:
        runs.append([])
        layer = TritonLinear(weight, torch.ones(16) if is_there else None, "of this test", {"only": run})
        layer.choose_paths(torch.device("cpu"), torch.float16)
    return runs


def split_product(rounded: Any, x: torch.Tensor, num_processors: int) -> tuple[list[torch.Tensor], int, int]:
    """Two products of the same with input channels split for so many processors; splits, and tiles left unfinished."""
    from quantizer.cuda.chip import Chip
    from quantizer.cuda.group_products import group_product
    from quantizer.cuda.launch import FEW_ROWS, plan_grid, workspace
    from quantizer.cuda.weights import GroupWeight

    chip, weight = Chip((8, 0), num_processors), GroupWeight.of(rounded)
    num_steps = len(weight.fragments)
    grid = plan_grid(FEW_ROWS, chip, num_rows=len(x), out_features=len(rounded.codes), num_steps=num_steps)
    products = [group_product(x, weight, None, tiling=FEW_ROWS, chip=chip) for _ in range(2)]
    return products, grid.programs[2], int(workspace(x.device, chip).arrivals.count_nonzero())


def far_rows_product(rounded: Any, rows: torch.Tensor, row_stride: int) -> dict[str, torch.Tensor]:
    """What each path makes of rows that lie so many elements apart; untouched memory between them is never taken."""
    from quantizer.cuda import linears
    from quantizer.cuda.chip import Chip

    num_rows, num_columns = rows.shape
    memory = torch.empty((num_rows - 1) * row_stride + num_columns, dtype=rows.dtype)
    x = memory.as_strided((num_rows, num_columns), (row_stride, 1))
    x.copy_(rows)
    layer = linears.group_linear(rounded, None, Chip((8, 0), 4))
    return {name: forward(x) for name, forward in layer.paths().items()}


def rounded_tokens(x: torch.Tensor, code_stride: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As quantizer.cuda.rounded_tokens.rounded_tokens."""
    from quantizer.cuda import rounded_tokens as module

    return module.rounded_tokens(x, code_stride, group_size)


@dataclass(frozen=True)
class Compiled:
    """A kernel for a chip.

    Attributes:
        ptx: Its assembly.
        shared_bytes: Shared memory that a program takes.
        spilled_bytes: Registers that a thread keeps in memory because there are not enough.
    """

    ptx: str
    shared_bytes: int
    spilled_bytes: int


def compiled(
    name: str,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    capability: tuple[int, int],
    num_warps: int = 4,
    num_stages: int = 3,
) -> Compiled:
    """A kernel compiled as launches of usual layers have it: all sizes but the number of rows multiples of 16.

    Args:
        name: Module in quantizer.cuda.kernels, a dot, and the kernel.
        types: Parameters that are not constants, such as "*fp16" or "i32".
        constants: The other parameters.
        capability: Of the chip.
        num_warps: Of a program.
        num_stages: As in `Tiling`.
    """
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, kernel = name.split(".")
    function = getattr(importlib.import_module(f"quantizer.cuda.kernels.{module}"), kernel)
    index = {parameter: (position,) for position, parameter in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        {parameter: types.get(parameter, "constexpr") for parameter in index},
        {index[parameter]: value for parameter, value in constants.items()},
        {index[parameter]: [["tt.divisibility", 16]] for parameter in set(types) - {"num_rows", "magic", "num_spans"}},
    )
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    result = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": num_stages})
    spilled_bytes = _spilled_bytes(result.asm["cubin"], Path(triton.__file__).parent)
    return Compiled(result.asm["ptx"], result.metadata.shared, spilled_bytes)


def _spilled_bytes(cubin: bytes, triton_directory: Path) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton_directory / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])
