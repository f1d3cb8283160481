"""Products with 4-bit and 3-bit weights. Results are allocated, nothing waits for the device."""

import torch
import triton

from quantizer.cuda.chip import Chip
from quantizer.cuda.fragments import SPAN
from quantizer.cuda.kernels.expand import expand_groups
from quantizer.cuda.kernels.groups import multiply_groups
from quantizer.cuda.launch import Tiling, plan_grid, workspace
from quantizer.cuda.launch_context import current_device, dense_rows
from quantizer.cuda.weights import GroupWeight

#: Bits that make a float of a code below them, in both halves of a word: of 1024 in float16 and 128 in bfloat16.
_MAGIC = {torch.float16: 0x64006400, torch.bfloat16: 0x43004300}
#: Output channels of a program that expands fragments.
_EXPAND_BLOCK = 64


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
    y, x = x.new_empty(len(x), weight.shape[0]), dense_rows(x)
    if not len(x):
        return y
    num_spans, _, num_lanes, _ = weight.fragments.shape
    grid = plan_grid(tiling, chip, num_rows=len(x), out_features=weight.shape[0], num_steps=num_spans)
    space = workspace(x.device, chip)
    with current_device(x.device):
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


def expanded_groups(weight: GroupWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight (N, K) in a 16-bit type, each element rounded once."""
    expanded = torch.empty(weight.shape, dtype=dtype, device=weight.fragments.device)
    num_spans, _, num_lanes, _ = weight.fragments.shape
    with current_device(expanded.device):
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
