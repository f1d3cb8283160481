"""The values that a rounded weight may take, apart from which of them it takes."""

from dataclasses import dataclass

import torch

from quantizer.rounded import GroupRounded, RowRounded
from quantizer.rounding import INT8_MAX


@dataclass(frozen=True)
class Grid:
    """Weight (row, column) may be `(code - zero) * scale` of its group, for whole codes from `lowest` to `highest`.

    Attributes:
        scales: float32 (out, groups), values that the rounded weight can store.
        zeros: float32 (out, groups), whole.
        group_size: As in GroupRounded.
        bits: Bits of a grouped code, or 8 where a row is a group and codes are signed.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    group_size: int
    bits: int

    @property
    def lowest(self) -> int:
        """The least code."""
        return -INT8_MAX if self.bits == 8 else 0  # noqa: PLR2004

    @property
    def highest(self) -> int:
        """The greatest code."""
        return INT8_MAX if self.bits == 8 else 2**self.bits - 1  # noqa: PLR2004


def grid_of(rounded: GroupRounded | RowRounded) -> Grid:
    """The grid that a rounded weight lies on."""
    if isinstance(rounded, RowRounded):
        scales = rounded.scales[:, None]
        return Grid(scales, torch.zeros_like(scales), 0, 8)
    return Grid(rounded.scales.float(), rounded.zeros.float(), rounded.group_size, rounded.bits)


def with_codes(grid: Grid, codes: torch.Tensor) -> GroupRounded | RowRounded:
    """The rounded weight of these codes, float (out, in), on a grid."""
    if grid.bits == 8:  # noqa: PLR2004
        return RowRounded(codes.to(torch.int8), grid.scales.squeeze(1))
    return GroupRounded(
        codes.to(torch.uint8), grid.scales.half(), grid.zeros.to(torch.uint8), grid.bits, grid.group_size
    )
