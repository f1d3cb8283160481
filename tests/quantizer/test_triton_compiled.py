"""The Triton kernels as compiled for the chips they are said to run on, which needs no GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_child import HAS_TRITON, WHY_SKIPPED, Compiled, compiled, triton_child

from quantizer.cuda.chip import Chip, Kernel, supported_kernels
from quantizer.cuda.launch import FEW_ROWS, MANY_ROWS, MANY_ROWS_INT8, NO_TENSOR_CORES, Tiling

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason=WHY_SKIPPED)

Child = Callable[..., Any]
VOLTA, TURING, AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = (
    (7, 0),
    (7, 5),
    (8, 0),
    (8, 9),
    (9, 0),
    (10, 0),
    (12, 0),
)
#: KiB of shared memory that a program may take (CUDA C programming guide, technical specifications).
SHARED_KIB = {VOLTA: 96, TURING: 64, AMPERE: 163, ADA: 99, HOPPER: 227, BLACKWELL: 227, GEFORCE_BLACKWELL: 99}
#: Instructions of tensor cores, by the assembly's names for their generations.
TENSOR_CORE_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")

SIZES = {"num_rows": "i32", "row_stride": "i32", "out_features": "i32", "in_features": "i32"}
SPLIT = {"partials": "*i32", "arrivals": "*i32"}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process that compiles into a cache of its own."""
    cache: Path = tmp_path_factory.mktemp("triton")
    with triton_child(TRITON_CACHE_DIR=str(cache)) as run:
        yield run


def _assert_healthy(kernel: Compiled, capability: tuple[int, int]) -> None:
    """The compiler has not given up, shared memory suffices, and registers do where it matters."""
    assert "trap;" not in kernel.ptx
    assert kernel.shared_bytes <= SHARED_KIB[capability] * 1024
    if Chip(capability, 1).has_tensor_cores:
        assert kernel.spilled_bytes == 0


