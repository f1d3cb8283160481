"""Rounding to the nearest value of a grid."""

from typing import Protocol

import torch

from quantizer.blocks import blocks_of_rows
from quantizer.rounded import GroupRounded, RowRounded, split_groups

#: Largest magnitude of a symmetric int8 code; -128 is left out so that the grid is symmetric.
INT8_MAX = 127
#: Shares of a group's range that the clipping search tries. In groups of 64 of SmolLM2 they leave 13 % (4 bits) and
#: 18 % (3 bits) less squared error than 1 alone; steps of 0.02 instead of 0.07 would leave 3 % and 1 % less again, for
#: three times the time. The last two serve whole output channels: 8 % at 3 bits, where smaller ones would add 1 %.
CLIPPING_FACTORS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58)


def round_rows(matrix: torch.Tensor) -> RowRounded:
    """Rounds each row of a (rows, columns) float matrix to int8, its largest magnitude becoming 127.

    Serves weights per output channel and activations per token alike. NaN and infinity make the row's scale NaN or
    infinite, so they are not lost.
    """
    scales = matrix.abs().amax(dim=1, keepdim=True).float() / INT8_MAX
    scales.clamp_(min=torch.finfo(torch.float32).tiny)
    codes = (matrix / scales).round_().to(torch.int8)
    return RowRounded(codes, scales.squeeze(1))


class GridFit(Protocol):
    """Finds a grid for each group of weights; see `search_clipping`."""

    def __call__(self, groups: torch.Tensor, bits: int, *, is_symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of each group."""


def round_groups(
    weight: torch.Tensor, bits: int, group_size: int, *, is_symmetric: bool = False, fit: GridFit | None = None
) -> GroupRounded:
    """Rounds a (out, in) float weight to the nearest of 2**bits values per group.

    Codes are computed with scale and zero point as stored (float16, whole), so inside the range of a group no weight is
    off by more than half a step.

    Args:
        weight: (out, in), any float type.
        bits: Bits of a code.
        group_size: As in `GroupRounded`.
        is_symmetric: Whether every zero point must be the middle code.
        fit: Finds each group's grid; `search_clipping` if None.
    """
    fit = fit or search_clipping
    blocks = [
        _round_block(block.float(), bits, group_size, fit, is_symmetric=is_symmetric)
        for block in blocks_of_rows(weight)
    ]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return GroupRounded(codes, scales, zeros, bits, group_size)


def _round_block(
    weight: torch.Tensor, bits: int, group_size: int, fit: GridFit, *, is_symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, scales, zeros = [], [], []
    for groups in split_groups(weight, group_size):
        scale, zero = fit(groups, bits, is_symmetric=is_symmetric)
        codes.append(encode(groups, scale, zero, bits).to(torch.uint8).flatten(1))
        scales.append(scale)
        zeros.append(zero)
    return (
        torch.cat(codes, dim=1),
        torch.cat(scales, dim=1).squeeze(2).half(),
        torch.cat(zeros, dim=1).squeeze(2).to(torch.uint8),
    )


def search_clipping(
    groups: torch.Tensor, bits: int, *, is_symmetric: bool, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid of each group that leaves the least squared error among several clipping ranges.

    The range is [min, max] of the group, widened to hold 0 and, if symmetric, to reach as far to either side, then
    shrunk by one of `CLIPPING_FACTORS`.

    Args:
        groups: float32 (rows, groups, size).
        bits: Bits of a code.
        is_symmetric: Whether the zero point must be the middle code.
        weights: What the squared errors count by, float32, broadcasts to `groups`; None is all alike.

    Returns:
        Scale and zero point, (rows, groups, 1), as they are stored (float16 and whole) but held in float32.
    """
    low = groups.amin(dim=2, keepdim=True).clamp_(max=0)
    high = groups.amax(dim=2, keepdim=True).clamp_(min=0)
    if is_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale, zero = _grid(low, high, bits, is_symmetric=is_symmetric)
    least_error = _squared_error(groups, scale, zero, bits, weights)
    for factor in CLIPPING_FACTORS[1:]:
        candidate_scale, candidate_zero = _grid(low * factor, high * factor, bits, is_symmetric=is_symmetric)
        error = _squared_error(groups, candidate_scale, candidate_zero, bits, weights)
        is_better = error < least_error
        scale = torch.where(is_better, candidate_scale, scale)
        zero = torch.where(is_better, candidate_zero, zero)
        least_error = torch.minimum(error, least_error)
    return scale, zero


def encode(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest codes on a grid, in float."""
    return (groups / scale).add_(zero).round_().clamp_(0, 2**bits - 1)


def storable_scale(scale: torch.Tensor) -> torch.Tensor:
    """The nearest positive float16 to each scale, in float32."""
    float16 = torch.finfo(torch.float16)
    return scale.clamp(float16.smallest_normal * float16.eps, float16.max).half().float()


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int, *, is_symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point, as they are stored, with which 2**bits codes span `low` to `high`.

    The zero point is whole, so that 0.0 is exact and every format on disk can hold it; ends may move by half a step.
    """
    max_code = 2**bits - 1
    scale = storable_scale((high - low) / max_code)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if is_symmetric else (-low / scale).round_().clamp_(0, max_code)
    return scale, zero


def _squared_error(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, weights: torch.Tensor | None
) -> torch.Tensor:
    error = encode(groups, scale, zero, bits).sub_(zero).mul_(scale).sub_(groups).square_()
    return (error if weights is None else error.mul_(weights)).sum(dim=2, keepdim=True)
