"""Rounded weights as the kernels read them."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from quantizer.cuda.fragments import SPAN, from_fragments, to_fragments
from quantizer.rounded import GroupRounded, RowRounded, dequantize_groups_

#: int8 rows are filled up to this many bytes, so that each begins where a vector load can; cuBLAS wants it too.
_ALIGNMENT = 16


@dataclass(frozen=True)
class GroupWeight:
    """A 4-bit or 3-bit weight (N, K).

    Attributes:
        fragments: As `to_fragments` makes them.
        scales: float16 (groups, N), filled up to whole spans unless there is one group.
        zeros: uint8, likewise.
    """

    fragments: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    shape: torch.Size
    bits: int
    group_size: int

    @classmethod
    def of(cls, rounded: GroupRounded) -> "GroupWeight":
        """Lays a weight out; its group size is one of `llmpq.schemes.GROUP_SIZES`."""
        scales, zeros = rounded.scales.t(), rounded.zeros.t()
        if rounded.group_size:
            missing = -len(scales) % (SPAN // rounded.group_size)
            scales, zeros = (functional.pad(matrix, (0, 0, 0, missing)) for matrix in (scales, zeros))
        return cls(
            to_fragments(rounded.codes, rounded.bits),
            scales.contiguous(),
            zeros.contiguous(),
            rounded.shape,
            rounded.bits,
            rounded.group_size,
        )

    @property
    def groups_per_span(self) -> int:
        """Groups in a span of input channels, or 1 if they are larger."""
        return SPAN // (self.group_size or SPAN)

    @property
    def group_stride(self) -> int:
        """Elements from the scales of a group to those of the next, 0 if there is one group."""
        return self.shape[0] if self.group_size else 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.fragments.nbytes + self.scales.nbytes + self.zeros.nbytes

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (N, K) float32."""
        out_features, in_features = self.shape
        codes = from_fragments(self.fragments, self.bits, (out_features, in_features)).float()
        num_groups = -(-in_features // (self.group_size or in_features))
        scales, zeros = self.scales[:num_groups].t(), self.zeros[:num_groups].t()
        return dequantize_groups_(codes, scales, zeros, self.group_size)


@dataclass(frozen=True)
class Int8Weight:
    """An int8 weight (N, K).

    Attributes:
        codes: int8, both sides filled up to multiples of 16 with zeros.
        scales: float32 (N,).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    shape: torch.Size

    @classmethod
    def of(cls, rounded: RowRounded) -> "Int8Weight":
        """Lays a weight out; its own codes are kept where nothing has to be filled up."""
        missing = [-size % _ALIGNMENT for size in rounded.shape]
        codes = functional.pad(rounded.codes, (0, missing[1], 0, missing[0])) if any(missing) else rounded.codes
        return cls(codes.contiguous(), rounded.scales, rounded.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (N, K) float32."""
        out_features, in_features = self.shape
        return self.codes[:out_features, :in_features].float().mul_(self.scales[:, None])
