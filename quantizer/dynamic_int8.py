"""Linear layers that round activations too: w8a8."""

import torch

from quantizer.int8_gemm import Int8Matrix
from quantizer.quantized_linear import QuantizedLinear
from quantizer.rounded import RowRounded
from quantizer.rounding import round_rows
from quantizer.weight_only import Int8Linear


class DynamicInt8Linear(QuantizedLinear):
    """w8a8 on a CPU: activations rounded to int8 per token, multiplied in integers.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: RowRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._matrix = Int8Matrix(rounded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        tokens = round_rows(x)
        products = self._matrix.multiply(tokens.codes).mul_(tokens.scales[:, None]).to(x.dtype)
        return products.add_(self.bias) if self.bias is not None else products

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self._matrix.codes().float().mul_(self._matrix.scales[:, None])

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales, with what the integer product keeps beside them."""
        return self._matrix.nbytes


class SimulatedInt8Linear(Int8Linear):
    """w8a8 where there is no integer product yet: the same rounding of activations, multiplied in floating point."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        tokens = round_rows(x)
        return super().forward((tokens.codes * tokens.scales[:, None]).to(x.dtype))
