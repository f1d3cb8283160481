"""Weights as the schemes stand for them: what every rounding ends in, and every kernel, file and cache begins with.

How a weight was rounded (to the nearest, half-quadratic, error-compensating, by somebody else's tool) cannot be seen
here any more, and how it will be packed and multiplied is not decided yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from quantizer.rotation import rotate

T = TypeVar("T")


@dataclass(frozen=True)
class SixteenBits:
    """A weight matrix in 16 bits.

    Attributes:
        weight: float16 or bfloat16 (out, in).
    """

    weight: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.weight.shape

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, float32 (out, in)."""
        return self.weight.float()


@dataclass(frozen=True)
class RowRounded:
    """A matrix as symmetric int8: row r stands for `codes[r] * scales[r]`.

    Attributes:
        codes: int8 (rows, columns), from -127 to 127; -128 only in weights of a checkpoint that others rounded.
        scales: float32 (rows,).
        is_rotated: Whether that is the matrix with its columns rotated (quantizer/rotation.py), as its inputs must be.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    is_rotated: bool = False

    @property
    def shape(self) -> torch.Size:
        """(rows, columns)."""
        return self.codes.shape

    def dequantized(self) -> torch.Tensor:
        """The matrix that is stood for, float32 (rows, columns)."""
        matrix = self.codes.float().mul_(self.scales[:, None])
        return rotate(matrix) if self.is_rotated else matrix


@dataclass(frozen=True)
class GroupRounded:
    """A weight matrix as unsigned codes: each weight stands for `(code - zero) * scale` of its group.

    Attributes:
        codes: uint8 (out, in), below 2**bits.
        scales: float16 (out, groups).
        zeros: uint8 (out, groups), below 2**bits, the code of 0.0; 2**(bits - 1) everywhere if symmetric.
        bits: Bits of a code.
        group_size: Neighbouring input channels that share a scale, the last group may have fewer; 0 is all of them.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group_size: int

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.codes.shape

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, float32 (out, in)."""
        return dequantize_groups_(self.codes.float(), self.scales, self.zeros, self.group_size)


#: A weight matrix at the precision of some scheme.
RoundedWeight = SixteenBits | RowRounded | GroupRounded


def stack(weights: Sequence[RoundedWeight]) -> RoundedWeight:
    """Weights of one kind that read the same input, joined along the output axis: exact, no scale reaches across rows.

    Raises:
        TypeError: They are of several kinds.
    """
    first = weights[0]
    if isinstance(first, SixteenBits):
        return SixteenBits(torch.cat([_of(SixteenBits, weight).weight for weight in weights]))
    if isinstance(first, RowRounded):
        rows = [_of(RowRounded, weight) for weight in weights]
        if len({weight.is_rotated for weight in rows}) > 1:
            raise TypeError("Weights of which only some are rotated cannot be stacked.")
        codes, scales = (torch.cat(parts) for parts in zip(*((row.codes, row.scales) for row in rows), strict=True))
        return replace(first, codes=codes, scales=scales)
    groups = [_of(GroupRounded, weight) for weight in weights]
    if len({(weight.bits, weight.group_size) for weight in groups}) > 1:
        raise TypeError("Weights of several group sizes or numbers of bits cannot be stacked.")
    return replace(
        first,
        codes=torch.cat([weight.codes for weight in groups]),
        scales=torch.cat([weight.scales for weight in groups]),
        zeros=torch.cat([weight.zeros for weight in groups]),
    )


def to_device(weight: RoundedWeight, device: torch.device) -> RoundedWeight:
    """The same weight on a device."""
    fields = vars(weight).items()
    tensors: Any = {name: value.to(device) for name, value in fields if isinstance(value, torch.Tensor)}
    return replace(weight, **tensors)


def select_rows(weight: RoundedWeight, rows: torch.Tensor | slice) -> RoundedWeight:
    """Output rows of a weight, in the order given: exact, as in `stack`."""
    if isinstance(weight, SixteenBits):
        return SixteenBits(weight.weight[rows])
    if isinstance(weight, RowRounded):
        return replace(weight, codes=weight.codes[rows], scales=weight.scales[rows])
    return replace(weight, codes=weight.codes[rows], scales=weight.scales[rows], zeros=weight.zeros[rows])


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
        zeros: uint8 (rows, groups).
        group_size: As in `GroupRounded`.
    """
    first = 0
    for view in split_groups(codes, group_size):
        groups = slice(first, first + view.shape[1])
        view.sub_(zeros[:, groups, None].to(codes.dtype)).mul_(scales[:, groups, None].to(codes.dtype))
        first = groups.stop
    return codes


def _of(kind: type[T], weight: RoundedWeight) -> T:
    if not isinstance(weight, kind):
        raise TypeError(f"A {type(weight).__name__} cannot be stacked with a {kind.__name__}.")
    return weight
