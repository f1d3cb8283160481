"""Rounding by the inputs that a linear meets: grids by what the error of each column costs, codes by GPTQ."""

import torch

from quantizer.gptq import Compensation, compensated_codes, damped
from quantizer.grid import INT8_BITS, clipped_grid, int8_grid
from quantizer.rounded import GroupRounded, RowRounded


def round_calibrated(
    weight: torch.Tensor, moments: torch.Tensor, bits: int, group_size: int, *, is_symmetric: bool = False
) -> GroupRounded | RowRounded:
    """Rounds a weight so that its outputs change little on the inputs that it meets.

    Args:
        weight: (out, in), any float type.
        moments: E[x x^T] of the inputs, float32 (in, in), on the device of the weight.
        bits: Of a code; 8 gives int8 with one scale per row, fewer give unsigned codes per group.
        group_size: As in `GroupRounded`.
        is_symmetric: Whether every zero point of a group must be the middle code.
    """
    weight = weight.float()
    compensation = Compensation.of(damped(moments))
    if bits == INT8_BITS:
        grid = int8_grid(weight)
    else:
        grid = clipped_grid(weight, bits, group_size, compensation.column_weights, is_symmetric=is_symmetric)
    return grid.rounded(compensated_codes(weight, grid, compensation))
