"""The values that a rounded weight may take, apart from which of them it takes."""

from dataclasses import dataclass

import torch

from quantizer.rounded import GroupRounded, RowRounded, split_groups
from quantizer.rounding import INT8_MAX, search_clipping

#: Codes of so many bits are signed, one group per row.
INT8_BITS = 8


@dataclass(frozen=True)
class Grid:
    """A weight may be `(code - zero) * scale` of its row and group, for whole codes from `lowest` to `highest`.

    Attributes:
        scales: float32 (out, groups), of values that the rounded weight can store.
        zeros: float32 (out, groups), whole.
        bits: Bits of a code; those of 8 bits are signed.
        group_size: As in GroupRounded.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        """The least code."""
        return -INT8_MAX if self.bits == INT8_BITS else 0

    @property
    def highest(self) -> int:
        """The greatest code."""
        return INT8_MAX if self.bits == INT8_BITS else 2**self.bits - 1

    def columns_per_group(self, num_columns: int) -> int:
        """Columns of a full group, if the weight has so many columns."""
        return self.group_size or num_columns

    def of_columns(self, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of every weight, each float32 (out, num_columns)."""
        size = self.columns_per_group(num_columns)
        scales, zeros = (parts.repeat_interleave(size, dim=1)[:, :num_columns] for parts in (self.scales, self.zeros))
        return scales, zeros

    def rounded(self, codes: torch.Tensor) -> GroupRounded | RowRounded:
        """The weight of these codes, (out, in) of any type."""
        if self.bits == INT8_BITS:
            return RowRounded(codes.to(torch.int8), self.scales.squeeze(1))
        codes, zeros = codes.to(torch.uint8), self.zeros.to(torch.uint8)
        return GroupRounded(codes, self.scales.half(), zeros, self.bits, self.group_size)


def int8_grid(weight: torch.Tensor) -> Grid:
    """One group per row of a float32 (out, in) weight, 127 being its largest magnitude."""
    scales = (weight.abs().amax(dim=1, keepdim=True) / INT8_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    return Grid(scales, torch.zeros_like(scales), INT8_BITS, 0)


def clipped_grid(
    weight: torch.Tensor, bits: int, group_size: int, column_weights: torch.Tensor, *, is_symmetric: bool
) -> Grid:
    """The grid of clipped ranges that leaves the least squared error, columns counting by their weights.

    Args:
        weight: float32 (out, in).
        bits: Bits of a code.
        group_size: As in GroupRounded.
        column_weights: float32 (in,).
        is_symmetric: Whether every zero point must be the middle code.
    """
    parts = [
        search_clipping(groups, bits, is_symmetric=is_symmetric, weights=weights)
        for groups, weights in zip(
            split_groups(weight, group_size), split_groups(column_weights[None], group_size), strict=True
        )
    ]
    scales, zeros = (torch.cat(tensors, dim=1).squeeze(2) for tensors in zip(*parts, strict=True))
    return Grid(scales, zeros, bits, group_size)
