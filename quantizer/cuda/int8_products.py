"""Products with int8 weights, of floats and of rounded activations. Nothing waits for the device."""

import torch
import triton

from quantizer.cuda.chip import Chip
from quantizer.cuda.kernels.expand import expand_int8
from quantizer.cuda.kernels.int8 import multiply_int8
from quantizer.cuda.kernels.tokens import scale_sums
from quantizer.cuda.launch import Tiling, plan_grid, workspace
from quantizer.cuda.launch_context import current_device, dense_rows
from quantizer.cuda.rounded_tokens import rounded_tokens
from quantizer.cuda.weights import Int8Weight

#: Input channels that a product takes in a step, and without tensor cores, where more do not fit into registers.
_STEP, _STEP_NO_TENSOR_CORES = 128, 64
#: Elements that an elementwise program takes at a time.
_BLOCK = 1024
#: cuBLAS multiplies no fewer int8 rows.
_MIN_CUBLAS_ROWS = 32


def int8_product(
    x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None, *, tiling: Tiling, chip: Chip
) -> torch.Tensor:
    """As `group_product`, with an int8 weight."""
    y = x.new_empty(len(x), weight.shape[0])
    _multiply_int8(y, dense_rows(x), weight, bias, tiling=tiling, chip=chip)
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
    y = x.new_empty(len(x), weight.shape[0])
    codes, scales = rounded_tokens(x, weight.codes.shape[1], activation_group_size)
    _multiply_int8(y, codes, weight, bias, x_scales=scales, step=activation_group_size, tiling=tiling, chip=chip)
    return y


def rounded_product_of_cublas(x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """As `rounded_product` with one scale a token, by cuBLAS, with the sums in memory before they are scaled."""
    y = x.new_empty(len(x), weight.shape[0])
    if not len(x):
        return y
    codes, scales = rounded_tokens(x, weight.codes.shape[1], 0, num_code_rows=max(len(x), _MIN_CUBLAS_ROWS))
    sums = torch._int_mm(codes, weight.codes.t())  # noqa: SLF001 the operator has no public name
    with current_device(x.device):
        scale_sums[len(x), triton.cdiv(weight.shape[0], _BLOCK)](
            sums, scales, weight.scales, bias, y, weight.shape[0], sums.stride(0), block=_BLOCK
        )
    return y


def expanded_int8(weight: Int8Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight (N, K) in a 16-bit type, each element rounded once."""
    expanded = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    with current_device(expanded.device):
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
    step = step or (_STEP if chip.has_tensor_cores else _STEP_NO_TENSOR_CORES)
    num_steps = triton.cdiv(weight.shape[1], step)
    grid = plan_grid(tiling, chip, num_rows=len(x), out_features=weight.shape[0], num_steps=num_steps)
    space = workspace(x.device, chip)
    with current_device(x.device):
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
