"""Linear layers that store fewer bits than they compute in: w16, w8, w4 and w3.

They share one `forward`, which expands the weight on the way. A kernel that reads the stored form itself overrides it
in the class of its scheme.
"""

from abc import abstractmethod

import torch

from quantizer.gemm import expanding_linear, linear
from quantizer.packing import pack, unpack
from quantizer.quantized_linear import QuantizedLinear
from quantizer.rounded import GroupRounded, RowRounded, dequantize_groups_


class ExpandingLinear(QuantizedLinear):
    """A linear whose weight is expanded to the type of its input on the way to the product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        return expanding_linear(x, self.out_features, self.expand, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self.expand(slice(0, self.out_features), torch.float32)

    @abstractmethod
    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""


class SixteenBitLinear(ExpandingLinear):
    """w16: fp16 or bf16, used as it is where that is the type computed in.

    Args:
        weight: (out, in), fp16 or bf16.
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape, bias)
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        return linear(x, self.weight, self.bias) if x.dtype == self.weight.dtype else super().forward(x)

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        return self.weight[rows].to(dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weight."""
        return self.weight.nbytes


class Int8Linear(ExpandingLinear):
    """w8: symmetric int8 per output channel.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: RowRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._rounded = rounded

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        return self._rounded.codes[rows].to(dtype).mul_(self._rounded.scales[rows, None].to(dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self._rounded.codes.nbytes + self._rounded.scales.nbytes


class PackedLinear(ExpandingLinear):
    """w4 and w3: packed codes with scale and zero point per group.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: GroupRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._packed = pack(rounded.codes, rounded.bits)
        self._scales = rounded.scales
        self._zeros = rounded.zeros
        self._bits = rounded.bits
        self._group_size = rounded.group_size

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        codes = unpack(self._packed[rows], self._bits, self.in_features).to(dtype)
        return dequantize_groups_(codes, self._scales[rows], self._zeros[rows], self._group_size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed codes, scales and zero points."""
        return self._packed.nbytes + self._scales.nbytes + self._zeros.nbytes
