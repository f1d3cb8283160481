"""The kernels as functions of tensors: each allocates its result and launches, without waiting for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton

from quantizer.cuda.chip import Chip
from quantizer.cuda.fragments import SPAN
from quantizer.cuda.kernels.expand import expand_groups, expand_int8
from quantizer.cuda.kernels.groups import multiply_groups
from quantizer.cuda.kernels.int8 import multiply_int8
from quantizer.cuda.kernels.tokens import round_token_groups, round_tokens, scale_sums
from quantizer.cuda.launch import Tiling, plan_grid, workspace
from quantizer.cuda.weights import GroupWeight, Int8Weight

#: Bits that make a float of a code below them, in both halves of a word: of 1024 in float16 and 128 in bfloat16.
_MAGIC = {torch.float16: 0x64006400, torch.bfloat16: 0x43004300}
#: Input channels that an int8 product takes in a step, and without tensor cores, where more do not fit into registers.
_INT8_STEP, _INT8_STEP_NO_TENSOR_CORES = 128, 64
#: Elements that an elementwise program takes at a time.
_BLOCK = 1024
#: Output channels of a program that expands fragments.
_EXPAND_BLOCK = 64
#: cuBLAS multiplies no fewer int8 rows.
_MIN_CUBLAS_ROWS = 32


def group_product(
    x: torch.Tensor, weight: GroupWeight, bias: torch.Tensor | None, *, tiling: Tiling, chip: Chip
) -> torch.Tensor:
    """Computes x @ weight.T + bias with fragments unpacked in registers.

    Args:
        x: (M, K), float16 or bfloat16.
        weight: (N, K).
        bias: (N,) or None.
        tiling: Size of the blocks.
        chip: That x is on.

    Returns:
        (M, N), of the type of x.
    """
    y, x = _output(x, weight.shape[0]), _with_dense_rows(x)
    if not len(x):
        return y
    num_spans, _, num_lanes, _ = weight.fragments.shape
    grid = plan_grid(tiling, chip, num_rows=len(x), out_features=weight.shape[0], num_steps=num_spans)
    space = workspace(x.device, chip)
    with _current(x.device):
        multiply_groups[grid.programs](
            x,
            weight.fragments,
            weight.scales,
            weight.zeros,
            bias,
            y,
            space.partials,
            space.arrivals,
            len(x),
            x.stride(0),
            *weight.shape,
            num_spans,
            num_lanes,
            weight.group_stride,
            _MAGIC[x.dtype],
            bits=weight.bits,
            groups_per_span=weight.groups_per_span,
            block_m=grid.block_m,
            block_n=tiling.block_n,
            is_whole=weight.shape[1] % SPAN == 0,
            is_split=grid.is_split,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    return y


def int8_product(
    x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None, *, tiling: Tiling, chip: Chip
) -> torch.Tensor:
    """As `group_product`, with an int8 weight."""
    y = _output(x, weight.shape[0])
    _multiply_int8(y, _with_dense_rows(x), weight, bias, tiling=tiling, chip=chip)
    return y


def rounded_product(
    x: torch.Tensor,
    weight: Int8Weight,
    bias: torch.Tensor | None,
    *,
    activation_group_size: int,
    tiling: Tiling,
    chip: Chip,
) -> torch.Tensor:
    """As `int8_product`, with x rounded to int8 by `rounded_tokens` and multiplied in integers."""
    y = _output(x, weight.shape[0])
    codes, scales = rounded_tokens(x, weight.codes.shape[1], activation_group_size)
    _multiply_int8(y, codes, weight, bias, x_scales=scales, step=activation_group_size, tiling=tiling, chip=chip)
    return y


def rounded_product_of_cublas(x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """As `rounded_product` with one scale a token, by cuBLAS, with the sums in memory before they are scaled."""
    y = _output(x, weight.shape[0])
    if not len(x):
        return y
    codes, scales = rounded_tokens(x, weight.codes.shape[1], 0, num_code_rows=max(len(x), _MIN_CUBLAS_ROWS))
    sums = torch._int_mm(codes, weight.codes.t())  # noqa: SLF001 the operator has no public name
    with _current(x.device):
        scale_sums[len(x), triton.cdiv(weight.shape[0], _BLOCK)](
            sums, scales, weight.scales, bias, y, weight.shape[0], sums.stride(0), block=_BLOCK
        )
    return y


def rounded_tokens(
    x: torch.Tensor, code_stride: int, group_size: int, *, num_code_rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row of x (M, K) to int8, each group of columns by itself, as `quantizer.rounding.round_rows` does.

    Args:
        x: float16 or bfloat16.
        code_stride: Columns of the result, at least K.
        group_size: Neighbouring columns that share a scale, a power of two; 0 is all of them.
        num_code_rows: Rows of the result, M by default.

    Returns:
        int8 (num_code_rows, code_stride) codes with zeros at the end of each row and anything in rows after the first
        M, and float32 (groups, M) scales.
    """
    x = _with_dense_rows(x)
    num_rows, num_columns = x.shape
    num_groups = triton.cdiv(num_columns, group_size or num_columns)
    codes = torch.empty(num_code_rows or num_rows, code_stride, dtype=torch.int8, device=x.device)
    scales = torch.empty(num_groups, num_rows, dtype=torch.float32, device=x.device)
    if not num_rows:
        return codes, scales
    with _current(x.device):
        if not group_size:
            round_tokens[num_rows,](x, codes, scales, x.stride(0), num_columns, code_stride, block=_BLOCK)
        else:
            block_groups = _BLOCK // group_size
            round_token_groups[num_rows, triton.cdiv(num_groups, block_groups)](
                x,
                codes,
                scales,
                x.stride(0),
                num_columns,
                code_stride,
                num_groups,
                group_size=group_size,
                block_groups=block_groups,
            )
    return codes, scales


