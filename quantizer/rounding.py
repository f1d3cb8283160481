"""Rounding to the nearest value of a grid: what to store for a weight matrix, and what that stands for.

Other roundings (error-compensating, half-quadratic) end in the same two records, so that whatever computes with them
need not know how they were found.
"""

from dataclasses import dataclass

import torch

from quantizer.blocks import blocks_of_rows

#: Largest magnitude of a symmetric int8 code; -128 is left out so that the grid is symmetric.
INT8_MAX = 127
#: Shares of a group's range that the clipping search tries.
CLIPPING_FACTORS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58)


@dataclass(frozen=True)
class RowRounded:
    """A matrix as symmetric int8: row r stands for `codes[r] * scales[r]`.

    Attributes:
        codes: int8 (rows, columns), from -127 to 127.
        scales: float32 (rows,).
    """

    codes: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class GroupRounded:
    """A weight matrix as unsigned codes: each weight stands for `(code - zero) * scale` of its group.

    Attributes:
        codes: uint8 (out, in), below 2**bits.
        scales: float16 (out, groups).
        zeros: float16 (out, groups), the code of 0.0; need not be whole.
        bits: Bits of a code.
        group_size: Neighbouring input channels that share a scale, the last group may have fewer; 0 is all of them.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group_size: int


def round_rows(matrix: torch.Tensor) -> RowRounded:
    """Rounds each row of a (rows, columns) float matrix to int8, its largest magnitude becoming 127.

    Serves weights per output channel and activations per token alike. NaN and infinity make the row's scale NaN or
    infinite, so they are not lost.
    """
    scales = matrix.abs().amax(dim=1, keepdim=True).float() / INT8_MAX
    scales.clamp_(min=torch.finfo(torch.float32).tiny)
    codes = (matrix / scales).round_().to(torch.int8)
    return RowRounded(codes, scales.squeeze(1))


def round_groups(weight: torch.Tensor, bits: int, group_size: int) -> GroupRounded:
    """Rounds a (out, in) float weight to `bits` bits per group, searching each group's clipping range.

    The range is [min, max] of the group, widened to hold 0 and shrunk by that one of `CLIPPING_FACTORS` that leaves
    the least squared error. Codes are computed with scale and zero point as stored, in float16, so inside the range no
    weight is off by more than half a step.
    """
    blocks = [_round_block(block.float(), bits, group_size) for block in blocks_of_rows(weight)]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return GroupRounded(codes, scales, zeros, bits, group_size)


def split_groups(matrix: torch.Tensor, group_size: int) -> tuple[torch.Tensor, ...]:
    """Views of a (rows, columns) matrix as (rows, groups, size): the full groups, then a shorter last one.

    Either is left out where there is none. Along `groups` the views follow each other as the columns of scales do.
    """
    num_columns = matrix.shape[1]
    size = group_size or num_columns
    num_full = num_columns // size * size
    views = []
    if num_full:
        views.append(matrix[:, :num_full].view(-1, num_full // size, size))
    if num_full < num_columns:
        views.append(matrix[:, num_full:].unsqueeze(1))
    return tuple(views)


def dequantize_groups_(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group_size: int) -> torch.Tensor:
    """Turns codes into the weights they stand for, in place.

    Args:
        codes: (rows, in), of the float type to compute in.
        scales: float16 (rows, groups).
        zeros: float16 (rows, groups).
        group_size: As in `GroupRounded`.
    """
    first = 0
    for view in split_groups(codes, group_size):
        groups = slice(first, first + view.shape[1])
        view.sub_(zeros[:, groups, None].to(codes.dtype)).mul_(scales[:, groups, None].to(codes.dtype))
        first = groups.stop
    return codes


def _round_block(weight: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, scales, zeros = [], [], []
    for groups in split_groups(weight, group_size):
        scale, zero = _search_clipping(groups, bits)
        codes.append(_encode(groups, scale, zero, bits).to(torch.uint8).flatten(1))
        scales.append(scale)
        zeros.append(zero)
    return (
        torch.cat(codes, dim=1),
        torch.cat(scales, dim=1).squeeze(2).half(),
        torch.cat(zeros, dim=1).squeeze(2).half(),
    )


def _search_clipping(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point (rows, groups, 1), float16 values held in float32, of the least squared error."""
    low = groups.amin(dim=2, keepdim=True).clamp_(max=0)
    high = groups.amax(dim=2, keepdim=True).clamp_(min=0)
    scale, zero = _grid(low, high, bits)
    least_error = _squared_error(groups, scale, zero, bits)
    for factor in CLIPPING_FACTORS[1:]:
        candidate_scale, candidate_zero = _grid(low * factor, high * factor, bits)
        error = _squared_error(groups, candidate_scale, candidate_zero, bits)
        is_better = error < least_error
        scale = torch.where(is_better, candidate_scale, scale)
        zero = torch.where(is_better, candidate_zero, zero)
        least_error = torch.minimum(error, least_error)
    return scale, zero


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero point, rounded to float16, whose codes 0 and 2**bits - 1 stand for `low` and `high`."""
    float16 = torch.finfo(torch.float16)
    max_code = 2**bits - 1
    scale = ((high - low) / max_code).clamp_(float16.smallest_normal * float16.eps, float16.max).half().float()
    zero = (-low / scale).clamp_(0, max_code).half().float()
    return scale, zero


def _encode(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (groups / scale).add_(zero).round_().clamp_(0, 2**bits - 1)


def _squared_error(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    error = _encode(groups, scale, zero, bits).sub_(zero).mul_(scale).sub_(groups)
    return error.square_().sum(dim=2, keepdim=True)