def _group_product(
    child: Child, bits: int, dtype: str, *, tiling: Tiling, block_m: int, capability: tuple[int, int]
) -> Compiled:
    pointers = {"x": f"*{dtype}", "fragments": "*i32", "scales": "*fp16", "zeros": "*u8", "y": f"*{dtype}"}
    numbers = {"num_spans": "i32", "num_lanes": "i32", "group_stride": "i32", "magic": "i32"}
    constants = {"bits": bits, "groups_per_span": 2, "block_m": block_m, "block_n": tiling.block_n}
    return child(
        compiled,
        "groups.multiply_groups",
        {**pointers, **SPLIT, **SIZES, **numbers},
        {**constants, "bias": None, "is_whole": True, "is_split": True},
        capability=capability,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def _int8_product(
    child: Child,
    dtype: str,
    step: int,
    *,
    tiling: Tiling,
    block_m: int,
    capability: tuple[int, int],
    is_grouped: bool = False,
) -> Compiled:
    pointers = {"x": f"*{dtype}", "codes": "*i8", "scales": "*fp32", "y": "*fp16"}
    constants = {"block_m": block_m, "block_n": tiling.block_n, "block_k": step, "is_grouped": is_grouped}
    x_scales = {"x_scales": "*fp32"} if dtype == "i8" else {}
    return child(
        compiled,
        "int8.multiply_int8",
        {**pointers, **x_scales, **SPLIT, **SIZES, "code_stride": "i32"},
        {**constants, "bias": None, "is_whole": True, "is_split": True} | ({} if x_scales else {"x_scales": None}),
        capability=capability,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


@pytest.mark.parametrize(
    ("bits", "dtype", "tiling", "block_m", "capability"),
    [
        (4, "bf16", FEW_ROWS, 8, AMPERE),
        (3, "fp16", FEW_ROWS, 16, AMPERE),
        (4, "bf16", MANY_ROWS, 64, AMPERE),
        (4, "fp16", MANY_ROWS, 64, ADA),
        (4, "bf16", FEW_ROWS, 16, HOPPER),
        (3, "bf16", FEW_ROWS, 8, HOPPER),
        (3, "bf16", MANY_ROWS, 64, HOPPER),
        (4, "bf16", FEW_ROWS, 16, BLACKWELL),
        (4, "bf16", MANY_ROWS, 64, BLACKWELL),
        (4, "bf16", MANY_ROWS, 64, GEFORCE_BLACKWELL),
    ],
)
def test_grouped_products_run_on_tensor_cores(
    child: Child, bits: int, dtype: str, *, tiling: Tiling, block_m: int, capability: tuple[int, int]
) -> None:
    """w4 and w3 take tensor cores from 8.0 on, while the next codes are on their way to shared memory."""
    kernel = _group_product(child, bits, dtype, tiling=tiling, block_m=block_m, capability=capability)
    _assert_healthy(kernel, capability)
    assert any(instruction in kernel.ptx for instruction in TENSOR_CORE_INSTRUCTIONS)
    assert "cp.async" in kernel.ptx


@pytest.mark.parametrize(
    ("dtype", "step", "is_grouped", "tiling", "block_m", "capability"),
    [
        ("bf16", 128, False, FEW_ROWS, 8, AMPERE),
        ("fp16", 128, False, MANY_ROWS_INT8, 128, ADA),
        ("bf16", 128, False, MANY_ROWS_INT8, 128, HOPPER),
        ("i8", 64, True, FEW_ROWS, 8, AMPERE),
        ("i8", 64, True, MANY_ROWS_INT8, 128, AMPERE),
        ("i8", 64, True, MANY_ROWS_INT8, 128, HOPPER),
        ("i8", 128, True, MANY_ROWS_INT8, 128, HOPPER),
        ("i8", 64, True, MANY_ROWS_INT8, 128, BLACKWELL),
        ("i8", 128, False, FEW_ROWS, 16, HOPPER),
        ("i8", 128, False, MANY_ROWS_INT8, 128, HOPPER),
    ],
)
def test_products_of_int8_weights_run_on_tensor_cores(
    child: Child,
    dtype: str,
    step: int,
    *,
    is_grouped: bool,
    tiling: Tiling,
    block_m: int,
    capability: tuple[int, int],
) -> None:
    """w8 takes those of 16-bit floats and w8a8 those of int8."""
    sizes = {"tiling": tiling, "block_m": block_m}
    kernel = _int8_product(child, dtype, step, **sizes, capability=capability, is_grouped=is_grouped)
    _assert_healthy(kernel, capability)
    assert any(instruction in kernel.ptx for instruction in TENSOR_CORE_INSTRUCTIONS)
    if dtype == "i8":
        assert ".s32.s8.s8" in kernel.ptx


@pytest.mark.parametrize("capability", [VOLTA, TURING])
def test_fused_products_compile_without_tensor_cores(child: Child, capability: tuple[int, int]) -> None:
    """On 7.x they compile to ordinary arithmetic."""
    assert Kernel.FUSED in supported_kernels(capability)
    for kernel in (
        _group_product(child, 4, "fp16", tiling=NO_TENSOR_CORES, block_m=8, capability=capability),
        _int8_product(child, "fp16", 64, tiling=NO_TENSOR_CORES, block_m=8, capability=capability),
    ):
        _assert_healthy(kernel, capability)
        assert "fma.rn.f32" in kernel.ptx
        assert not any(instruction in kernel.ptx for instruction in TENSOR_CORE_INSTRUCTIONS)


def test_int8_products_do_not_compile_before_ampere(child: Child) -> None:
    """That 7.5 is said to lack Triton's int8 product is still so; with a Triton that can, it should be used."""
    assert Kernel.INT8_PRODUCT not in supported_kernels(TURING)
    with pytest.raises(RuntimeError):
        _int8_product(child, "i8", 64, tiling=NO_TENSOR_CORES, block_m=8, capability=TURING)


@pytest.mark.parametrize(
    ("name", "types", "constants", "capability"),
    [
        (
            "expand.expand_groups",
            {"fragments": "*i32", "scales": "*fp16", "zeros": "*u8", "weight": "*bf16", "out_features": "i32"}
            | {"in_features": "i32", "num_lanes": "i32", "group_stride": "i32"},
            {"bits": 3, "groups_per_span": 2, "block_n": 64},
            AMPERE,
        ),
        (
            "expand.expand_groups",
            {"fragments": "*i32", "scales": "*fp16", "zeros": "*u8", "weight": "*fp16", "out_features": "i32"}
            | {"in_features": "i32", "num_lanes": "i32", "group_stride": "i32"},
            {"bits": 4, "groups_per_span": 4, "block_n": 64},
            VOLTA,
        ),
        (
            "expand.expand_int8",
            {"codes": "*i8", "scales": "*fp32", "weight": "*fp16", "in_features": "i32", "code_stride": "i32"},
            {"block": 1024},
            VOLTA,
        ),
        (
            "tokens.round_tokens",
            {"x": "*fp16", "codes": "*i8", "scales": "*fp32", "row_stride": "i32", "num_columns": "i32"}
            | {"code_stride": "i32"},
            {"block": 1024},
            TURING,
        ),
        (
            "tokens.round_token_groups",
            {"x": "*bf16", "codes": "*i8", "scales": "*fp32", "row_stride": "i32", "num_columns": "i32"}
            | {"code_stride": "i32", "num_groups": "i32"},
            {"group_size": 64, "block_groups": 16},
            AMPERE,
        ),
        (
            "tokens.scale_sums",
            {"sums": "*i32", "x_scales": "*fp32", "scales": "*fp32", "y": "*fp16", "out_features": "i32"}
            | {"sum_stride": "i32"},
            {"bias": None, "block": 1024},
            TURING,
        ),
    ],
)
def test_elementwise_kernels_compile(
    child: Child, name: str, types: dict[str, str], constants: dict[str, object], capability: tuple[int, int]
) -> None:
    """What prepares or finishes a library's product compiles for the oldest chips that need it."""
    _assert_healthy(child(compiled, name, types, constants, capability=capability), capability)


def test_compiling_has_not_touched_a_device() -> None:
    """None of this initializes CUDA in the process of the tests."""
    assert not torch.cuda.is_initialized()