def expanded_groups(weight: GroupWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight (N, K) in a 16-bit type, each element rounded once."""
    expanded = torch.empty(weight.shape, dtype=dtype, device=weight.fragments.device)
    num_spans, _, num_lanes, _ = weight.fragments.shape
    with _current(expanded.device):
        expand_groups[triton.cdiv(weight.shape[0], _EXPAND_BLOCK), num_spans](
            weight.fragments,
            weight.scales,
            weight.zeros,
            expanded,
            *weight.shape,
            num_lanes,
            weight.group_stride,
            bits=weight.bits,
            groups_per_span=weight.groups_per_span,
            block_n=_EXPAND_BLOCK,
        )
    return expanded


def expanded_int8(weight: Int8Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight (N, K) in a 16-bit type, each element rounded once."""
    expanded = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    with _current(expanded.device):
        expand_int8[(weight.shape[0],)](
            weight.codes, weight.scales, expanded, weight.shape[1], weight.codes.stride(0), block=_BLOCK
        )
    return expanded


def _multiply_int8(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: Int8Weight,
    bias: torch.Tensor | None,
    *,
    x_scales: torch.Tensor | None = None,
    step: int = 0,
    tiling: Tiling,
    chip: Chip,
) -> None:
    """Writes x @ weight.T + bias to y; x is float, or int8 with scales for each `step` columns (0 is all of them)."""
    if not len(x):
        return
    is_grouped = step > 0
    step = step or (_INT8_STEP if chip.has_tensor_cores else _INT8_STEP_NO_TENSOR_CORES)
    num_steps = triton.cdiv(weight.shape[1], step)
    grid = plan_grid(tiling, chip, num_rows=len(x), out_features=weight.shape[0], num_steps=num_steps)
    space = workspace(x.device, chip)
    with _current(x.device):
        multiply_int8[grid.programs](
            x,
            x_scales,
            weight.codes,
            weight.scales,
            bias,
            y,
            space.partials,
            space.arrivals,
            len(x),
            x.stride(0),
            *weight.shape,
            weight.codes.stride(0),
            block_m=grid.block_m,
            block_n=tiling.block_n,
            block_k=step,
            is_grouped=is_grouped,
            is_whole=weight.shape[1] % step == 0,
            is_split=grid.is_split,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )


def _output(x: torch.Tensor, out_features: int) -> torch.Tensor:
    return x.new_empty(len(x), out_features)


def _with_dense_rows(x: torch.Tensor) -> torch.Tensor:
    """The same, unless the elements of a row are apart in memory."""
    return x if x.stride(1) == 1 else x.contiguous()


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Makes a device the current one, which Triton launches on; on the CPU (Triton's interpreter) there is none."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
