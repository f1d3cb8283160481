"""Linear layers whose inputs are rotated before the product, where the product does not rotate them itself."""

import torch

from quantizer.quantized_linear import QuantizedLinear
from quantizer.rotation import rotate


class RotatedLinear(QuantizedLinear):
    """A linear that rotates its inputs.

    Args:
        inner: Holds the weight with its columns rotated.
    """

    def __init__(self, inner: QuantizedLinear) -> None:
        super().__init__(torch.Size((inner.out_features, inner.in_features)), inner.bias)
        self._inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in), of the type computed in, to (rows, out)."""
        return self._inner.forward(rotate(x).to(x.dtype))

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return rotate(self._inner.dequantized())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight with its metadata."""
        return self._inner.weight_bytes
